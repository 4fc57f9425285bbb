"""A run's results as pictures: ratios with their targets, latencies, and the curves of overload and growth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from bench.results import OURS, Curve, Measure, Results
from bench.targets import Verdict
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

_INK = "#24292f"
_GOOD = "#2a7f62"
_SHORT = "#c8553d"
_OTHERS = ("#8d99ae", "#e0a030", "#6a4c93", "#4f86c6", "#7a9e7e", "#b56576")
_DPI = 150

_STYLE = {
    "font.size": 10,
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(results: Results, verdicts: Sequence[Verdict], folder: Path) -> list[Path]:
    """Write what can be drawn of a run; the files."""
    drawn = []
    with plt.rc_context(_STYLE):
        if any(verdict.goal.is_ratio and verdict.found for verdict in verdicts):
            drawn.append(_save(_ratios(verdicts), folder / "ratios.png"))
        latencies = [results.measures[name] for name in ("put", "get-hot", "get-cold") if name in results.measures]
        if latencies:
            drawn.append(_save(_latencies(latencies), folder / "latency.png"))
        names = ("overload-put", "overload-get", "overload-put-refused")
        overloads = [results.curves[name] for name in names if name in results.curves]
        if overloads:
            drawn.append(_save(_overload(overloads), folder / "overload.png"))
        if "growth" in results.curves:
            drawn.append(_save(_growth(results.curves["growth"]), folder / "growth.png"))
    return drawn


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI, facecolor="white")
    plt.close(figure)
    return path


def _plain(value: float, _: object = None) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _ratios(verdicts: Sequence[Verdict]) -> Any:
    """A bar for each ratio, its spread as a whisker, and its target as a mark."""
    shown = [(each.goal, each.found, each.reached) for each in verdicts if each.goal.is_ratio and each.found][::-1]
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.38 * len(shown)), layout="constrained")
    for row, (goal, found, reached) in enumerate(shown):
        axes.barh(row, found.median, height=0.6, color=_GOOD if reached else _SHORT, zorder=2)
        axes.plot([found.low, found.high], [row, row], color=_INK, linewidth=1.2, zorder=3)
        axes.plot([goal.bound, goal.bound], [row - 0.42, row + 0.42], color=_INK, linewidth=2.4, zorder=4)
        axes.annotate(
            f"{found.median:.2f}",
            (max(found.high, goal.bound, found.median), row),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(shown)), [goal.what for goal, _, _ in shown])
    axes.set_xscale("log")
    low = min(min(found.low, goal.bound) for goal, found, _ in shown)
    high = max(max(found.high, goal.bound) for goal, found, _ in shown)
    axes.set_xlim(low / 1.5, high * 1.8)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="minor", length=0)
    axes.grid(axis="x", zorder=0)
    axes.set_title("kvnode's rate in units of what it stands beside")
    axes.set_xlabel("log scale; upright mark: target; thin line: spread")
    return figure


def _side_colours(measures: Sequence[Measure]) -> dict[str, str]:
    names = [name for measure in measures for name in measure.sides if name != OURS]
    return {OURS: _GOOD, **dict(zip(dict.fromkeys(names), _OTHERS * 2, strict=False))}


def _latencies(measures: Sequence[Measure]) -> Any:
    """Latency by percentile, the upper ones spread out."""
    size = (4.6 * len(measures), 4.6)
    figure, all_axes = plt.subplots(1, len(measures), figsize=size, layout="constrained", squeeze=False)
    colours = _side_colours(measures)
    ticks = (50, 90, 99, 99.9)
    handles: dict[str, Any] = {}
    for axes, measure in zip(all_axes[0], measures, strict=True):
        for name, side in measure.sides.items():
            if side.objection is not None or not side.latencies:
                continue
            percents = sorted(percent for percent in side.latencies[0] if 50 <= percent < 100)
            axes.plot(
                [100 / (100 - percent) for percent in percents],
                [side.latency_ms(percent) for percent in percents],
                label=name,
                color=colours[name],
                linewidth=2.6 if name == OURS else 1.4,
                marker="o",
                markersize=3.5 if name == OURS else 2.5,
                zorder=3 if name == OURS else 2,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([100 / (100 - tick) for tick in ticks]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"p{100 - 100 / value:.4g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _log_latency(axes)
        axes.tick_params(which="minor", length=0)
        axes.grid(zorder=0)
        axes.set_title(measure.title)
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    all_axes[0][0].set_ylabel("latency, ms (log scale)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _log_latency(axes: Any) -> None:
    """Scale the upright axis for latencies."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _overload(curves: Sequence[Curve]) -> Any:
    """Throughput, latency, refusals and memory against connections."""
    figure, ((served, tail), (refused, memory)) = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True)
    for curve, colour in zip(curves, (_GOOD, _OTHERS[3], _OTHERS[1]), strict=False):
        along = curve.column("connections")
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 2}
        label = curve.title.replace(" beyond capacity", "")
        served.plot(along, curve.column("served/s"), label=label, **style)
        thin = {**style, "linestyle": ":", "linewidth": 1.4}
        served.plot(along, curve.column("no-op served/s"), label=f"{label}: no-op application", **thin)
        tail.plot(along, curve.column("p99 ms"), label=f"{label}, p99", **style)
        tail.plot(
            along, curve.column("p50 ms"), label=f"{label}, median", **{**style, "linestyle": ":", "linewidth": 1.4}
        )
        refused.plot(along, [share * 100 for share in curve.column("refused share")], label=label, **style)
        memory.plot(along, curve.column("RssAnon MiB"), label=label, **style)
    ticks = sorted({tick for curve in curves for tick in curve.column("connections")})
    for axes, title in (
        (served, "served, requests/s"),
        (tail, "latency, ms"),
        (refused, "refused as overloaded, %"),
        (memory, "memory of the node (RssAnon), MiB"),
    ):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_ylim(bottom=0)
        axes.grid(zorder=0)
        axes.set_title(title)
        axes.legend(fontsize=8)
    tail.autoscale(axis="y")
    _log_latency(tail)
    for axes in (refused, memory):
        axes.set_xlabel("connections (log scale)")
    if all(share == 0 for curve in curves for share in curve.column("refused share")):
        refused.set_ylim(0, 1)
    return figure


def _growth(curve: Curve) -> Any:
    """Rates and memory against the number of keys."""
    figure, (rates, memory) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    along = curve.column("keys")
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 2}
    for name, colour in (("puts/s", _GOOD), ("gets/s", _OTHERS[3]), ("hot gets/s", _OTHERS[1])):
        values = curve.column(name)
        rates.plot(along, [value / values[0] for value in values], label=name.removesuffix("/s"), color=colour, **style)
    rates.axhline(0.7, color=_INK, linewidth=1.2, linestyle="--")
    rates.annotate("target", (along[0], 0.7), (0, 4), textcoords="offset points", fontsize=8)
    rates.set_ylim(bottom=0)
    rates.set_title("rate in units of that at the first size")
    for name, colour in (("RssAnon MiB", _GOOD), ("RssFile MiB", _OTHERS[0])):
        memory.plot(along, curve.column(name), label=name.removesuffix(" MiB"), color=colour, **style)
    memory.set_ylim(bottom=0)
    memory.set_title("memory of the node, MiB")
    for axes in (rates, memory):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(along))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}M"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_xlabel("keys (log scale)")
        axes.grid(zorder=0)
        axes.legend(fontsize=8)
    return figure
