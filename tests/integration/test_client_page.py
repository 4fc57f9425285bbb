"""The examples of CLIENT.md, run as they stand against two real nodes, and its table, which the code has, too."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvnode.cli.client import failover
from support.cluster import Cluster
from support.documents import fenced_blocks
from support.project import ROOT

PAGE = ROOT / "cli" / "client" / "CLIENT.md"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), replicas=1) as running:
        yield running


def test_every_example_prints_what_the_page_says(cluster: Cluster) -> None:
    programs, outputs = fenced_blocks(PAGE, "python"), fenced_blocks(PAGE, "text")
    assert len(programs) == len(outputs) == 4
    for program, output in zip(programs, outputs, strict=True):
        for node, number in zip(cluster.nodes, (1, 2), strict=True):
            program = program.replace(f"http://127.0.0.1:500{number}", node.url)
            program = program.replace(f"127.0.0.1:700{number}", node.peer)
        assert not re.search(":(500|700)[12]", program)
        done = subprocess.run(
            [sys.executable, "-P", "-W", "error", "-c", program],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_the_page_has_the_table_of_the_code() -> None:
    def rows(text: str) -> list[str]:
        table = re.search(r"^\| what became of an attempt .*\n(?:\|.*\n)+", text, re.MULTILINE)
        assert table is not None
        return table[0].splitlines()

    assert failover.__doc__ is not None
    assert rows(PAGE.read_text("utf-8")) == rows(failover.__doc__)
    assert all(f"`{code}`" in rows(failover.__doc__)[3] for code in failover.NOTHING_DONE)
