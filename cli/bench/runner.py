"""Running a benchmark: connections that ask one thing after the other, and the tally of what came of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvnode.cli.bench.histogram import Histogram
from kvnode.cli.bench.loop import finish
from kvnode.cli.bench.target import Target
from kvnode.cli.bench.workload import Kind, Request, Requests, Workload, value_text
from kvnode.protocol.errors import KvError

_T = TypeVar("_T")

_NS = 1_000_000_000

#: How long a connection rests after an error: a node that is away is not asked thousands of times a second.
_REST_S = 0.05

#: Timers of the event loop are this exact; so a request at a fixed rate begins up to so much too early, not too late.
_TIMER_S = 0.001

#: Puts of one batch while the key space is filled, and their bytes.
_FILL_ITEMS = 500
_FILL_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A benchmark in full.

    Attributes:
        urls: of the nodes; connections are spread over them in turn.
        workload: what is asked.
        connections: of all nodes and processes together; each has one request in flight.
        seconds: how long is measured; None for no limit.
        requests: how many are measured; None for no limit.
        warmup_s: how long before that the same is done, but not measured.
        rate: requests begun a second, whatever has become of those before; None = each connection as fast as it can.
        timeout_s: of a request.
        processes: that the connections are spread over.
    """

    urls: tuple[str, ...]
    workload: Workload
    connections: int
    seconds: float | None
    requests: int | None
    warmup_s: float
    rate: float | None
    timeout_s: float
    processes: int = 1


@dataclass(slots=True)
class Tally:
    """What came of the operations of one kind.

    Attributes:
        latencies: of those that succeeded, in nanoseconds; a key that is not there is an answer like any other.
        errors: of the others, by their code.
        not_found: reads and deletes of keys that were not there.
        sent_bytes: keys and values written.
        received_bytes: values read, of ranges the lines with keys and values.
    """

    latencies: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    not_found: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    def add(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.latencies.add(other.latencies)
        self.errors.update(other.errors)
        self.not_found += other.not_found
        self.sent_bytes += other.sent_bytes
        self.received_bytes += other.received_bytes


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was measured.

    Attributes:
        tallies: by kind, of those in the mix.
        seconds: that were measured, up to the last answer.
        cpu_s: processor time that the clients took meanwhile, of all processes together.
        not_begun: requests of a fixed rate that were due, and for which no connection was free until the end.
        unanswered: requests that were measured and had no answer yet when the run was told to end; no tally has them.
    """

    tallies: dict[Kind, Tally]
    seconds: float
    cpu_s: float
    not_begun: int = 0
    unanswered: int = 0

    @classmethod
    def of_nothing(cls, workload: Workload) -> Outcome:
        """Of a run that ended before it began."""
        return cls(tallies={kind: Tally() for kind in workload.mix}, seconds=0.0, cpu_s=0.0)

    @property
    def all(self) -> Tally:
        """Of all kinds together."""
        total = Tally()
        for tally in self.tallies.values():
            total.add(tally)
        return total

    def add(self, other: Outcome) -> None:
        """Count what another process has measured at the same time."""
        for kind, tally in other.tallies.items():
            self.tallies[kind].add(tally)
        self.seconds = max(self.seconds, other.seconds)
        self.cpu_s += other.cpu_s
        self.not_begun += other.not_begun
        self.unanswered += other.unanswered


@asynccontextmanager
async def targets(plan: Plan, numbers: range) -> AsyncIterator[dict[int, Target]]:
    """The node of each of these connections, by the connection's number; those of one node share a client."""
    per_url = Counter(plan.urls[number % len(plan.urls)] for number in numbers)
    async with AsyncExitStack() as stack:
        by_url = {
            url: await stack.enter_async_context(Target(url, timeout_s=plan.timeout_s, connections=count))
            for url, count in per_url.items()
        }
        yield {number: by_url[plan.urls[number % len(plan.urls)]] for number in numbers}


class Run:
    """The part of a benchmark that one process does.

    Args:
        plan: of the whole.
        share: number of the process, from 0 on.
    """

    def __init__(self, plan: Plan, share: int = 0) -> None:
        self._plan = plan
        self._share = share
        self._numbers = range(share, plan.connections, plan.processes)
        self._tallies = {kind: Tally() for kind in plan.workload.mix}
        self._left = None if plan.requests is None else _part(plan.requests, share, plan.processes)
        self._end = asyncio.Event()
        self._turns = 0
        self._unanswered = 0
        #: moments on the clock of `perf_counter_ns`
        self._began = self._measured_from = self._deadline = 0

    async def run(self, stop: asyncio.Event) -> Outcome:
        """Do it, and return what was measured until it is done, or until `stop` is set."""
        async with targets(self._plan, self._numbers) as by_number:
            self._began = time.perf_counter_ns()
            self._measured_from = self._began + round(self._plan.warmup_s * _NS)
            self._deadline = self._measured_from + round((self._plan.seconds or 1e6) * _NS)
            text = value_text(self._plan.workload)
            working = [
                asyncio.create_task(self._work(target, Requests(self._plan.workload, text, number)))
                for number, target in by_number.items()
            ]
            measuring = asyncio.create_task(self._cpu_time_at_the_start())
            try:
                # Only when none is left, all are counted that were cancelled.
                await finish(working, stop, self._end.set)
                return self._outcome(measuring.result() if measuring.done() else None)
            finally:
                measuring.cancel()
                await asyncio.gather(measuring, return_exceptions=True)

    async def _cpu_time_at_the_start(self) -> float:
        await asyncio.sleep(self._plan.warmup_s)
        return time.process_time()

    def _outcome(self, cpu_before_s: float | None) -> Outcome:
        now = time.perf_counter_ns()
        not_begun = 0
        if self._plan.rate is not None and self._left != 0:
            end = min(now, self._deadline)
            while self._due(self._turns + not_begun, self._plan.rate) < end:
                not_begun += 1
        return Outcome(
            tallies=self._tallies,
            seconds=max(0, now - self._measured_from) / _NS,
            cpu_s=0.0 if cpu_before_s is None else time.process_time() - cpu_before_s,
            not_begun=not_begun,
            unanswered=self._unanswered,
        )

    async def _work(self, target: Target, requests: Requests) -> None:
        """One connection: one request after the other, until the end."""
        while (due := await self._turn()) is not None:
            now = time.perf_counter_ns()
            is_measured = now >= self._measured_from
            # One that was begun too early is not faster for that; one that was begun too late is slower.
            began = min(due, now)
            if is_measured and self._left is not None:
                if self._left == 0:
                    return
                self._left -= 1
            request = requests.next()
            tally = self._tallies[request.kind]
            try:
                answer = await target.perform(request, self._plan.workload)
            except KvError as error:
                if is_measured:
                    tally.errors[error.code] += 1
                await asyncio.sleep(_REST_S)
                continue
            except asyncio.CancelledError:
                self._unanswered += is_measured
                raise
            if is_measured:
                tally.latencies.record(time.perf_counter_ns() - began)
                tally.not_found += not answer.is_found
                tally.sent_bytes += answer.sent_bytes
                tally.received_bytes += answer.received_bytes

    async def _turn(self) -> int | None:
        """When the next request is to begin, once it is time; None at the end."""
        now = time.perf_counter_ns()
        if self._end.is_set() or now >= self._deadline:
            return None
        if self._plan.rate is None:
            return now
        due = self._due(self._turns, self._plan.rate)
        if due >= self._deadline:
            await asyncio.sleep((self._deadline - now) / _NS)
            return None
        self._turns += 1
        if (wait_s := (due - now) / _NS) > _TIMER_S:
            await asyncio.sleep(wait_s - _TIMER_S)
        return None if self._end.is_set() else due

    def _due(self, turn: int, rate: float) -> int:
        """The moment of the `turn`th request of this process, from 0 on; the processes take turns."""
        return self._began + round((turn * self._plan.processes + self._share) * _NS / rate)


async def fill(plan: Plan, stop: asyncio.Event) -> None:
    """Write every key once; end early once `stop` is set.

    Raises:
        KvError: the node took one of the writes not.
    """
    workload = plan.workload
    per_batch = max(1, min(_FILL_ITEMS, _FILL_BYTES // (workload.key_bytes + workload.value_bytes[1])))
    starts = iter(range(0, workload.keys, per_batch))
    text = value_text(workload)

    async def work(number: int, target: Target) -> None:
        # Values unlike those that are written later.
        requests = Requests(workload, text, -1 - number)
        for first in _until(stop, starts):
            items = tuple(requests.fill(first, min(first + per_batch, workload.keys)))
            await target.perform(Request(Kind.BATCH, items[0][0], items), workload)

    await _spread(plan, stop, work)


async def clean_up(plan: Plan, stop: asyncio.Event) -> int:
    """Delete the workload's keys, as far as they are there; return how many there were.

    Once `stop` is set it ends early, and returns how many it has deleted.
    """
    deleted = 0

    async def work(number: int, target: Target) -> None:
        nonlocal deleted
        for key in _until(stop, keys):
            answer = await target.perform(Request(Kind.DELETE, key), plan.workload)
            deleted += answer.is_found

    found: set[str] = set()

    async def look(target: Target) -> None:
        found.update(await target.keys(plan.workload))

    # A node may lag behind the others, but it has what was written through it: together they have all.
    async with targets(plan, range(min(plan.connections, len(plan.urls)))) as by_number:
        await finish([asyncio.create_task(look(target)) for target in by_number.values()], stop)
    keys = iter(sorted(found))
    await _spread(plan, stop, work)
    return deleted


def _until(stop: asyncio.Event, items: Iterator[_T]) -> Iterator[_T]:
    """The items that are asked for before `stop` is set; several may take turns at the same ones."""
    while not stop.is_set():
        try:
            yield next(items)
        except StopIteration:
            return


async def _spread(plan: Plan, stop: asyncio.Event, work: Callable[[int, Target], Coroutine[Any, Any, None]]) -> None:
    """Do a work that ends by itself on all connections at a time; the first error ends it, and `stop` does."""
    async with targets(plan, range(plan.connections)) as by_number:
        await finish([asyncio.create_task(work(number, target)) for number, target in by_number.items()], stop)


def _part(whole: int, index: int, parts: int) -> int:
    """The `index`th of about equal parts that add up to the whole."""
    return whole // parts + (index < whole % parts)
