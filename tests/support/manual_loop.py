"""An event loop whose clock only the test moves: for what happens at a time, without waiting for it."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any


class ManualHandle:
    """A callback that will be called, unless it is cancelled."""

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def run(self) -> None:
        if not self.cancelled:
            self._callback(*self._args)


class ManualLoop:
    """Stands in front of the running loop, to which everything goes but time and `call_soon`.

    So connections, threads and tasks are real, and whatever reads this clock waits for `advance`.

    Attributes:
        now: what `time` says, in seconds.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self._real = asyncio.get_running_loop()
        self._timers: list[tuple[float, int, ManualHandle]] = []
        self._ready: deque[ManualHandle] = deque()
        self._order = count()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *args: Any) -> ManualHandle:
        handle = ManualHandle(callback, args)
        self._ready.append(handle)
        self._real.call_soon(self.run_ready)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> ManualHandle:
        handle = ManualHandle(callback, args)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> ManualHandle:
        return self.call_at(self.now + delay, callback, *args)

    @property
    def timers(self) -> list[float]:
        """When the timers that are set are due, the earliest first."""
        return sorted(when for when, _, handle in self._timers if not handle.cancelled)

    def run_ready(self) -> None:
        """Run what `call_soon` was given; the loop does so in its next turn."""
        while self._ready:
            self._ready.popleft().run()

    def advance(self, seconds: float) -> None:
        """Let time pass: each timer that becomes due is run at its time."""
        end = self.now + seconds
        self.run_ready()
        while self._timers and self._timers[0][0] <= end:
            when, _, handle = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            handle.run()
            self.run_ready()
        self.now = end
