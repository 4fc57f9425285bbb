"""What the benchmarks share: servers as processes, alternating rounds, medians and ratios.

These machines are shared and noisy, so nothing here is an absolute truth: both sides of a comparison run in turn within
one run, and the ratio of each pair of rounds is what counts.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load import Load, wrk

from support.node_process import NodeProcess

__all__ = ["TABLE_HEAD", "Comparison", "Load", "alternate", "kvnode", "noop_server", "wrk"]

BENCH = Path(__file__).parent


@contextlib.contextmanager
def noop_server() -> Iterator[str]:
    """The plain aiohttp application; its base URL."""
    process = subprocess.Popen([sys.executable, "-P", BENCH / "noop_app.py"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def kvnode(directory: Path, *flags: str) -> Iterator[NodeProcess]:
    """A node on `directory`, ready; stopped at the end."""
    node = NodeProcess(directory, *flags)
    node.start()
    try:
        node.wait_ready()
        yield node
    finally:
        node.stop()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Alternating rounds of two sides.

    Attributes:
        ours: a figure per round.
        theirs: likewise; of the round just before ours.
    """

    name: str
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours divided by theirs, round by round."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def row(self, unit: str) -> str:
        """A line of the result table."""
        ratios = sorted(self.ratios)
        return (
            f"| {self.name} | {statistics.median(self.ours):,.0f} | {statistics.median(self.theirs):,.0f} | {unit} "
            f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )


TABLE_HEAD = "| what | kvnode | yardstick | unit | ratio (median) | spread |\n|---|---|---|---|---|---|"


def alternate(name: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Comparison:
    """Run both sides in turn, `rounds` times, after one round of each that is not counted."""
    theirs()
    ours()
    pairs = [(theirs(), ours()) for _ in range(rounds)]
    return Comparison(name, [pair[1] for pair in pairs], [pair[0] for pair in pairs])
