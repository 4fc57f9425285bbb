"""What the benchmarks share: servers as processes, wrk as the load, alternating rounds, medians and ratios.

These machines are shared and noisy, so nothing here is an absolute truth: both sides of a comparison run in turn within
one run, and the ratio of each pair of rounds is what counts.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.node_process import NodeProcess

BENCH = Path(__file__).parent

_UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of wrk measured."""

    rate: float
    p50_ms: float
    p99_ms: float


def wrk(url: str, *, script: str | None = None, connections: int = 64, seconds: float = 3.0) -> Load:
    """Load `url` and return what came of it; an answer that is not 2xx ends the benchmark.

    Args:
        script: Lua text for wrk.
    """
    program = shutil.which("wrk")
    if program is None:
        sys.exit("the HTTP benchmarks need wrk: apt-get install wrk")
    command = [program, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "10s"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        if script is not None:
            lua.write(script)
            lua.flush()
            command += ["-s", lua.name]
        output = subprocess.run(
            [*command, url], capture_output=True, text=True, check=True, timeout=seconds + 30
        ).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"the load was not answered as it should be:\n{output}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate is not None, output
    return Load(float(rate[1]), _percentile(output, 50), _percentile(output, 99))


def _percentile(output: str, percent: int) -> float:
    match = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", output, re.MULTILINE)
    assert match is not None, output
    return float(match[1]) * _UNIT_MS[match[2]]


@contextlib.contextmanager
def noop_server() -> Iterator[str]:
    """The plain aiohttp application; its base URL."""
    process = subprocess.Popen([sys.executable, BENCH / "noop_app.py"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


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
