"""Rates and memory as the data grows: puts and reads of random keys at each size, with values of 100 bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from bench.dialects import KVNODE, gets, puts
from bench.filling import fill, resident_mib, wait_settled
from bench.harness import kvnode
from bench.load import from_pool, measure
from bench.results import Curve
from bench.serving import CONNECTIONS, HOT_KEYS, Pace

#: Bytes of a value's JSON text.
VALUE_BYTES = 100

SIZES = (100_000, 1_000_000, 5_000_000, 10_000_000, 20_000_000)

_POOL = 200_000


def growth(data: Path, sizes: tuple[int, ...], pace: Pace, say: Callable[[str], None]) -> Curve:
    """Fill a node step by step, and measure it at each size, with its default settings.

    Args:
        say: told of each step.
    """
    points: list[dict[str, float]] = []
    with kvnode(data) as node:
        filled = 0
        for size in sizes:
            say(f"growth: {size:,} keys")
            fill(node.url, filled, size, VALUE_BYTES)
            filled = size
            wait_settled(data / "db")
            rounds: dict[str, list[float]] = {"puts": [], "gets": [], "hot gets": []}
            for number in range(pace.rounds):
                for what, requests in (
                    ("gets", gets(KVNODE, size, number, _POOL)),
                    ("hot gets", gets(KVNODE, HOT_KEYS, number)),
                    ("puts", puts(KVNODE, size, number, _POOL)),
                ):
                    with from_pool(requests) as script:
                        load = measure(node.url, script=script, connections=CONNECTIONS, seconds=pace.seconds)
                    if load.objection is not None:
                        raise RuntimeError(f"{what} at {size:,} keys: {load.objection}")
                    rounds[what].append(load.rate)
            memory = resident_mib(node.pid)
            points.append(
                {
                    "keys": size,
                    **{f"{what}/s": statistics.median(rates) for what, rates in rounds.items()},
                    "RssAnon MiB": memory["RssAnon"],
                    "RssFile MiB": memory["RssFile"],
                }
            )
    return Curve("growth", f"growth, values of {VALUE_BYTES} bytes", "keys", points)
