"""A run of a benchmark against a stub: what is counted, what is not, and when it ends."""

import asyncio
import gc
import socket
import time
from contextlib import closing
from typing import Any

import pytest

from kvnode.cli.bench.runner import Plan, Run, clean_up, fill
from kvnode.cli.bench.target import Performed, Target
from kvnode.cli.bench.workload import Distribution, Kind, Request, Workload
from kvnode.cli.errors import ServerError, Unreachable
from support.peers import until
from support.stub_server import Answer, StubServer


def plan_of(*urls: str, **changes: Any) -> Plan:
    workload: dict[str, Any] = {
        "mix": {Kind.PUT: 1.0},
        "keys": 50,
        "prefix": "bench/",
        "key_bytes": 16,
        "value_bytes": (10, 10),
        "distribution": Distribution.UNIFORM,
        "batch_items": 3,
        "range_items": 5,
        "seed": 1,
    }
    plan: dict[str, Any] = {
        "urls": urls,
        "connections": 4,
        "seconds": None,
        "requests": 100,
        "warmup_s": 0.0,
        "rate": None,
        "timeout_s": 10.0,
    }
    for name, value in changes.items():
        (workload if name in workload else plan)[name] = value
    return Plan(workload=Workload(**workload), **plan)


async def run(plan: Plan) -> Any:
    return await Run(plan).run(asyncio.Event())


async def test_so_many_requests_as_wanted_are_made_and_counted() -> None:
    async with StubServer() as stub:
        outcome = await run(plan_of(stub.url, mix=dict.fromkeys(Kind, 1.0)))
        assert len(stub.requests) == 100
        assert stub.most_in_flight <= 4
    assert outcome.all.latencies.count == 100
    assert set(outcome.tallies) == set(Kind)
    assert outcome.tallies[Kind.PUT].sent_bytes == outcome.tallies[Kind.PUT].latencies.count * (16 + 12)
    assert outcome.tallies[Kind.BATCH].sent_bytes == outcome.tallies[Kind.BATCH].latencies.count * 3 * (16 + 12)
    assert outcome.all.errors == {}
    assert outcome.seconds > 0
    assert 0 < outcome.all.latencies.max < outcome.seconds * 1e9


async def test_reads_count_what_they_read_and_a_missing_key_is_no_error() -> None:
    async with StubServer() as stub:
        plan = plan_of(stub.url, mix={Kind.GET: 1.0, Kind.RANGE: 1.0})
        empty = await run(plan)
        assert empty.tallies[Kind.GET].not_found == empty.tallies[Kind.GET].latencies.count > 0
        assert empty.all.received_bytes == 0
        await fill(plan, asyncio.Event())
        assert sorted(stub.records) == [plan.workload.key(number) for number in range(50)]
        full = await run(plan)
    assert full.all.not_found == 0
    assert full.tallies[Kind.GET].received_bytes == full.tallies[Kind.GET].latencies.count * 12
    assert full.tallies[Kind.RANGE].received_bytes > full.tallies[Kind.RANGE].latencies.count * 12


async def test_a_failure_is_counted_by_its_code_and_not_among_the_latencies() -> None:
    async with StubServer() as stub:
        stub.faults["/put"].extend([Answer(507, "storage_full")] * 3 + [Answer(500, "internal")])
        outcome = await run(plan_of(stub.url, requests=20))
    assert outcome.all.errors == {"storage_full": 3, "internal": 1}
    assert outcome.all.latencies.count == 16


async def test_connections_are_spread_over_the_nodes_and_the_shares_over_processes() -> None:
    async with StubServer() as first, StubServer() as second:
        plan = plan_of(first.url, second.url, requests=41, processes=2)
        outcomes = [await Run(plan, share).run(asyncio.Event()) for share in range(2)]
        assert [each.all.latencies.count for each in outcomes] == [21, 20]
        # Two connections a process: the first has the even ones, which are the first node's.
        assert (len(first.requests), len(second.requests)) == (21, 20)
        outcomes[0].add(outcomes[1])
        assert outcomes[0].all.latencies.count == 41


class Slow(Target):
    """Answers after a while, the first time after a longer one; remembers when it was asked."""

    first_s = 0.0
    asked: list[float]

    async def perform(self, request: Request, workload: Workload) -> Performed:
        self.asked.append(time.perf_counter())
        if len(self.asked) == 1:
            await asyncio.sleep(self.first_s)
        return Performed()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    Slow.asked = []
    monkeypatch.setattr("kvnode.cli.bench.runner.Target", Slow)
    return Slow


async def test_at_a_rate_a_stall_shows_in_all_that_it_delayed(slow: type[Slow]) -> None:
    slow.first_s = 0.3
    outcome = await run(plan_of("http://127.0.0.1:1", connections=1, rate=1000.0, requests=200))
    # What was due in the stall waited for it: the median of 200 is about 0.2 s. Asked one after the other, it is none.
    assert outcome.all.latencies.percentile(50) > 100_000_000
    closed = await run(plan_of("http://127.0.0.1:1", connections=1, requests=200))
    assert closed.all.latencies.percentile(50) < 100_000_000


async def test_a_rate_is_kept_and_what_could_not_begin_is_told(slow: type[Slow]) -> None:
    outcome = await run(plan_of("http://127.0.0.1:1", rate=200.0, seconds=0.3, requests=None))
    # What a busy machine did not begin in time is not lost without a word.
    assert outcome.all.latencies.count + outcome.not_begun == 60
    assert outcome.all.latencies.count > 1
    assert outcome.seconds >= 0.3
    slow.asked = []
    slow.first_s = 0.4
    stalled = await run(plan_of("http://127.0.0.1:1", connections=1, rate=200.0, seconds=0.3, requests=None))
    assert stalled.all.latencies.count == 1
    assert stalled.not_begun == 59


def test_processes_take_turns_at_a_rate() -> None:
    runs = [Run(plan_of("http://127.0.0.1:1", rate=100.0, processes=3), share) for share in range(3)]
    due = [run._due(turn, 100.0) for turn in range(4) for run in runs]
    assert due == [10_000_000 * number for number in range(12)]


async def test_a_warm_up_is_not_measured(slow: type[Slow]) -> None:
    outcome = await run(plan_of("http://127.0.0.1:1", rate=200.0, warmup_s=0.25, seconds=0.25, requests=None))
    assert 0 < outcome.all.latencies.count < len(slow.asked) <= 100
    assert 0.25 <= outcome.seconds < time.perf_counter() - slow.asked[0]


async def test_it_ends_early_when_told_to_with_what_it_has() -> None:
    async with StubServer() as stub:
        stop = asyncio.Event()
        running = asyncio.create_task(Run(plan_of(stub.url, seconds=1000.0, requests=None)).run(stop))
        await until(lambda: len(stub.requests) >= 10)
        stop.set()
        outcome = await running
        count = len(stub.requests)
    assert count - 4 <= outcome.all.latencies.count <= count


async def test_cleaning_up_deletes_its_own_keys_and_no_other() -> None:
    async with StubServer() as stub:
        plan = plan_of(stub.url)
        others = ("bench/", "bench/x", "bench/0000000050", "bench/00000000001", "a", "c")
        stub.records.update(dict.fromkeys(others, (1, "1")))
        await fill(plan, asyncio.Event())
        assert len(stub.records) == 50 + len(others)
        assert await clean_up(plan, asyncio.Event()) == 50
        assert set(stub.records) == set(others)
        assert await clean_up(plan, asyncio.Event()) == 0


async def test_keys_that_only_one_of_the_nodes_has_yet_are_deleted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with StubServer() as ahead, StubServer() as behind:

        class Lagging(Target):
            async def keys(self, workload: Workload) -> list[str]:
                return [] if self._client.url == behind.url else await super().keys(workload)

        monkeypatch.setattr("kvnode.cli.bench.runner.Target", Lagging)
        # What is deleted through either is gone from both.
        behind.records = ahead.records
        plan = plan_of(behind.url, ahead.url)
        await fill(plan, asyncio.Event())
        assert await clean_up(plan, asyncio.Event()) == 50
        assert ahead.records == {}


async def test_what_is_told_to_end_sends_nothing_more() -> None:
    async with StubServer() as stub:
        plan = plan_of(stub.url)
        await fill(plan, asyncio.Event())
        stub.requests.clear()
        stop = asyncio.Event()
        stop.set()
        await fill(plan, stop)
        assert await clean_up(plan, stop) == 0
        assert not stub.bodies("/batchput")
        assert not stub.bodies("/delete")


async def test_requests_that_hang_at_the_end_are_counted_and_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(Target):
        async def perform(self, request: Request, workload: Workload) -> Performed:
            asked.append(request)
            await asyncio.Event().wait()
            raise AssertionError

    asked: list[Request] = []
    monkeypatch.setattr("kvnode.cli.bench.runner.Target", Mute)
    monkeypatch.setattr("kvnode.cli.bench.loop._LAST_ANSWERS_S", 0.01)
    for warmup_s, unanswered in ((0.0, 4), (1000.0, 0)):
        stop = asyncio.Event()
        plan = plan_of("http://127.0.0.1:1", warmup_s=warmup_s)
        running = asyncio.create_task(Run(plan).run(stop))
        await until(lambda: len(asked) == 4)
        stop.set()
        outcome = await running
        assert (outcome.unanswered, outcome.all.latencies.count, outcome.all.errors) == (unanswered, 0, {})
        asked.clear()
    gc.collect()
    assert caplog.records == []


async def test_a_key_space_that_cannot_be_filled_is_an_error() -> None:
    async with StubServer() as stub:
        stub.faults["/batchput"].extend([Answer(507, "storage_full")] * 9)
        with pytest.raises(ServerError, match="storage_full"):
            await fill(plan_of(stub.url), asyncio.Event())
    # Bound, so that nobody else gets the port meanwhile, and not listening.
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable):
            await fill(plan_of(f"http://127.0.0.1:{nobody.getsockname()[1]}"), asyncio.Event())
