"""compose/up and compose/down with real nodes, on free ports and in a data folder of their own."""

import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvnode.node.fs import RealFs
from kvnode.node.storage.datadir import Layout, StateFiles
from support.node_process import NodeProcess
from support.project import ROOT

pytestmark = [
    pytest.mark.skipif(
        Path(sys.prefix) != ROOT / ".venv",
        reason="the scripts use the project's own .venv, which tests/run runs the tests in",
    ),
    # Each script may wait twice 15 s for nodes.
    pytest.mark.timeout(120),
]

NAMES = ("web1", "web2", "web3")


def free_ports(count: int) -> int:
    """The first of so many ports in a row that are free."""
    while True:
        with ExitStack() as servers:
            first = int(servers.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1])
            try:
                for port in range(first + 1, first + count):
                    servers.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return first


class Nodes:
    """The nodes of one data folder, by way of the two scripts."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.choose_ports()

    def choose_ports(self) -> None:
        self.http_port = free_ports(2 * len(NAMES))
        self.peer_port = self.http_port + len(NAMES)

    @property
    def ports(self) -> list[str]:
        return ["--http-port", str(self.http_port), "--peer-port", str(self.peer_port)]

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.script("up", *self.ports)

    def must_be_up(self) -> str:
        """Runs `up` where it must succeed; returns what it said."""
        done = self.up()
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def must_be_down(self) -> None:
        done = self.down()
        assert done.returncode == 0, done.stderr

    def down(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.script("down", *args)

    def script(self, name: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "compose" / name, "--data", self.data, *args],
            cwd=self.data.parent,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def pid(self, name: str) -> int:
        return int((self.data / f"{name}.pid").read_text())

    def pids(self) -> dict[str, int]:
        return {name: self.pid(name) for name in NAMES}

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to the node's process and waits for its end."""
        ended = os.pidfd_open(self.pid(name))
        try:
            os.kill(self.pid(name), number)
            assert select.select([ended], [], [], 20)[0], f"{name} goes on"
        finally:
            os.close(ended)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http_port + NAMES.index(name)}"

    def peer(self, name: str) -> str:
        return f"127.0.0.1:{self.peer_port + NAMES.index(name)}"

    def ask(self, name: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url(name) + path, data=data, timeout=10) as answer:
            return json.load(answer)

    def status(self, name: str) -> Any:
        return self.ask(name, "/status")

    def read(self, name: str, key: str) -> Any:
        return self.ask(name, f"/read/{key}")["value"]

    def put_and_read_everywhere(self, value: str) -> None:
        """Puts it on web1 and reads it on each node, as soon as that has it."""
        seq = self.ask("web1", "/put", {"key": "key", "value": value})["seq"]
        for name in NAMES:
            assert self.ask(name, f"/read/key?min_seq={seq}&wait=10")["value"] == value


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Nodes of the test's own, none of them started yet."""
    nodes = Nodes(tmp_path / "the data")
    yield nodes
    nodes.must_be_down()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster that several tests use, because a start takes a while; each leaves all three nodes running."""
    nodes = Nodes(tmp_path_factory.mktemp("cluster") / "the data")
    yield nodes
    nodes.must_be_down()


def test_two_ups_at_once_start_each_node_once(cluster: Nodes) -> None:
    cluster.must_be_down()
    command = [ROOT / "compose" / "up", "--data", cluster.data, *cluster.ports]
    ups = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [up.communicate(timeout=100)[0] for up in ups]
    assert [up.returncode for up in ups] == [0, 0]
    assert sorted(text.count("already running") for text in said) == [0, len(NAMES)]


def test_all_three_are_ready_and_a_second_up_leaves_them_alone(cluster: Nodes) -> None:
    said = cluster.must_be_up()
    assert f"up: web1 is ready on {cluster.url('web1')}, the primary\n" in said
    for name in ("web2", "web3"):
        assert f"up: {name} is ready on {cluster.url(name)}, a replica of web1\n" in said
    cluster.put_and_read_everywhere("hello")
    assert [cluster.status(name)["role"] for name in NAMES] == ["primary", "replica", "replica"]

    # What runs is told by where it runs, whatever ports are asked for now.
    pids = cluster.pids()
    second = cluster.script("up", "--http-port", str(free_ports(3)))
    assert (second.returncode, second.stderr) == (0, "")
    for name in NAMES:
        assert f"{name} is already running (pid {pids[name]})" in second.stdout
    assert f"{cluster.url('web1')}/put" in second.stdout
    assert cluster.pids() == pids


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_printed_lines_work_as_printed(cluster: Nodes) -> None:
    put, read, status = cluster.must_be_up().splitlines()[-3:]

    def run(line: str) -> Any:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    written = run(f"{put} -sS --noproxy '*'")
    assert written["status"] == "OK"
    # A program is faster than hands, and may be faster than the replica.
    assert run(f"{read}?min_seq={written['seq']} -sS --noproxy '*'") == {"key": "greeting", "value": "hello"}
    assert {replica["name"] for replica in run(f"{status} --json")["replicas"]} == {"web2", "web3"}


@pytest.mark.parametrize("killed", [{"web1"}, {"web2", "web3"}], ids=["primary", "replicas"])
def test_killed_nodes_are_started_again(cluster: Nodes, killed: set[str]) -> None:
    cluster.must_be_up()
    cluster.put_and_read_everywhere("before")
    before = cluster.pids()
    for name in killed:
        cluster.end(name)
    said = cluster.must_be_up()
    assert {name for name in NAMES if f"{name} is already running" not in said} == killed
    assert {name for name, pid in cluster.pids().items() if pid != before[name]} == killed
    assert [cluster.read(name, "key") for name in NAMES] == ["before"] * 3
    cluster.put_and_read_everywhere("after")


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no node."""
    stranger = subprocess.Popen(["sleep", "100"])
    yield stranger
    stranger.kill()
    stranger.wait(timeout=20)


def test_process_id_that_went_to_another_program_is_left_alone(
    cluster: Nodes, nodes: Nodes, stranger: subprocess.Popen[bytes]
) -> None:
    nodes.data.mkdir()
    (nodes.data / "web2.pid").write_text(f"{stranger.pid}\n")
    assert "web2 is not running" in nodes.down().stdout
    assert stranger.poll() is None

    cluster.must_be_up()
    cluster.end("web2")
    (cluster.data / "web2.pid").write_text(f"{stranger.pid}\n")
    assert "web2 is already running" not in cluster.must_be_up()
    assert cluster.pid("web2") != stranger.pid
    assert stranger.poll() is None


def test_a_directory_of_web1_alone_gets_its_replicas_each_for_itself(nodes: Nodes) -> None:
    with NodeProcess(nodes.data / "web1", "--name", "web1", "--http", f"127.0.0.1:{nodes.http_port}"):
        nodes.ask("web1", "/put", {"key": "key", "value": "old"})
    (nodes.data / "web2").write_text("a file where the node's folder should be")
    done = nodes.up()
    assert done.returncode == 1
    assert "web2 has stopped instead of getting ready" in done.stderr
    assert f"up: web3 is ready on {nodes.url('web3')}, a replica of web1\n" in done.stdout

    (nodes.data / "web2").unlink()
    nodes.must_be_up()
    assert [nodes.read(name, "key") for name in NAMES] == ["old"] * 3


def test_down_keeps_the_data_which_come_up_on_other_ports_and_purge_deletes_them(nodes: Nodes) -> None:
    nodes.must_be_up()
    nodes.put_and_read_everywhere("kept")
    down = nodes.down()
    # The primary last.
    said = "".join(f"down: {name} has stopped\n" for name in ("web2", "web3", "web1"))
    assert (down.returncode, down.stdout, down.stderr) == (0, said, "")
    assert nodes.down().stdout == "".join(f"down: {name} is not running\n" for name in ("web2", "web3", "web1"))

    nodes.choose_ports()
    nodes.must_be_up()
    assert [nodes.read(name, "key") for name in NAMES] == ["kept"] * 3
    assert nodes.status("web3")["primary"]["address"] == nodes.peer("web1")
    purge = nodes.down("--purge")
    assert purge.returncode == 0, purge.stderr
    assert not nodes.data.exists()
    assert "nothing to stop" in nodes.down("--purge").stdout


# ---- who is the primary ----------------------------------------------------------------------------------------


def test_a_promotion_by_hand_stays_and_the_former_primary_can_join(nodes: Nodes) -> None:
    nodes.must_be_up()
    nodes.put_and_read_everywhere("before")
    pids = nodes.pids()
    epoch = nodes.ask("web2", "/cluster/promote", {"force": True})["epoch"]

    # What runs is left alone, as always, and what would be better is said.
    done = nodes.up()
    assert done.returncode == 1
    assert f"up: web2 is ready on {nodes.url('web2')}, the primary\n" in done.stdout
    assert f"To let it follow web2, stop it with 'kill {pids['web1']}', run this" in done.stderr
    assert f"web3 still follows {nodes.peer('web1')}" in done.stderr
    assert f"'kill {pids['web3']}'" in done.stderr
    assert nodes.pids() == pids
    assert nodes.status("web2")["epoch"] == epoch

    # When all have to be started, the former primary is not: on other ports it could not even ask who came after it.
    for name in NAMES:
        nodes.end(name)
    nodes.choose_ports()
    done = nodes.up()
    assert done.returncode == 1
    assert f"up: web2 is ready on {nodes.url('web2')}, the primary\n" in done.stdout
    assert f"up: web3 is ready on {nodes.url('web3')}, a replica of web2\n" in done.stdout
    assert "web1 was the primary before web2" in done.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", nodes.http_port)).close()

    # The line that was printed, as printed.
    (line,) = [line for line in done.stderr.splitlines() if " join " in line]
    command = shlex.split(line)
    assert command[1:3] == ["join", nodes.peer("web2")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as join:
        assert join.stderr is not None
        assert any("event=joined" in log_line for log_line in join.stderr)
        join.send_signal(signal.SIGINT)
        join.stderr.read()
    assert join.returncode == 0
    assert f"up: web1 is ready on {nodes.url('web1')}, a replica of web2\n" in nodes.must_be_up()
    nodes.put_and_read_everywhere("after")
    assert [line.split()[1] for line in nodes.down().stdout.splitlines()] == ["web1", "web3", "web2"]


def test_without_a_primary_replicas_go_on_and_no_new_cluster_is_made(nodes: Nodes) -> None:
    nodes.must_be_up()
    nodes.put_and_read_everywhere("safe")
    nodes.must_be_down()
    shutil.rmtree(nodes.data / "web1")
    done = nodes.up()
    assert done.returncode == 1
    assert "none of the nodes is a primary" in done.stderr
    assert "web1 is not started: it is new, and there is no primary" in done.stderr
    assert not (nodes.data / "web1").exists()
    for name in ("web2", "web3"):
        assert f"up: {name} is ready on {nodes.url(name)}, a replica\n" in done.stdout
        assert nodes.read(name, "key") == "safe"

    # One that is promoted is joined, by a new web1 as well, once the name of the lost one is free.
    nodes.ask("web2", "/cluster/promote", {})
    nodes.ask("web2", "/cluster/forget", {"name": "web1"})
    nodes.end("web3", signal.SIGTERM)
    nodes.must_be_up()
    assert nodes.read("web1", "key") == "safe"


def test_a_primary_that_takes_no_writes_is_named(nodes: Nodes) -> None:
    """One that knows of a later primary, which is none of the three."""
    with NodeProcess(nodes.data / "web1", "--name", "web1"):
        pass
    files = StateFiles(RealFs(), Layout(nodes.data / "web1"))
    identity = files.load_identity()
    assert identity is not None
    files.save_identity(replace(identity, superseded_term=7))
    done = nodes.up()
    assert done.returncode == 1
    assert "web1 takes no writes: a later primary than web1 has reigned with term 7." in done.stderr
    assert "Try it" not in done.stdout


# ---- what can go wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(2 * len(NAMES)))
def test_taken_port_is_named_and_nothing_is_started(nodes: Nodes, offset: int) -> None:
    port = nodes.http_port + offset
    with socket.create_server(("127.0.0.1", port)):
        done = nodes.up()
    assert done.returncode == 1
    name = NAMES[offset % len(NAMES)]
    assert f"{name} cannot start: 127.0.0.1:{port} is taken by another program" in done.stderr
    # Without a log a later purge knows that nothing here was made by a node.
    assert list(nodes.data.iterdir()) == []


def test_node_that_ends_while_starting_shows_its_own_log(nodes: Nodes) -> None:
    nodes.data.mkdir()
    (nodes.data / "web1").write_text("a file where the node's folder should be")
    (nodes.data / "web1.log").write_text("from an earlier run\n")
    done = nodes.up()
    assert done.returncode == 1
    assert "web1 has stopped instead of getting ready" in done.stderr
    said = done.stderr.partition("web1.log:\n")[2]
    assert said.strip()
    assert "from an earlier run" not in said
    for name in NAMES:
        assert not (nodes.data / f"{name}.pid").exists()
    assert "web2 is not started: it is new" in done.stderr


def test_purge_keeps_what_somebody_else_uses(nodes: Nodes) -> None:
    for name in NAMES:
        (nodes.data / name).mkdir(parents=True)
        (nodes.data / name / "LOCK").touch()
        (nodes.data / f"{name}.log").touch()
    with (nodes.data / "web2" / "LOCK").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = nodes.down("--purge")
        assert done.returncode == 1
        assert f"{nodes.data}/web2 is kept" in done.stderr
        assert sorted(path.name for path in nodes.data.iterdir()) == ["web2", "web2.log"]
    assert nodes.down("--purge").returncode == 0
    assert not nodes.data.exists()


def test_purge_touches_only_what_up_has_made(nodes: Nodes) -> None:
    bystanders = [nodes.data / name / "diary" for name in NAMES]
    for bystander in bystanders:
        bystander.parent.mkdir(parents=True)
        bystander.write_text("not a node's")
    assert nodes.down("--purge").returncode == 0
    assert all(bystander.exists() for bystander in bystanders)


@pytest.mark.parametrize(
    "ports",
    [("5x", "7001"), ("5001", "70 1"), ("65534", "7001"), ("5001", "100000"), ("6001", "6003"), ("6003", "6001")],
    ids=" ".join,
)
def test_ports_that_cannot_be_touch_nothing(nodes: Nodes, ports: tuple[str, str]) -> None:
    done = subprocess.run(
        [ROOT / "compose" / "up", "--data", nodes.data, "--http-port", ports[0], "--peer-port", ports[1]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "port" in done.stderr
    assert not nodes.data.exists()


@pytest.mark.parametrize("args", [["--dta", "x"], ["--data"], ["--data", ""], ["extra"]])
@pytest.mark.parametrize("name", ["up", "down"])
def test_unknown_argument_does_nothing(nodes: Nodes, name: str, args: list[str]) -> None:
    done = nodes.script(name, *args)
    assert done.returncode == 1
    assert not nodes.data.exists()
