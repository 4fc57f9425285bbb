"""compose/up and compose/down with real nodes, on free ports and in a data folder of their own."""

import fcntl
import json
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.project import ROOT

pytestmark = [
    pytest.mark.skipif(
        Path(sys.prefix) != ROOT / ".venv",
        reason="the scripts use the project's own .venv, which tests/run runs the tests in",
    ),
    # Each script may wait 15 s for a node.
    pytest.mark.timeout(120),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Nodes:
    """The nodes of one data folder, by way of the two scripts."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.http_port = free_port()
        self.peer_port = free_port()

    @property
    def pid(self) -> int:
        return int((self.data / "web1.pid").read_text())

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.script("up", "--http-port", str(self.http_port), "--peer-port", str(self.peer_port))

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

    def put(self, key: str, value: str) -> None:
        body = json.dumps({"key": key, "value": value}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/put", data=body, timeout=10) as answer:
            assert answer.status == 200

    def read(self, key: str) -> object:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/read/{key}", timeout=10) as answer:
            return json.load(answer)["value"]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path / "the data")
    yield nodes
    done = nodes.down()
    assert done.returncode == 0, done.stderr


def test_up_is_ready_and_a_second_up_leaves_it_alone(nodes: Nodes) -> None:
    first = nodes.up()
    assert first.returncode == 0, first.stderr
    assert f"up: web1 is ready on http://127.0.0.1:{nodes.http_port}\n" in first.stdout
    pid = nodes.pid

    # What runs is told by where it runs, whatever ports are asked for now.
    second = nodes.script("up", "--http-port", str(free_port()))
    assert second.returncode == 0, second.stderr
    assert f"web1 is already running (pid {pid})" in second.stdout
    assert f"http://127.0.0.1:{nodes.http_port}/put" in second.stdout
    assert nodes.pid == pid


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_printed_curl_lines_work_as_printed(nodes: Nodes) -> None:
    printed = nodes.up().stdout.splitlines()
    lines = [line.strip() for line in printed if line.strip().startswith("curl")]
    assert len(lines) == 3
    answers = []
    for line in lines:
        done = subprocess.run(["bash", "-c", f"{line} -sS --noproxy '*'"], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    put, read, scan = answers
    assert put["status"] == "OK"
    assert read == {"key": "greeting", "value": "hello"}
    assert scan["items"] == [{"key": "greeting", "value": "hello"}]


def test_down_keeps_the_data_and_purge_deletes_it(nodes: Nodes) -> None:
    assert nodes.up().returncode == 0
    nodes.put("kept", "yes")
    down = nodes.down()
    assert (down.returncode, down.stdout, down.stderr) == (0, "down: web1 has stopped\n", "")
    assert "web1 is not running" in nodes.down().stdout

    assert nodes.up().returncode == 0
    assert nodes.read("kept") == "yes"
    purge = nodes.down("--purge")
    assert purge.returncode == 0, purge.stderr
    assert not nodes.data.exists()
    assert "nothing to stop" in nodes.down("--purge").stdout


@pytest.mark.parametrize("taken", ["http_port", "peer_port"])
def test_taken_port_is_named_and_nothing_is_started(nodes: Nodes, taken: str) -> None:
    with socket.create_server(("127.0.0.1", getattr(nodes, taken))):
        done = nodes.up()
    assert done.returncode == 1
    assert f"127.0.0.1:{getattr(nodes, taken)} is taken by another program" in done.stderr
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
    assert not (nodes.data / "web1.pid").exists()


def test_process_id_that_went_to_another_program_is_left_alone(nodes: Nodes) -> None:
    nodes.data.mkdir()
    stranger = subprocess.Popen(["sleep", "100"])
    try:
        (nodes.data / "web1.pid").write_text(f"{stranger.pid}\n")
        assert "web1 is not running" in nodes.down().stdout
        (nodes.data / "web1.pid").write_text(f"{stranger.pid}\n")
        assert nodes.up().returncode == 0
        assert nodes.pid != stranger.pid
        assert nodes.down().returncode == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(timeout=20)


def test_purge_keeps_what_somebody_else_uses(nodes: Nodes) -> None:
    assert nodes.up().returncode == 0
    assert nodes.down().returncode == 0
    with (nodes.data / "web1" / "LOCK").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = nodes.down("--purge")
        assert done.returncode == 1
        assert "is kept" in done.stderr
        assert (nodes.data / "web1" / "LOCK").exists()
    assert nodes.down("--purge").returncode == 0
    assert not nodes.data.exists()


def test_purge_touches_only_what_up_has_made(nodes: Nodes) -> None:
    bystander = nodes.data / "web1" / "diary"
    bystander.parent.mkdir(parents=True)
    bystander.write_text("not a node's")
    assert nodes.down("--purge").returncode == 0
    assert bystander.exists()


def test_two_ups_at_once_start_one_node(nodes: Nodes) -> None:
    ports = ["--http-port", str(nodes.http_port), "--peer-port", str(nodes.peer_port)]
    command = [ROOT / "compose" / "up", "--data", nodes.data, *ports]
    ups = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [up.communicate(timeout=100)[0] for up in ups]
    assert [up.returncode for up in ups] == [0, 0]
    assert sorted("already running" in text for text in said) == [False, True]


@pytest.mark.parametrize("args", [["--dta", "x"], ["--data"], ["--data", ""], ["extra"]])
@pytest.mark.parametrize("name", ["up", "down"])
def test_unknown_argument_does_nothing(nodes: Nodes, name: str, args: list[str]) -> None:
    done = nodes.script(name, *args)
    assert done.returncode == 1
    assert not nodes.data.exists()
