"""A server beside a test that is not asynchronous: on a loop and a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

_T = TypeVar("_T")

_TIMEOUT_S = 10


@contextmanager
def in_background(server: AbstractAsyncContextManager[_T]) -> Iterator[_T]:
    """Keep a server entered while the block lasts."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    done = asyncio.Event()
    entered: list[_T] = []

    async def serve() -> None:
        async with server as running:
            entered.append(running)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(_TIMEOUT_S), "the server did not start"
        yield entered[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(_TIMEOUT_S)
        loop.close()
