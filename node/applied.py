"""The applied seq: how far this node's published state has come, and who waits for it to come further."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

from kvnode.protocol.types import Seq

_SWEEP_FROM = 64


class AppliedSeq:
    """A seq that only rises within a history, and a queue of those who wait for one. Used on the event loop only.

    Attributes:
        seq: the last published entry's.
    """

    def __init__(self, seq: Seq, loop: asyncio.AbstractEventLoop) -> None:
        self.seq = seq
        self._loop = loop
        self._waiters: list[tuple[Seq, int, asyncio.Future[None]]] = []
        self._order = count()
        self._sweep_at = _SWEEP_FROM

    def advance(self, seq: Seq) -> None:
        """Publish `seq`, which is not below the one before, and wake those who waited for it."""
        self.seq = seq
        waiters = self._waiters
        while waiters and waiters[0][0] <= seq:
            future = heapq.heappop(waiters)[2]
            if not future.done():
                future.set_result(None)

    def reached(self, seq: Seq) -> asyncio.Future[None]:
        """A future that resolves once `seq` is published; one that is done if it is already."""
        future: asyncio.Future[None] = self._loop.create_future()
        if seq <= self.seq:
            future.set_result(None)
        else:
            if len(self._waiters) >= self._sweep_at:
                self._sweep()
            heapq.heappush(self._waiters, (seq, next(self._order), future))
        return future

    def end_waits(self, error: Exception) -> None:
        """Fail all that wait, because their seq may never come."""
        waiters, self._waiters = self._waiters, []
        for _, _, future in waiters:
            if not future.done():
                future.set_exception(error)

    def restart(self, seq: Seq, error: Exception) -> None:
        """Go on from `seq` in another history, in which what is waited for may never come."""
        self.end_waits(error)
        self.seq = seq

    def _sweep(self) -> None:
        """Drop those who gave up, so that waits for a seq that never comes do not pile up."""
        self._waiters = [waiter for waiter in self._waiters if not waiter[2].done()]
        heapq.heapify(self._waiters)
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._waiters))
