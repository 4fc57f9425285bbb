"""Running the parts of a benchmark on an event loop: Ctrl-C tells a part to end, and pressed again it breaks it off."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

_T = TypeVar("_T")

#: How long requests under way may take once a part was told to end.
_LAST_ANSWERS_S = 1.0


def run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a part on a loop of its own.

    It takes the function and makes the coroutine itself, to close one that Ctrl-C kept from beginning: Python complains
    about a coroutine that was never awaited.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    coroutine = work()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(coroutine)
    finally:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


def run_until_told(work: Callable[[asyncio.Event], Coroutine[Any, Any, _T]]) -> tuple[_T, bool]:
    """Run a part that ends early once its event is set, which Ctrl-C does.

    Returns:
        (what the part returned, whether Ctrl-C was pressed)

    Raises:
        KeyboardInterrupt: it was pressed twice, or before the part began.
    """

    async def told() -> tuple[_T, bool]:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def interrupt() -> None:
            stop.set()
            # Whoever presses it again does not want to wait for what this part has to finish.
            loop.remove_signal_handler(signal.SIGINT)

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            result = await work(stop)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        return result, stop.is_set()

    return run(told)


async def finish(
    working: Sequence[asyncio.Task[None]], stop: asyncio.Event, ended: Callable[[], object] = lambda: None
) -> None:
    """Wait until all tasks are done; none is left when this returns or raises, and the first error ends it.

    Once `stop` is set they have a moment for the last answers, and are cancelled then.

    Args:
        ended: called when `stop` is set, to let the tasks begin nothing more.
    """
    all_done = asyncio.create_task(asyncio.wait(working, return_when=asyncio.FIRST_EXCEPTION))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((all_done, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not all_done.done():
            ended()
            await asyncio.wait((all_done,), timeout=_LAST_ANSWERS_S)
        for task in working:
            if task.done():
                task.result()
    finally:
        for each in (all_done, stopping, *working):
            each.cancel()
        await asyncio.gather(all_done, stopping, *working, return_exceptions=True)
