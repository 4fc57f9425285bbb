"""A thread that does blocking work for the event loop, one job after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: The longest that the event loop waits for a thread to begin; only one that gets no processor takes it.
_BEGIN_TIMEOUT_S = 0.001


class Worker:
    """One thread with a queue of jobs. Everything but the jobs themselves runs on the event loop.

    A hop there and back costs a queue operation and a wake-up of the loop, less than an executor's future.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        #: Whether the thread has a job.
        self._is_busy = False
        #: Released when the thread begins with a job.
        self._begun = Lock()
        self._begun.acquire()
        # A daemon: a thread that is stuck in the disk must not keep a node from exiting.
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        """Run `job` on the thread, then one of the two others on the loop: with what it returned, or raised."""
        self._jobs.put(_Job(job, done, failed))

    def hand_over(
        self, job: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        """As `submit`, but let an idle thread go first: return when it has begun, which mostly is when it first waits.

        The interpreter's lock otherwise comes to the thread only when the loop has nothing left to do, and what the
        thread does it for, most of all the disk, stands idle until then. Measured with 64 connections that put: from
        this call to the thread's begin 45 us instead of 430, and groups of the same size in four fifths of the time.
        With 64 that read from LevelDB: a third more reads a second.
        """
        if self._is_busy or not self._jobs.empty():
            # It may be waiting for the disk, which the loop must not.
            self.submit(job, done, failed)
            return
        # A thread that came too late may have left it released.
        self._begun.acquire(blocking=False)
        self.submit(job, done, failed)
        self._begun.acquire(timeout=_BEGIN_TIMEOUT_S)

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
        begun = self._begun
        while (job := self._jobs.get()) is not None:
            self._is_busy = True
            if begun.locked():
                begun.release()
            tell, outcome = job.run()
            self._is_busy = False
            self._loop.call_soon_threadsafe(tell, outcome)
            # Not to be kept alive, with all that they hold, until the next one comes.
            del job, tell, outcome


class _Job(Generic[T]):
    """A job and who hears of its end."""

    __slots__ = ("_done", "_failed", "_job")

    def __init__(
        self, job: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._job = job
        self._done = done
        self._failed = failed

    def run(self) -> tuple[Callable[[Any], None], Any]:
        """Do it; who is to be told on the loop, and what."""
        try:
            return self._done, self._job()
        except BaseException as error:
            return self._failed, error
