"""A thread that does blocking work for the event loop, one job after the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Worker:
    """One thread with a queue of jobs. Everything but the jobs themselves runs on the event loop.

    A hop there and back costs a queue operation and a wake-up of the loop, less than an executor's future.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        # A daemon: a thread that is stuck in the disk must not keep a node from exiting.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        """Run `job` on the thread, then one of the two others on the loop: with what it returned, or raised."""
        self._jobs.put(_Job(job, done, failed))

    async def run(self, job: Callable[[], T]) -> T:
        """Run `job` on the thread and return or raise what it does. Cancelling does not stop the job."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T) -> None:
            if not future.done():
                future.set_result(result)

        def failed(error: BaseException) -> None:
            if not future.done():
                future.set_exception(error)

        self.submit(job, done, failed)
        return await future

    def stop(self) -> None:
        """Let the thread end after the jobs that are queued."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end, blocking. Returns whether it ended in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run(self._loop)
            # Not to be kept alive, with all that it holds, until the next one comes.
            del job


class _Job(Generic[T]):
    """A job and who hears of its end."""

    __slots__ = ("_done", "_failed", "_job")

    def __init__(
        self, job: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._job = job
        self._done = done
        self._failed = failed

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            result = self._job()
        except BaseException as error:
            loop.call_soon_threadsafe(self._failed, error)
        else:
            loop.call_soon_threadsafe(self._done, result)
