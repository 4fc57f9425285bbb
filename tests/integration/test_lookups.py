"""Nodes whose peers have names that nobody answers for: they find those that are there, and stop in time.

The look-ups are made to hang in the nodes' processes alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvnode.node.fs import RealFs
from kvnode.node.replication.members import load_members, save_members
from kvnode.node.storage.datadir import Layout, StateFiles
from kvnode.protocol.fields import Member
from support.cluster import STOP_S, kvnode, wait_until
from support.lookups import HangingLookups
from support.node_process import NodeProcess

#: As many as a node of uvloop's default could not look up beside another name.
HANGING = ("a.hangs", "b.hangs", "c.hangs")


@pytest.fixture
def lookups(tmp_path: Path) -> HangingLookups:
    if objection := HangingLookups.objection():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(objection)
    return HangingLookups(tmp_path)


def know_first(data: Path, *hosts: str) -> None:
    """Let a node that does not run know members at these hosts, before all others."""
    files = StateFiles(RealFs(), Layout(data))
    added = [Member(host[:1].encode() * 16, host.partition(".")[0], f"{host}:7001") for host in hosts]
    save_members(files, (*added, *load_members(files)))


def test_a_node_that_looks_its_primary_up_stops_in_time(tmp_path: Path, lookups: HangingLookups) -> None:
    node = NodeProcess(tmp_path / "web2", join="primary.hangs:7001", environment=lookups.environment)
    node.start()
    wait_until(lambda: lookups.noted() == ["primary.hangs"], "its look-up hangs", node)
    assert node.stop(STOP_S) == 0


def test_members_whose_names_hang_keep_none_from_being_found(tmp_path: Path, lookups: HangingLookups) -> None:
    web1 = NodeProcess(tmp_path / "web1", "--name=web1", environment=lookups.environment)
    with web1:
        pass
    know_first(web1.data, *HANGING)
    # A name, so that it has to be looked up as the others.
    address = f"localhost:{web1.peer.rpartition(':')[2]}"
    web1.flags = (*web1.flags, f"--advertise={address}")
    with web1, NodeProcess(tmp_path / "web2", "--name=web2", join=address, environment=lookups.environment) as web2:
        wait_until(lambda: "web1" in str(web2.status()["members"]), "the members are known", web1, web2)
        refused = kvnode("promote", "--url", web2.url)
        assert refused.returncode == 1
        assert "web1 answers as the primary" in refused.stderr
        # It had looked those up, too, and could not wait for them.
        assert [host for host in HANGING if f"{host}:7001" not in refused.stdout + refused.stderr] == []
        for node in (web2, web1):
            assert node.stop(STOP_S) == 0
