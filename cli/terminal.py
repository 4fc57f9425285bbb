"""A terminal that a command takes over for a while: told of its new size, and given back whatever ends the command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: What ends a process without a word, unless it is asked for: a terminal that is closed, and `kill`.
_ENDING = (signal.SIGHUP, signal.SIGTERM)


@contextmanager
def restored_at_end(resized: Callable[[], None]) -> Iterator[None]:
    """Run the block, which awaits something and cleans up after itself, so that it can do so when a signal ends it.

    Args:
        resized: called when the terminal has another size.

    Raises:
        SystemExit: with 128 + the number of the signal.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    ended_by: signal.Signals | None = None

    def end(number: signal.Signals) -> None:
        nonlocal ended_by
        ended_by = number
        task.cancel()

    for number in _ENDING:
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        yield
    except asyncio.CancelledError:
        if ended_by is None:
            raise
        raise SystemExit(128 + ended_by) from None
    finally:
        for number in (*_ENDING, signal.SIGWINCH):
            loop.remove_signal_handler(number)
