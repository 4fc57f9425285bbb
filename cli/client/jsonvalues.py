"""JSON values as Python objects, and as text that is to stay as it is."""

from __future__ import annotations

import json
from typing import Any, Self, TypeAlias

import msgspec

from kvnode.cli.jsontext import check_json

#: What stands for a JSON value in Python. A tuple is written as an array, and read back as a list.
JsonValue: TypeAlias = str | int | float | bool | list[Any] | tuple[Any, ...] | dict[str, Any] | None

_encode_text = msgspec.json.Encoder().encode


class JsonText(bytes):
    """One JSON value as UTF-8 text, stored byte for byte as it stands here.

    Python's objects cannot carry all of JSON: ``1.0`` and ``1.00``, ``1e400``, repeated members of an object. Text can.

    Args:
        text: blanks around the value are dropped.

    Raises:
        ValueError: it is not one JSON value; the message says why.
    """

    __slots__ = ()

    def __new__(cls, text: bytes | str) -> Self:
        return super().__new__(cls, check_json(text.encode() if isinstance(text, str) else text))

    @classmethod
    def trusted(cls, text: bytes) -> Self:
        """`text`, which is known to be one JSON value without blanks around it: a node sent it, or it was checked."""
        return super().__new__(cls, text)

    def decode_value(self) -> Any:
        """The Python object for this text, as `json.loads` makes it.

        Raises:
            ValueError: Python cannot read it, for example a number of more than 4,300 digits.
        """
        return json.loads(self)


def encode_value(value: JsonValue | JsonText) -> bytes:
    """The JSON text of a value: a `JsonText` as it is, anything else without blanks.

    Raises:
        TypeError: there is no JSON for it.
        ValueError: likewise: NaN, an infinity, or a list or dict that holds itself.
    """
    if isinstance(value, JsonText):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(
            "bytes are no JSON value: decode them to a string, or say that they are JSON text: JsonText(...)"
        )
    try:
        # Faster by far, for the most common kind.
        if type(value) is str:
            return _encode_text(value)
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # A lone surrogate has no UTF-8 form; an escape can stand for it.
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
