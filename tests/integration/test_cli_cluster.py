"""The commands that look at a cluster, load it, and give it names, against real nodes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.cluster import KVNODE, events, kvnode, wait_until
from support.node_process import NodeProcess

Pair = tuple[NodeProcess, NodeProcess]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A primary, web1, and its replica, web2. Each test leaves them running."""
    place = tmp_path_factory.mktemp("pair")
    with (
        NodeProcess(place / "web1", "--name", "web1") as web1,
        NodeProcess(place / "web2", "--name", "web2", join=web1.peer) as web2,
    ):
        wait_until(lambda: len(web2.status()["members"]) == 2, "web2 knows the members", web1, web2)
        yield web1, web2


def end_of(node: NodeProcess) -> int:
    """The exit code of a start that is to be refused."""
    node.start()
    try:
        return node.wait()
    finally:
        if node.is_running:
            node.kill()


def test_watching_a_replica_that_is_killed_and_comes_back(pair: Pair) -> None:
    web1, web2 = pair
    command = [*KVNODE, "status", "--watch", "--interval", "0.1", "--json", "--url", web1.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None

        def wait_for(state: str) -> None:
            assert watch.stdout is not None
            for line in watch.stdout:
                if [each["state"] for each in json.loads(line).get("replicas", ())] == [state]:
                    return
            raise AssertionError(f"it ended before web2 was {state}")

        wait_for("streaming")
        web2.kill()
        wait_for("disconnected")
        web2.restart()
        wait_for("streaming")
        web1.kill()
        lost = next(each for line in watch.stdout if "name" not in (each := json.loads(line)))
        assert lost["watch"]["reachable"] is False
        web1.restart()
        wait_for("streaming")
        watch.stdout.close()
        assert watch.stderr.read() == ""
        assert watch.wait(30) == 141


def test_a_benchmark_works_against_any_node_and_leaves_nothing_behind(pair: Pair) -> None:
    web1, web2 = pair
    wait_until(lambda: web2.status()["primary"]["connected"], "web2 follows", web1, web2)
    assert kvnode("put", "bench/mine", "kept", "--url", web1.url).returncode == 0
    options = ["--requests", "200", "--warmup", "0", "--keys", "50", "-c", "4", "--cleanup", "--json"]
    mix = ["--mix", "put,get,delete,batch,range"]
    done = kvnode("bench", "--url", f"{web2.url},{web1.url}", *mix, *options)
    assert (done.returncode, done.stderr) == (0, "")
    said: dict[str, Any] = json.loads(done.stdout)
    assert [(node["name"], node["role"]) for node in said["nodes"]] == [("web2", "replica"), ("web1", "primary")]
    assert said["all"]["count"] == 200
    assert set(said["operations"]) == {"put", "get", "delete", "batch", "range"}
    assert kvnode("range", "--prefix", "bench/", "--url", web1.url).stdout == 'bench/mine\t"kept"\n'


def test_a_name_that_another_member_has_is_refused_and_the_node_comes_back_as_it_was(pair: Pair) -> None:
    web1, web2 = pair
    web2.stop()
    again = NodeProcess(web2.data, "--name", "web1")
    assert end_of(again) == 1
    (refused,) = events(again, "start_refused", "code=name_taken")
    assert "to stay web2" in refused
    assert "kvnode forget web1" in refused
    web2.restart()
    wait_until(lambda: web2.status()["primary"]["connected"], "web2 follows again", web1, web2)
    assert web2.status()["name"] == "web2"
    # One that is new is refused by the primary, with the same advice.
    third = NodeProcess(web2.data.parent / "web3", "--name", "web2", join=web1.peer)
    assert end_of(third) == 1
    (failed,) = events(third, "node_failed", "code=name_taken")
    assert "hint=" in failed
    assert "kvnode forget NAME" in failed


def test_an_address_that_is_taken_is_told_with_what_to_do(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        command = [*KVNODE, "start", "--data", str(tmp_path / "data"), "--peer", f"127.0.0.1:{port}"]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"'sport = :{port}'" in refused.stderr
    assert "--peer HOST:PORT or KVNODE_PEER" in refused.stderr


def test_a_file_in_place_of_the_directory_is_told_with_what_to_do() -> None:
    command = [*KVNODE, "start", "--data", sys.executable]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "code=os_error" in refused.stderr
    assert "choose another directory with --data" in refused.stderr
