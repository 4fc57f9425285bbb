"""What a run measured, as plain data: figures by round and side, ratios, medians and spreads.

A ratio is taken round by round, of figures that were measured one just after the other, so that a machine that gets
slower or faster in between moves both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.load import Load

OURS = "kvnode"


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure's median and extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of at least one."""
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(slots=True)
class Series:
    """One side's rounds.

    Attributes:
        figures: one a round; more is better.
        latencies: by round, latency in ms by percentile; empty where it was not measured.
        objection: why the rounds must not be counted; None if they may.
    """

    figures: list[float] = field(default_factory=list)
    latencies: list[dict[float, float]] = field(default_factory=list)
    objection: str | None = None

    def add(self, round_: Load | float) -> None:
        """One more round."""
        if isinstance(round_, Load):
            self.figures.append(round_.rate)
            self.latencies.append(round_.percentiles_ms)
            self.objection = self.objection or round_.objection
        else:
            self.figures.append(round_)

    def latency_ms(self, percent: float) -> float:
        """The rounds' median of a percentile."""
        return statistics.median(each[percent] for each in self.latencies)

    @property
    def tail_ratios(self) -> list[float]:
        """p99 divided by the median latency, by round."""
        return [each[99] / each[50] for each in self.latencies]


@dataclass(slots=True)
class Measure:
    """The same thing measured on several sides, which took turns.

    Attributes:
        name: what later steps call it.
        title: what it is, for people.
        unit: of the figures.
        sides: by name.
        ours: the side whose ratio to each other one is of interest.
    """

    name: str
    title: str
    unit: str
    sides: dict[str, Series]
    ours: str = OURS

    def ratios(self, theirs: str, ours: str | None = None) -> list[float] | None:
        """Ours divided by theirs, round by round; None if a side is not there or must not be counted."""
        pair = self.sides.get(ours or self.ours), self.sides.get(theirs)
        if pair[0] is None or pair[1] is None or pair[0].objection or pair[1].objection:
            return None
        return [mine / other for mine, other in zip(pair[0].figures, pair[1].figures, strict=True)]


@dataclass(slots=True)
class Facts:
    """Figures that were measured on our side alone, each several times.

    Attributes:
        figures: by what they are, all that were measured.
    """

    name: str
    title: str
    unit: str
    figures: dict[str, list[float]]


@dataclass(slots=True)
class Curve:
    """How figures change with one quantity.

    Attributes:
        along: the quantity and its unit.
        points: one row a value of it, in rising order; each has the same columns.
    """

    name: str
    title: str
    along: str
    points: list[dict[str, float]]

    def column(self, name: str) -> list[float]:
        """One column's values."""
        return [point[name] for point in self.points]


@dataclass(slots=True)
class Results:
    """All that a run found.

    Attributes:
        machine: facts about the machine and the programs, for people.
        settings: how the run was asked for.
        missing: why a side is not there, by name.
        notes: what else a reader has to know.
    """

    machine: dict[str, str]
    settings: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, found: Measure | Facts | Curve) -> None:
        """Keep one more."""
        kept: Mapping[type, dict[str, Any]] = {Measure: self.measures, Facts: self.facts, Curve: self.curves}
        kept[type(found)][found.name] = found

    def as_json(self) -> dict[str, Any]:
        """For json.dump."""
        return asdict(self)


def take_turns(
    name: str, title: str, unit: str, sides: Mapping[str, Callable[[int], Load | float]], rounds: int, *, warm: bool
) -> Measure:
    """Run every side once a round, `rounds` times.

    Args:
        sides: by name, what runs one round and returns what it measured; gets the round's number, from 0.
        warm: whether a round that is not counted goes first; its number is -1.
    """
    measure = Measure(name, title, unit, {side: Series() for side in sides})
    for number in range(-1 if warm else 0, rounds):
        for side, run in _rotated(sides, number):
            found = run(number)
            if number >= 0:
                measure.sides[side].add(found)
    return measure


def _rotated(
    sides: Mapping[str, Callable[[int], Load | float]], number: int
) -> Iterator[tuple[str, Callable[[int], Load | float]]]:
    """The sides, each round beginning with the next one: nobody always runs just after the same other one's load."""
    order = list(sides.items())
    turn = number % len(order)
    yield from order[turn:] + order[:turn]
