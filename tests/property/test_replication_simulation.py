"""Replication under simulation: whatever happens to three nodes, what they promised holds, and they agree in the end.

A failure names its seed; ``pytest tests/property/test_replication_simulation.py --simulation-seed SEED`` runs that
alone. With ``--long``, ten times as many seeds are tried.
"""

from __future__ import annotations

from collections import Counter

import pytest

from support.replication_simulation import Simulation

BLOCKS = 10
SEEDS_OF_BLOCK = 100


def simulate(seed: int) -> Counter[str]:
    """Run a seed; if it fails, say how to run it alone."""
    try:
        return Simulation(seed).run().counts
    except BaseException as error:
        command = f"pytest tests/property/test_replication_simulation.py --simulation-seed {seed}"
        error.add_note(f"to run this alone: {command}")
        raise


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_nodes_keep_their_promises_and_agree(block: int, pytestconfig: pytest.Config) -> None:
    chosen = pytestconfig.getoption("--simulation-seed")
    if chosen is not None:
        if block == 0:
            simulate(chosen)
        return
    seeds = SEEDS_OF_BLOCK * (10 if pytestconfig.getoption("--long") else 1)
    counts: Counter[str] = Counter()
    for seed in range(block * seeds, (block + 1) * seeds):
        counts += simulate(seed)
    # What the promises are about has happened, and often.
    for what in ("acked writes", "full syncs", "resumed", "moved aside", "stepped down"):
        assert counts[what] >= seeds // 10, (what, counts)
