"""Real input: Debian's package index loaded through a replica, while another one is killed again and again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.cluster import KVNODE, Cluster, wait_until
from support.debian_packages import Record, index_lines, synthetic, to_line
from support.debian_packages import records as index_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def packages() -> list[Record]:
    """Debian's package index; made up where it cannot be had."""
    try:
        found = list(index_records(index_lines()))
    except (OSError, subprocess.CalledProcessError):
        found = []
    return found if len(found) >= 1000 else list(synthetic(40_000, seed=1))


def test_the_package_index_through_one_replica_while_another_is_killed_twice(tmp_path: Path) -> None:
    wanted = packages()
    path, acked = tmp_path / "packages.jsonl", tmp_path / "acked.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_line(record) + "\n" for record in wanted)
    with Cluster(tmp_path) as cluster:
        _, web2, web3 = cluster.nodes

        def share_acked() -> float:
            lines = acked.read_text().splitlines() if acked.exists() else []
            return json.loads(lines[-1])["last_line"] / len(wanted) if lines and lines[-1].endswith("}") else 0.0

        command = [*KVNODE, "load", str(path), "--url", web2.url, "--batch", "200", "--acked", str(acked), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as load:
            for share in (0.1, 0.4):
                wait_until(lambda: share_acked() >= share or load.poll() is not None, "a part of it", *cluster.nodes)  # noqa: B023
                assert load.poll() is None, "the load ended too soon"
                web3.kill()
                web3.start()
                web3.wait_ready()
            stdout, stderr = load.communicate(timeout=120)
        assert load.returncode == 0, stderr
        assert json.loads(stdout)["acknowledged"] == len(wanted)
        cluster.agree(dumps=True)
        assert cluster.count_full_syncs() == (0, 0)
