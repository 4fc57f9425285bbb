"""A timer that can be set again and again, for machines that say when they want to be woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls back at the time it was set to, or earlier: who is called back looks whether it is time, and sets it anew.

    So setting it later, which happens with every frame, costs nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring_back = ring
        self._timer: asyncio.Handle | None = None
        self._at = 0.0

    def set(self, at: float) -> None:
        """Ring at `at`, on the loop's clock, at the latest."""
        if self._timer is not None:
            if self._at <= at:
                return
            self._timer.cancel()
        self._at = at
        self._timer = None if at == float("inf") else self._loop.call_at(at, self._ring)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._ring_back()
