"""Holding a thread inside a call until the test lets it go on, in place of sleeping and hoping."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Any, Self

#: Past this something is wrong; nothing here waits for time to pass.
_PATIENCE_S = 20.0


class Hold:
    """A worker thread that comes to the next call of a method stays there until `release`.

        with Hold(engine, "read") as hold:
            task = asyncio.ensure_future(store.read(key))
            await hold.reached()
            ...             # the thread is about to read
            hold.release()
            await task

    Calls after the first one go through. Leaving the block releases. Used on the event loop of the test.
    """

    def __init__(self, target: object, method: str, *, after: bool = False) -> None:
        """Hold the next call of `target.method`.

        Args:
            after: hold it when the call is done and before it returns, or else before it begins.
        """
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._is_first = True
        self._target = target
        self._method = method
        self._before = vars(target).get(method)
        original = getattr(target, method)

        def held(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                is_held, self._is_first = self._is_first, False
            if not is_held:
                return original(*args, **kwargs)
            if not after:
                self._stay()
            result = original(*args, **kwargs)
            if after:
                self._stay()
            return result

        # In the instance, in front of the class's method.
        setattr(target, method, held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
        if self._before is None:
            delattr(self._target, self._method)
        else:
            setattr(self._target, self._method, self._before)

    async def reached(self) -> None:
        """Return once a thread stays here."""
        await asyncio.wait_for(self._arrived.wait(), _PATIENCE_S)

    @property
    def is_reached(self) -> bool:
        """Whether a thread came here, and the loop has heard of it."""
        return self._arrived.is_set()

    def release(self) -> None:
        """Let the thread go on, or through if it did not come yet."""
        self._open.set()

    def _stay(self) -> None:
        self._loop.call_soon_threadsafe(self._arrived.set)
        assert self._open.wait(_PATIENCE_S), f"nobody released the hold on {self._method}"


async def turns(count: int = 5) -> None:
    """Let the event loop turn: all that can run without a thread's help has then run."""
    for _ in range(count):
        await asyncio.sleep(0)
