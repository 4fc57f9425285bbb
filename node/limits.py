"""The limits of one write, checked before it is queued."""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.node.config import OPERATION_BYTES, Config
from kvnode.node.errors import TooLarge
from kvnode.protocol.types import Op, Put


def check_limits(config: Config, ops: Sequence[Op]) -> int:
    """What the write holds in memory, about: its keys and values, and `OPERATION_BYTES` for each operation.

    Raises:
        TooLarge: a limit is passed.
    """
    max_key_bytes, max_value_bytes = config.max_key_bytes, config.max_value_bytes
    size = 0
    for op in ops:
        key_bytes = len(op.key)
        if key_bytes > max_key_bytes:
            raise TooLarge("max_key_bytes", max_key_bytes, key_bytes)
        size += key_bytes
        if isinstance(op, Put):
            value_bytes = len(op.value)
            if value_bytes > max_value_bytes:
                raise TooLarge("max_value_bytes", max_value_bytes, value_bytes)
            size += value_bytes
    if len(ops) > 1:
        if len(ops) > config.max_batch_items:
            raise TooLarge("max_batch_items", config.max_batch_items, len(ops))
        if size > config.max_batch_bytes:
            raise TooLarge("max_batch_bytes", config.max_batch_bytes, size)
    return size + OPERATION_BYTES * len(ops)
