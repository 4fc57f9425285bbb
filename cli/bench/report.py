"""What a benchmark measured, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType

from kvnode.cli.bench.histogram import PRECISION
from kvnode.cli.bench.runner import Outcome, Plan, Tally
from kvnode.cli.quantities import count_text, latency_text, rate_text, size_text
from kvnode.cli.tables import make_summary, make_table, plain

#: Of the latencies; the last one is the maximum.
_PERCENTILES = (50.0, 90.0, 99.0, 99.9)

#: Share of the time in which a client has to be idle, or it counts as what limits the throughput.
_BUSY = 0.85

_NS_PER_MS = 1_000_000


class BenchReport:
    """The results of a run.

    Args:
        nodes: what each node said that it is.
        is_interrupted: whether Ctrl-C ended it early.
        deleted: how many keys were deleted at the end; None if that was not asked for.
    """

    def __init__(
        self,
        plan: Plan,
        nodes: Sequence[dict[str, object]],
        outcome: Outcome,
        *,
        is_interrupted: bool = False,
        deleted: int | None = None,
    ) -> None:
        self._plan = plan
        self._nodes = nodes
        self._outcome = outcome
        self._is_interrupted = is_interrupted
        self._deleted = deleted
        self._by_name = {kind.value: tally for kind, tally in outcome.tallies.items()}
        self._all = outcome.all

    @property
    def has_errors(self) -> bool:
        """Whether a request that was measured failed."""
        return bool(self._all.errors)

    @property
    def client_busy(self) -> float:
        """Share of one core that a client process was busy for, while it was measured."""
        return self._outcome.cpu_s / (self._outcome.seconds * self._plan.processes) if self._outcome.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it; latencies in milliseconds."""
        plan, workload = self._plan, self._plan.workload
        return {
            "nodes": list(self._nodes),
            "workload": {
                "mix": {kind.value: weight for kind, weight in workload.mix.items()},
                "keys": workload.keys,
                "prefix": workload.prefix,
                "key_bytes": workload.key_bytes,
                "value_bytes": list(workload.value_bytes),
                "distribution": workload.distribution.value,
                "batch_items": workload.batch_items,
                "range_items": workload.range_items,
                "seed": workload.seed,
                "connections": plan.connections,
                "processes": plan.processes,
                "rate": plan.rate,
                "warmup_s": plan.warmup_s,
            },
            "seconds": round(self._outcome.seconds, 6),
            "interrupted": self._is_interrupted,
            "operations": {name: self._object(tally) for name, tally in self._by_name.items()},
            "all": self._object(self._all),
            "not_begun": self._outcome.not_begun,
            "unanswered": self._outcome.unanswered,
            "client_busy": round(self.client_busy, 3),
            "latency_precision": PRECISION,
            "deleted": self._deleted,
        }

    def parts(self) -> Iterator[RenderableType]:
        """What is printed, one below the other."""
        yield make_summary(self._heading())
        yield ""
        headings = ("operation", "count", "per second", "errors", "p50", "p90", "p99", "p99.9", "max")
        rows = [self._row(name, tally) for name, tally in self._by_name.items()]
        if len(rows) > 1:
            rows.append(self._row("all", self._all))
        yield make_table(headings, rows, numbers=headings[1:])
        yield ""
        yield make_summary(self._notes())

    def _heading(self) -> Iterator[tuple[str, object]]:
        for node in self._nodes:
            yield "node", f"{node['name']} ({node['role']}) at {node['url']}, kvnode {node['version']}"
        workload, plan = self._plan.workload, self._plan
        mix = ", ".join(f"{kind.value}={weight:g}" for kind, weight in workload.mix.items())
        shortest, longest = workload.value_bytes
        sizes = f"{shortest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
        yield "mix", mix
        yield "keys", f"{workload.keys:,} of {workload.key_bytes} bytes, {workload.distribution.value}"
        yield "values", f"{sizes} bytes"
        pace = "each as fast as it is answered" if plan.rate is None else f"{rate_text(plan.rate)} in all"
        where = f" of {count_text(plan.processes, 'process', 'processes')}" if plan.processes > 1 else ""
        yield "load", f"{count_text(plan.connections, 'connection')}{where}, {pace}"
        early = ", ended early" if self._is_interrupted else ""
        warm_up = f" after {plan.warmup_s:g} s of warm-up" if self._outcome.seconds else ""
        yield "measured", f"{self._outcome.seconds:.1f} s{warm_up}{early}"

    def _row(self, name: str, tally: Tally) -> tuple[object, ...]:
        latencies = tally.latencies
        times = (
            [latency_text(latencies.percentile(percent)) for percent in _PERCENTILES] + [latency_text(latencies.max)]
            if latencies.count
            else [None] * (len(_PERCENTILES) + 1)
        )
        return name, f"{latencies.count:,}", f"{self._per_second(tally):,.0f}", f"{tally.errors.total():,}", *times

    def _notes(self) -> Iterator[tuple[str, object]]:
        seconds = self._outcome.seconds or 1.0
        tally = self._all
        sizes = ("written", tally.sent_bytes, "keys and values"), ("read", tally.received_bytes, "values")
        for label, size, what in sizes:
            if size:
                yield label, f"{size_text(size)} of {what}, {size_text(size / seconds)}/s"
        if tally.not_found:
            yield "not found", f"{tally.not_found:,} times the key was not there"
        if tally.errors:
            listed = ", ".join(f"{code} {count:,}" for code, count in tally.errors.most_common())
            yield "errors", plain(listed, "bold red")
        if not_begun := self._outcome.not_begun:
            yield "not begun", plain(f"{not_begun:,} requests were due and found no connection free", "yellow")
        if unanswered := self._outcome.unanswered:
            yield (
                "unanswered",
                plain(
                    f"{count_text(unanswered, 'request')} had no answer yet at the end, and no other number has them",
                    "yellow",
                ),
            )
        is_limit = self.client_busy > _BUSY
        advice = ": it may be what limits the throughput, not the node; try more --processes" if is_limit else ""
        busy = f"busy for {100 * self.client_busy:.0f}% of a core"
        yield "client", plain(busy + advice, "yellow" if is_limit else "")
        if self._deleted is not None:
            yield "deleted", count_text(self._deleted, "key")

    def _per_second(self, tally: Tally) -> float:
        return tally.latencies.count / self._outcome.seconds if self._outcome.seconds else 0.0

    def _object(self, tally: Tally) -> dict[str, Any]:
        latencies = tally.latencies
        times: dict[str, float] = {f"p{percent:g}": latencies.percentile(percent) for percent in _PERCENTILES}
        times |= {"max": latencies.max, "mean": latencies.mean}
        return {
            "count": latencies.count,
            "per_second": round(self._per_second(tally), 3),
            "latency_ms": {name: round(value / _NS_PER_MS, 6) for name, value in times.items()},
            "errors": dict(tally.errors),
            "not_found": tally.not_found,
            "sent_bytes": tally.sent_bytes,
            "received_bytes": tally.received_bytes,
        }
