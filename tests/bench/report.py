"""A run's results as Markdown: the goals first, then everything that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results import Curve, Facts, Measure, Results, Series, Spread
from bench.targets import Verdict

_PREFACE = """\
Written by `tests/bench/run`; see CONTRIBUTING.md, *Benchmarks*. All sides took turns within one run on one machine; a
ratio is taken round by round, its median is shown, and its extremes.
"""


def number(value: float) -> str:
    """A figure with three digits that count, at least, and thousands set apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(found: Spread) -> str:
    """The extremes."""
    return f"{number(found.low)} to {number(found.high)}" if found.low != found.high else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def verdict_word(verdict: Verdict) -> str:
    """What became of a goal."""
    return "reached" if verdict.reached else "not measured" if verdict.found is None else "not reached"


def goals(verdicts: Sequence[Verdict]) -> str:
    """The table of goals."""
    rows = []
    for verdict in verdicts:
        goal, found = verdict.goal, verdict.found
        word = verdict_word(verdict)
        rows.append(
            (
                goal.what,
                "" if found is None else number(found.median),
                f"{goal.sign} {number(goal.bound)}",
                word if word == "reached" else f"**{word}**",
                "" if found is None else spread(found),
            )
        )
    return table(("goal", "measured", "target", "", "spread"), rows)


def measure(found: Measure) -> str:
    """One comparison: a row for each side."""
    has_latency = any(side.latencies for side in found.sides.values())
    head = ["side", found.unit, "spread", f"{found.ours} / side", "spread"]
    if has_latency:
        head += ["p50 ms", "p99 ms", "p99 / p50"]
    rows = [_side(found, name, side, has_latency) for name, side in found.sides.items()]
    return f"### {found.title}\n\n" + table(head, rows)


def _side(found: Measure, name: str, side: Series, has_latency: bool) -> list[str]:
    figures = Spread.of(side.figures)
    row = [name, number(figures.median), spread(figures)]
    ratios = None if name == found.ours else found.ratios(name)
    row += ["", ""] if ratios is None else [number(Spread.of(ratios).median), spread(Spread.of(ratios))]
    if has_latency:
        row += ["", "", ""]
        if side.latencies:
            row[-3:] = [
                number(side.latency_ms(50)),
                number(side.latency_ms(99)),
                number(Spread.of(side.tail_ratios).median),
            ]
    if side.objection is not None:
        row[0] = f"{name} (invalid: {side.objection})"
    return row


def facts(found: Facts) -> str:
    """Figures of one side."""
    spreads = {what: Spread.of(figures) for what, figures in found.figures.items()}
    rows = [(what, number(each.median), spread(each)) for what, each in spreads.items()]
    return f"### {found.title}\n\n" + table((f"in {found.unit}", "median", "spread"), rows)


def curve(found: Curve) -> str:
    """A row a point."""
    columns = list(found.points[0])
    rows = [[_cell(point[column]) for column in columns] for point in found.points]
    return f"### {found.title}\n\n" + table(columns, rows)


def _cell(value: float) -> str:
    """A figure of a curve, of which many are counts."""
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


def markdown(results: Results, verdicts: Sequence[Verdict]) -> str:
    """The whole report."""
    reached = sum(verdict.reached for verdict in verdicts)
    measured = sum(verdict.found is not None for verdict in verdicts)
    parts = [
        "# Results of the benchmark\n",
        _PREFACE,
        "\n".join(f"- {what}: {told}" for what, told in (results.machine | _settings(results)).items()) + "\n",
        f"## Goals: {reached} of {len(verdicts)} reached, {len(verdicts) - measured} not measured\n",
        goals(verdicts),
    ]
    if results.missing:
        parts.append("Left out:\n\n" + "\n".join(f"- {name}: {why}" for name, why in results.missing.items()) + "\n")
    parts += [f"{note}\n" for note in results.notes]
    parts.append("## Measured\n")
    parts += [measure(each) for each in results.measures.values()]
    parts += [facts(each) for each in results.facts.values()]
    parts += [curve(each) for each in results.curves.values()]
    return "\n".join(parts)


def _settings(results: Results) -> dict[str, str]:
    return {"run": ", ".join(f"{name} {value}" for name, value in results.settings.items())}
