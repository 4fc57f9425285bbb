"""A count of the calls inside something that must not be closed under them."""

from __future__ import annotations

import threading

from kvnode.node.errors import EngineClosed


class Gate:
    """Lets calls in until it is shut, and tells when the last one has left. Used as a context manager by any thread.

    Invariant: once `shut` has returned True, no call is inside and none will be.
    """

    __slots__ = ("_idle", "_inside", "_lock", "_shut", "_what")

    def __init__(self, what: str) -> None:
        """Make an open gate; `what` names what is behind it, for errors."""
        self._what = what
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        with self._lock:
            if self._shut:
                raise EngineClosed(f"{self._what} is closed")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._shut and not self._inside:
                self._idle.notify_all()

    def shut(self, timeout_s: float) -> bool:
        """Let nobody in from now on, and wait for those inside.

        Returns:
            Whether all left within `timeout_s`; if not, the gate stays shut and this may be called again.
        """
        with self._lock:
            self._shut = True
            return self._idle.wait_for(lambda: not self._inside, timeout_s)
