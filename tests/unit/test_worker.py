"""The worker thread: jobs in order, answers on the loop, and an end that can be waited for."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from queue import SimpleQueue

import pytest

from kvnode.node import worker as worker_module
from kvnode.node.worker import Worker
from support.holds import Hold, turns


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("kvnode-test", asyncio.get_running_loop())
    yield worker
    worker.stop()
    assert worker.join(10)


class Bench:
    """Something whose method a test can hold."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def work(self, name: str = "") -> int:
        self.done.append(name)
        return len(self.done)


async def test_jobs_run_on_its_thread_and_answers_come_on_the_loop(worker: Worker) -> None:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[tuple[int, int]] = loop.create_future()
    worker.submit(
        threading.get_ident,
        lambda ran_on: answered.set_result((ran_on, threading.get_ident())),
        answered.set_exception,
    )
    ran_on, answered_on = await answered
    assert answered_on == threading.get_ident() != ran_on
    assert await worker.run(threading.get_ident) == ran_on
    assert await worker.run(lambda: threading.current_thread().name) == "kvnode-test"


async def test_one_of_the_two_answers_comes(worker: Worker) -> None:
    heard: list[object] = []
    ended = asyncio.Event()

    def fail() -> None:
        raise KeyError("gone")

    worker.submit(lambda: 1, lambda result: heard.append(result), lambda error: heard.append(error))
    worker.submit(fail, lambda result: heard.append(result), lambda error: heard.append(error))
    worker.submit(lambda: None, lambda _: ended.set(), lambda error: heard.append(error))
    await ended.wait()
    assert heard[0] == 1
    assert isinstance(heard[1], KeyError)
    assert len(heard) == 2


async def test_run_raises_what_the_job_raises_and_the_thread_goes_on(worker: Worker) -> None:
    def fail() -> None:
        raise OSError(5, "bad disk")

    with pytest.raises(OSError, match="bad disk"):
        await worker.run(fail)
    assert await worker.run(lambda: "fine") == "fine"


async def test_not_even_a_base_exception_ends_the_thread(worker: Worker) -> None:
    class Stop(BaseException):
        pass

    def fail() -> None:
        raise Stop

    with pytest.raises(Stop):
        await worker.run(fail)
    assert await worker.run(lambda: "fine") == "fine"


async def test_jobs_run_one_after_the_other_in_order(worker: Worker) -> None:
    bench = Bench()
    with Hold(bench, "work") as hold:
        tasks = [asyncio.ensure_future(worker.run(lambda name=name: bench.work(name))) for name in "abc"]
        await hold.reached()
        await turns()
        assert bench.done == []
        hold.release()
        assert await asyncio.gather(*tasks) == [1, 2, 3]
    assert bench.done == ["a", "b", "c"]


class BegunLock:
    """Takes the place of a worker's lock, and notes whether those who waited for it got it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.got: list[bool] = []
        self.locked, self.release = self.lock.locked, self.lock.release

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got = self.lock.acquire(blocking, timeout)
        if blocking:
            self.got.append(got)
        return got


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> BegunLock:
    """That of the workers that the test makes."""
    lock = BegunLock()
    monkeypatch.setattr(worker_module, "Lock", lambda: lock)
    return lock


async def test_the_loop_goes_on_when_what_it_handed_over_has_begun(
    lock: BegunLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker("kvnode-test", asyncio.get_running_loop())
    lock.got.clear()
    bench = Bench()
    heard: list[object] = []
    # As if the thread got no processor.
    seen, worker._jobs = worker._jobs, SimpleQueue()
    worker.hand_over(lambda: bench.work("late"), heard.append, heard.append)
    assert (bench.done, lock.got) == ([], [False])
    seen.put(worker._jobs.get())
    worker._jobs = seen
    assert await worker.run(lambda: bench.work("behind")) == 2
    assert heard == [1]
    # That one began late is not taken for the begin of the next one.
    monkeypatch.setattr(worker_module, "_BEGIN_TIMEOUT_S", 20.0)
    for number in range(3):
        worker.hand_over(lambda: bench.work("next"), heard.append, heard.append)
        await worker.run(lambda: None)
        assert lock.got == [False, *[True] * (number + 1)]
    assert heard == [1, 3, 4, 5]
    worker.stop()
    assert worker.join(10)


async def test_the_loop_does_not_wait_for_a_thread_that_has_a_job(lock: BegunLock) -> None:
    worker = Worker("kvnode-test", asyncio.get_running_loop())
    lock.got.clear()
    bench = Bench()
    heard: list[object] = []
    with Hold(bench, "work") as hold:
        kept = asyncio.ensure_future(worker.run(lambda: bench.work("kept")))
        await hold.reached()
        worker.hand_over(lambda: bench.work("next"), heard.append, heard.append)
        assert (bench.done, lock.got) == ([], [])
        hold.release()
        assert await kept == 1
    await worker.run(lambda: None)
    assert heard == [2]
    worker.stop()
    assert worker.join(10)


async def test_a_cancelled_run_leaves_the_job_alone(worker: Worker) -> None:
    bench = Bench()
    with Hold(bench, "work") as hold:
        task = asyncio.ensure_future(worker.run(bench.work))
        await hold.reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hold.release()
        assert await worker.run(lambda: "next") == "next"
    assert bench.done == [""]


async def test_a_cancelled_run_swallows_the_jobs_error(worker: Worker) -> None:
    bench = Bench()

    def fail() -> None:
        bench.work()
        raise ValueError

    with Hold(bench, "work") as hold:
        task = asyncio.ensure_future(worker.run(fail))
        await hold.reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hold.release()
        await worker.run(lambda: None)


async def test_stopping_runs_what_is_queued_first() -> None:
    worker = Worker("kvnode-test", asyncio.get_running_loop())
    bench = Bench()
    tasks = [asyncio.ensure_future(worker.run(bench.work)) for _ in range(3)]
    await asyncio.sleep(0)
    worker.stop()
    assert await asyncio.gather(*tasks) == [1, 2, 3]
    assert worker.join(10)


async def test_joining_a_stuck_thread_says_so() -> None:
    worker = Worker("kvnode-test", asyncio.get_running_loop())
    bench = Bench()
    with Hold(bench, "work") as hold:
        task = asyncio.ensure_future(worker.run(bench.work))
        await hold.reached()
        worker.stop()
        assert not worker.join(0)
        hold.release()
        assert await task == 1
    assert worker.join(10)


async def test_the_thread_does_not_keep_the_process_from_exiting(worker: Worker) -> None:
    assert await worker.run(lambda: threading.current_thread().daemon)


async def test_a_finished_job_is_not_kept_alive(worker: Worker) -> None:
    class Big:
        def work(self) -> None:
            pass

    big = Big()
    gone = weakref.ref(big)
    await worker.run(big.work)
    del big
    # A job of its own would hide what the thread holds while it waits; so look from here.
    for _ in range(1000):
        gc.collect()
        if gone() is None:
            break
        await turns()
    assert gone() is None
