"""The goals of this project's speed, and what a run reached of each.

A goal is a bound for one figure, mostly a ratio to what was measured beside it. What a run did not measure has no
figure and is not reached.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.native import CLIENT, FRAMES, REST
from bench.results import OURS, Curve, Results, Spread
from bench.serving import CONNECTIONS, NOOP_GET, NOOP_POST, NOOP_POST_JSON

#: What "memory flat" may mean: so much more at the end than at the second size, where every buffer has been filled.
_FLAT = 1.25

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a figure of a run.

    Attributes:
        group: the part of a run that measures it.
        sign: how the figure has to stand to `bound`.
        find: the figure's rounds; None or none if it was not measured.
        is_ratio: whether the figure is our rate in units of another's, which a chart can show.
    """

    group: str
    what: str
    sign: str
    bound: float
    find: Callable[[Results], Sequence[float] | None]
    is_ratio: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run reached of a goal."""

    goal: Goal
    found: Spread | None

    @property
    def reached(self) -> bool:
        """Whether the median is within the bound."""
        return self.found is not None and _SIGNS[self.goal.sign](self.found.median, self.goal.bound)


def judge(results: Results) -> list[Verdict]:
    """A verdict for every goal, in their order."""
    verdicts = []
    for goal in GOALS:
        figures = goal.find(results)
        verdicts.append(Verdict(goal, Spread.of(figures) if figures else None))
    return verdicts


def _ratio(group: str, measure: str, theirs: str, bound: float, what: str, *, ours: str | None = None) -> Goal:
    def find(results: Results) -> Sequence[float] | None:
        found = results.measures.get(measure)
        return None if found is None else found.ratios(theirs, ours)

    return Goal(group, what, ">=", bound, find, is_ratio=True)


def _tail(results: Results) -> Sequence[float] | None:
    found = results.measures.get("put")
    return None if found is None or found.sides[OURS].objection else found.sides[OURS].tail_ratios


def _fact(name: str, figure: str) -> Callable[[Results], Sequence[float] | None]:
    return lambda results: results.facts[name].figures.get(figure) if name in results.facts else None


def _slowest_clean_start(results: Results) -> Sequence[float] | None:
    found = results.facts.get("clean-start")
    return max(found.figures.values(), key=lambda each: Spread.of(each).median) if found is not None else None


def _last_of_first(column: str) -> Callable[[Results], Sequence[float] | None]:
    """A growth curve's last value as a share of its first."""

    def find(results: Results) -> Sequence[float] | None:
        curve = results.curves.get("growth")
        return None if curve is None else [curve.column(column)[-1] / curve.column(column)[0]]

    return find


def _memory_growth(results: Results) -> Sequence[float] | None:
    curve = results.curves.get("growth")
    if curve is None or len(curve.points) < 3:
        return None
    memory = curve.column("RssAnon MiB")
    return [memory[-1] / memory[1]]


def beyond_capacity(curve: Curve) -> dict[str, float]:
    """The point with ten times the connections of the other measures; else the last one."""
    wanted = [point for point in curve.points if point["connections"] >= 10 * CONNECTIONS]
    return wanted[0] if wanted else curve.points[-1]


def _kept_throughput(name: str) -> Callable[[Results], Sequence[float] | None]:
    def found(results: Results) -> Sequence[float] | None:
        curve = results.curves.get(name)
        return None if curve is None else [beyond_capacity(curve)["served/s"] / max(curve.column("served/s"))]

    return found


def _unexpected(results: Results) -> Sequence[float] | None:
    curves = [results.curves[name] for name in ("overload-put", "overload-put-refused") if name in results.curves]
    return [sum(sum(curve.column("other errors")) for curve in curves)] if curves else None


def _audited(results: Results) -> Sequence[float] | None:
    audit = results.facts.get("overload-audit")
    if audit is None or not audit.figures["acknowledged"][0]:
        return None
    return audit.figures["of them lost"]


def _kept(column: str, what: str) -> Goal:
    return Goal("growth", f"growth: {what}, last size / first", ">=", 0.7, _last_of_first(column), is_ratio=True)


def _native(measure: str, ours: str, what: str) -> Goal:
    return _ratio("native", measure, REST, 5.0, what, ours=ours)


def _served(curve: str, what: str) -> Goal:
    return Goal("overload", what, ">=", 0.9, _kept_throughput(curve), is_ratio=True)


_PLAIN = "of a plain web.Application"

GOALS = (
    _ratio("put", "put", NOOP_POST_JSON, 1.1, f"durable PUT / no-op POST {_PLAIN} (body read as JSON)"),
    _ratio("put", "put", NOOP_POST, 1.1, f"durable PUT / no-op POST {_PLAIN} (body unread)"),
    _ratio("put", "put", "FastAPI", 8.0, "durable PUT / FastAPI + plyvel, which does not sync"),
    _ratio("put", "put", "etcd", 2.0, "durable PUT / etcd's JSON gateway"),
    _ratio("put", "put", "webdis + redis", 1.0, "durable PUT / webdis + redis"),
    Goal("put", "durable PUT: p99 / median latency", "<", 4.0, _tail),
    _ratio("get", "get-hot", NOOP_GET, 1.7, f"GET hot / no-op GET {_PLAIN}"),
    _ratio("get", "get-hot", "etcd", 1.0, "GET hot / etcd's JSON gateway"),
    _ratio("get", "get-hot", "webdis + redis", 1.0, "GET hot / webdis + redis"),
    _ratio("cold", "get-cold", NOOP_GET, 0.6, "GET cold from LevelDB / no-op GET"),
    _ratio("batch", "batch", "raw plyvel", 0.5, "/batchput of 1,000 / raw plyvel, items"),
    _ratio("range", "range", "raw plyvel", 0.35, "/readrange streamed / raw plyvel scan, items"),
    Goal("start", "start after kill -9, entries/s", ">=", 300_000, _fact("replay", "whole start")),
    Goal("start", "start after a clean stop, s (slowest data size)", "<", 0.5, _slowest_clean_start),
    _kept("puts/s", "put rate"),
    _kept("gets/s", "read rate of random keys"),
    _kept("hot gets/s", "read rate of hot keys"),
    Goal("growth", "growth: memory, last size / second", "<=", _FLAT, _memory_growth),
    _ratio("replicas", "catch-up", "puts of a node alone", 10.0, "replica: catch-up / put rate of a node alone"),
    _ratio("replicas", "full-sync", "cp -r + socket", 0.6, "replica: full sync / cp -r and a socket, MB"),
    _native("native-put", FRAMES, "native path, durable PUT: frames / REST, 1 connection each"),
    _native("native-put", CLIENT, "native path, durable PUT: NativeClient / REST, 1 connection each"),
    _native("native-get", FRAMES, "native path, GET hot: frames / REST, 1 connection each"),
    _native("native-get", CLIENT, "native path, GET hot: NativeClient / REST, 1 connection each"),
    _served("overload-put", "overload: puts served at 10 times the clients / peak"),
    _served("overload-put-refused", "overload: puts served at 10 times --max-connections / peak"),
    Goal("overload", "overload: answers that are neither 200 nor 503 `overloaded`", "<=", 0.0, _unexpected),
    Goal("overload", "overload: acknowledged puts lost by kill -9", "<=", 0.0, _audited),
)
