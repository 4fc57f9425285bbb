"""Writes that wait for acks of replicas: `AckWaits` with futures and a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

from kvnode.node.api import WriteResult
from kvnode.node.errors import OutcomeUnknown, ReplicationTimeout
from kvnode.node.replication.alarm import Alarm
from kvnode.protocol.quorum import AckWaits, Ended, Outcome
from kvnode.protocol.types import Seq


class AckGate:
    """The waits of one reign. Used on the event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waits = AckWaits()
        self._futures: dict[Hashable, tuple[asyncio.Future[WriteResult], WriteResult]] = {}
        self._keys = 0
        self._alarm = Alarm(loop, self._expire)

    @property
    def waiting(self) -> bool:
        """Whether any write waits."""
        return bool(self._futures)

    def hold(self, future: asyncio.Future[WriteResult], result: WriteResult, wanted: int, timeout_s: float) -> None:
        """Answer a write once `wanted` replicas hold it, or when its time is up.

        It is durable here, and was not streamed yet.
        """
        self._keys += 1
        self._futures[self._keys] = (future, result)
        self._end(self._waits.register(self._keys, result.position.seq, wanted, self._loop.time() + timeout_s))
        self._set_alarm()

    def progressed(self, node_id: bytes, durable_seq: Seq) -> None:
        """A replica holds everything up to this seq."""
        self._end(self._waits.progressed(node_id, durable_seq))

    def forget(self, node_id: bytes) -> None:
        """A node is no member any more."""
        self._waits.forget(node_id)

    def abandon(self) -> None:
        """The reign ends: nobody knows what becomes of the writes that wait."""
        self._end(self._waits.abandon())
        self._alarm.cancel()

    def _end(self, ended: list[Ended]) -> None:
        for each in ended:
            future, result = self._futures.pop(each.key)
            if future.done():
                continue
            if each.outcome is Outcome.ACKED:
                future.set_result(result)
                continue
            future.set_exception(_error(each, result))
            # Its client may have left: an answer that nobody fetches is no event.
            future.exception()

    def _set_alarm(self) -> None:
        wake_at = self._waits.wake_at
        if wake_at is not None:
            self._alarm.set(wake_at)

    def _expire(self) -> None:
        self._end(self._waits.expire(self._loop.time()))
        self._set_alarm()


def _error(ended: Ended, result: WriteResult) -> ReplicationTimeout | OutcomeUnknown:
    fields: dict[str, Any] = {"seq": ended.seq, "epoch": str(result.position.epoch)}
    if ended.outcome is Outcome.TIMED_OUT:
        held = len(ended.held_by)
        return ReplicationTimeout(
            f"the write is durable on the primary, but {held} of {ended.wanted} replicas hold it so far",
            acks=held,
            asked=ended.wanted,
            **fields,
        )
    return OutcomeUnknown(
        "the write is durable on this node, but it ended as the primary before it heard from enough replicas",
        **fields,
    )
