"""The seam to time: the two clocks the node reads, which tests replace."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall and monotonic time."""

    def now_ms(self) -> int:
        """The UTC wall clock in milliseconds since 1970; it may jump."""

    def monotonic_s(self) -> float:
        """Seconds that never go back, from an arbitrary start."""


class RealClock:
    """The operating system's clocks."""

    #: The function itself: requests are timed with it, and a method around it would take as long again.
    monotonic_s = staticmethod(time.monotonic)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000
