"""The benchmark command: kvnode beside its peers and its limits, in one run on one machine. See `tests/bench/run`.

Every part is bounded in time, and no part begins once the run has taken longer than its limit.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import bulk, growth, machine, native, overload, replication, report, serving, starting
from bench.harness import Comparison, kvnode, noop_server
from bench.peers.servers import Peer, running_peers
from bench.results import OURS, Facts, Measure, Results, Series
from bench.serving import Pace
from bench.targets import judge

ROOT = Path(__file__).parents[2]
SUMMARY = Path(__file__).parent / "RESULTS.md"

MiB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """How large a run is.

    Attributes:
        pace: of the loads over HTTP.
        cold_keys: keys of the cold reads, which are also the largest data of a clean start.
        range_items: items of the range that is streamed.
        batches: of 1,000 items, in one round.
        segment_bytes: of the log that is replayed.
        log_entries: that a replica catches up with, at least.
        replica_rounds: rounds of the measures of replicas and of the native path.
        overload: pace of the load beyond capacity, which has many points.
        growth_sizes: keys at which a growing node is measured.
        limit_s: after this long no further part begins; growing takes what it takes.
    """

    name: str
    pace: Pace
    cold_keys: int
    range_items: int
    batches: int
    segment_bytes: int
    log_entries: int
    replica_rounds: int
    overload: Pace
    growth_sizes: tuple[int, ...]
    limit_s: float


QUICK = Plan(
    "quick",
    Pace(rounds=3, seconds=2.0),
    cold_keys=500_000,
    range_items=300_000,
    batches=100,
    segment_bytes=16 * MiB,
    log_entries=50_000,
    replica_rounds=1,
    overload=Pace(rounds=1, seconds=1.0),
    growth_sizes=growth.SIZES[:3],
    limit_s=480,
)
DEFAULT = Plan(
    "default",
    Pace(rounds=5, seconds=4.0),
    cold_keys=10_000_000,
    range_items=1_000_000,
    batches=300,
    segment_bytes=64 * MiB,
    log_entries=200_000,
    replica_rounds=3,
    overload=Pace(rounds=2, seconds=3.0),
    growth_sizes=growth.SIZES,
    limit_s=1800,
)


class Run:
    """One run: the servers that its parts share, and what they found. `PARTS` names the parts."""

    def __init__(self, plan: Plan, folder: Path, results: Results, stack: ExitStack) -> None:
        """Measure with data in `folder`; what `stack` holds is ended with the run."""
        self.plan = plan
        self.results = results
        self._folder = folder
        self._stack = stack
        self._began_s = time.monotonic()

    def measure(self, name: str) -> None:
        """Run one part; what fails is said in the results and hurts no other part."""
        if name != "growth" and time.monotonic() - self._began_s > self.plan.limit_s:
            self.results.missing[name] = f"not begun: the run had taken longer than {self.plan.limit_s:g} s"
            return
        self.say(name)
        try:
            PARTS[name](self)
        except Exception as error:
            self.results.missing[name] = f"failed: {type(error).__name__}: {error}"
            self.say(self.results.missing[name])

    def say(self, text: str) -> None:
        """Tell who waits for it."""
        print(f"[{time.monotonic() - self._began_s:5.0f} s] {text}", file=sys.stderr, flush=True)

    # Servers that several parts use, started when the first one does.

    @functools.cached_property
    def _node_url(self) -> str:
        return self._stack.enter_context(kvnode(self._folder / "node")).url

    @functools.cached_property
    def _noop_url(self) -> str:
        return self._stack.enter_context(noop_server())

    @functools.cached_property
    def _peers(self) -> list[Peer]:
        peers, missing = self._stack.enter_context(running_peers(self._folder))
        self.results.missing |= missing
        self.results.machine |= {peer.name: peer.version for peer in peers}
        return peers

    # The parts.

    def measure_disk(self) -> None:
        self.results.add(serving.disk_limits(self._folder / "disk", 1.0))

    def measure_puts(self) -> None:
        self.results.add(serving.durable_puts(self._node_url, self._noop_url, self._peers, self.plan.pace))

    def measure_gets(self) -> None:
        self.results.add(serving.hot_gets(self._node_url, self._noop_url, self._peers, self.plan.pace))

    def measure_cold_gets(self) -> None:
        for found in serving.cold_gets(self._folder / "cold", self._noop_url, self.plan.cold_keys, self.plan.pace):
            self.results.add(found)

    def measure_batches(self) -> None:
        self.results.add(bulk.batch_puts(self._folder, self.plan.batches, self.plan.pace.rounds))

    def measure_ranges(self) -> None:
        for found in bulk.range_reads(self._folder, self.plan.range_items, self.plan.pace.rounds):
            self.results.add(found)

    def measure_starts(self) -> None:
        plan = self.plan
        self.results.add(starting.replays(self._folder, plan.segment_bytes, min(plan.pace.rounds, 3)))
        data = {"no data": self._folder / "empty"}
        for what, name in ((plan.range_items, "range"), (plan.cold_keys, "cold")):
            if (self._folder / name).exists():
                data[f"{what:,} keys"] = self._folder / name
        self.results.add(starting.clean_starts(data, min(plan.pace.rounds, 3)))

    def measure_replicas(self) -> None:
        folder, rounds, seconds = self._folder / "replicas", self.plan.replica_rounds, self.plan.pace.seconds
        folder.mkdir()
        with kvnode(folder / "solo", "--name", "solo") as solo:
            with (
                kvnode(folder / "web1", "--name", "web1") as web1,
                replication.replica(web1, folder / "web2", "--name", "web2") as web2,
                replication.replica(web1, folder / "web3", "--name", "web3") as web3,
            ):
                found = replication.puts_with_replicas(web1, solo, rounds, seconds)
                self._compare("replicated-put", found, "requests/s", "without replicas")
                entries, times_ms = replication.lags(web1, [web2, web3], seconds * rounds)
            for what, unit, samples in (("entries", "entries", entries), ("time", "ms", times_ms)):
                quantiles = statistics.quantiles(samples, n=100)
                title = f"lag of two replicas under full load, {what}"
                figures = {"median": [quantiles[49]], "p99": [quantiles[98]]}
                self.results.add(Facts(f"lag-{what}", title, unit, figures))
            found = replication.forwarded_puts(folder, rounds, seconds)
            self._compare("forwarded-put", found, "requests/s", "on the primary")
            found = replication.catch_ups(folder, solo, rounds, seconds, self.plan.log_entries)
            self._compare("catch-up", found, "entries/s", "puts of a node alone")
        beside_files, beside_leveldb = replication.full_syncs(folder, rounds)
        self._compare("full-sync", beside_files, "MB/s", "cp -r + socket")
        self._compare("full-sync-leveldb", beside_leveldb, "MB/s", "plyvel alone, one process")
        shutil.rmtree(folder)

    def measure_overload(self) -> None:
        for kind in ("put", "get"):
            data = self._folder / f"overload-{kind}"
            self.results.add(overload.curve(data, kind, self._noop_url, self.plan.overload))
        data, levels = self._folder / "overload-refused", overload.REFUSING_LEVELS
        self.results.add(overload.curve(data, "put", self._noop_url, self.plan.overload, levels, serving.CONNECTIONS))
        connections = 10 * serving.CONNECTIONS
        self.results.add(overload.lost_when_killed(self._folder / "overload-killed", connections, 2.0))

    def measure_native(self) -> None:
        with kvnode(self._folder / "native") as node:
            native.write_all(node)
            for measure in (native.measure_puts, native.measure_gets):
                found = measure(node, self.plan.replica_rounds, self.plan.pace.seconds)
                found.ours, found.title = native.FRAMES, f"native path, {found.title}"
                self.results.add(found)

    def measure_growth(self) -> None:
        pace = replace(self.plan.pace, rounds=3)
        self.results.add(growth.growth(self._folder / "growth", self.plan.growth_sizes, pace, self.say))

    def _compare(self, name: str, found: Comparison, unit: str, theirs: str) -> None:
        """Keep what one of the other benchmarks found."""
        sides = {OURS: Series(found.ours), theirs: Series(found.theirs)}
        self.results.add(Measure(name, found.name, unit, sides))


#: The parts of a run, in their order.
PARTS: dict[str, Callable[[Run], None]] = {
    "disk": Run.measure_disk,
    "put": Run.measure_puts,
    "get": Run.measure_gets,
    "cold": Run.measure_cold_gets,
    "batch": Run.measure_batches,
    "range": Run.measure_ranges,
    "start": Run.measure_starts,
    "replicas": Run.measure_replicas,
    "overload": Run.measure_overload,
    "native": Run.measure_native,
    "growth": Run.measure_growth,
}


def write(results: Results, out: Path) -> str:
    """Write the tables of a run, of which a part may be still to come; returns the Markdown."""
    text = report.markdown(results, judge(results))
    (out / "results.md").write_text(text)
    (out / "results.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    return text


def draw(results: Results, out: Path) -> None:
    """Write the pictures of a run, if there is what draws them."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no pictures: matplotlib is not installed: compose/python-env bench", file=sys.stderr)
    else:
        from bench import plots

        plots.draw(results, judge(results), out)


def parse_arguments(parts: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description="Measure kvnode beside its peers and its limits, in one run."
    )
    parser.add_argument("--quick", action="store_true", help="about 4 minutes instead of about 15; smaller data")
    parser.add_argument("--growth", action="store_true", help="also grow a node to 20 million keys: 10 minutes more")
    parser.add_argument("--only", metavar="PART,...", help=f"some parts only, of: {', '.join(parts)}")
    parser.add_argument("--rounds", type=int, help="counted rounds of each side")
    parser.add_argument("--seconds", type=int, help="of one side's load in one round")
    parser.add_argument("--keys", type=int, help="keys of the cold reads")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="where the files go")
    parser.add_argument("--data", type=Path, help="where the servers keep their data meanwhile; default: in --out")
    parser.add_argument("--save", action="store_true", help="also write tests/bench/RESULTS.md")
    given = parser.parse_args()
    given.parts = [name for name in parts if name != "growth" or given.growth]
    if given.only is not None:
        given.parts = given.only.split(",")
        if unknown := set(given.parts) - set(parts):
            parser.error(f"no such part: {', '.join(sorted(unknown))}")
        if given.save:
            parser.error("--save is for whole runs: RESULTS.md would lose the other parts")
    for name, least in (("rounds", 1), ("seconds", 1), ("keys", 1000)):
        if (value := getattr(given, name)) is not None and value < least:
            parser.error(f"--{name} must be at least {least}")
    return given


def main() -> None:
    """Measure, write, and print what was found."""
    given = parse_arguments(list(PARTS))
    # As ctrl-C does: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if shutil.which("wrk") is None:
        sys.exit("the HTTP benchmarks need wrk: apt-get install wrk")
    plan = make_plan(given)
    given.out.mkdir(parents=True, exist_ok=True)
    results = Results({"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}, {})
    with ExitStack() as stack:
        parent = given.data or given.out
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=parent)))
        results.machine |= machine.describe(folder)
        results.machine["load average before (1, 5 min)"] = machine.load_average()
        results.settings |= {
            "plan": plan.name,
            "rounds": plan.pace.rounds,
            "seconds a side and round": plan.pace.seconds,
            "connections": serving.CONNECTIONS,
        }
        run = Run(plan, folder, results, stack)
        began_s = time.monotonic()
        for name in given.parts:
            run.measure(name)
            results.settings["taken"] = f"{(time.monotonic() - began_s) / 60:.0f} min"
            # After each part: a run that is interrupted leaves what it has.
            write(results, given.out)
        results.machine["load average after (1, 5 min)"] = machine.load_average()
    text = write(results, given.out)
    draw(results, given.out)
    if given.save:
        SUMMARY.write_text(text)
    print(text)
    print(f"written: {given.out}", file=sys.stderr)


def make_plan(given: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    plan = QUICK if given.quick else DEFAULT
    pace = Pace(given.rounds or plan.pace.rounds, given.seconds or plan.pace.seconds)
    keys = given.keys or plan.cold_keys
    return plan if (pace, keys) == (plan.pace, plan.cold_keys) else replace(plan, pace=pace, cold_keys=keys)


if __name__ == "__main__":
    main()
