"""Every command of the CLI against a real node, with real processes on both sides."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.debian_packages import Record, index_lines, records, synthetic, to_line
from support.node_process import NodeProcess

KVNODE = [sys.executable, "-P", "-m", "kvnode.cli"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "data") as running:
        yield running


@pytest.fixture
def kvnode(node: NodeProcess) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `kvnode ARGS...` against the node."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*KVNODE, *arguments],
            env={**os.environ, "KVNODE_URL": node.url},
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


Kvnode = Callable[..., subprocess.CompletedProcess[str]]


def test_put_get_delete(kvnode: Kvnode) -> None:
    key = "a/ü?#%2F \U0001f600"
    assert kvnode("put", key, "hello").stdout == "OK\n"
    assert kvnode("get", key).stdout == "hello\n"
    put = json.loads(
        kvnode("put", key, "-j", '{"n" : 12345678901234567890, "s": "\\ud800", "f": 1.0}', "--json").stdout
    )
    assert (put["status"], put["key"], put["seq"]) == ("OK", key, 2)
    got = kvnode("get", key, "--json").stdout
    assert '"value":{"n" : 12345678901234567890, "s": "\\ud800", "f": 1.0},' in got
    assert json.loads(got)["version"] == f"{put['epoch']}-2"
    assert json.loads(got)["seq"] == 2
    deleted = json.loads(kvnode("delete", key, "--json").stdout)
    assert deleted == {"key": key, "deleted": True, "seq": 3, "epoch": put["epoch"]}
    for command in ("get", "delete"):
        missing = kvnode(command, key)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert missing.stderr == "error: no such key (key_not_found)\n"


def test_odd_keys(kvnode: Kvnode) -> None:
    keys = [".", "..", "/", "a\nb", "\x01", "x" * 4096, "ü" * 2048]
    for key in keys:
        assert kvnode("put", "--", key, "1").stdout == "OK\n"
        assert kvnode("get", "--", key).stdout == "1\n"
    longest = "ü" * 2048
    for bounds in (["--start", longest, "--end", longest], ["--prefix", longest, "--start", longest, "--limit", "1"]):
        assert json.loads(kvnode("range", *bounds, "--json").stdout) == {"key": longest, "value": "1"}
    for key in keys[:2]:
        assert kvnode("delete", "--", key).stdout == "deleted\n"
    listed = [json.loads(line)["key"] for line in kvnode("range", "--json").stdout.splitlines()]
    assert listed == sorted(keys[2:], key=str.encode)


def test_a_refused_request_says_why(kvnode: Kvnode) -> None:
    refused = kvnode("put", "x" * 4097, "1", "--json")
    assert refused.returncode == 1
    error = json.loads(refused.stderr)["error"]
    assert (error["code"], error["max"], error["sent"]) == ("too_large", 4096, 4097)
    assert kvnode("range", "--start", "b", "--end", "a").stderr.endswith("(invalid_request)\n")


def test_range(kvnode: Kvnode) -> None:
    lines = "".join(to_line({"key": key, "value": key.upper()}) + "\n" for key in ("a", "b/1", "b/2", "c", "ü"))
    assert kvnode("load", "-", stdin=lines).returncode == 0
    assert kvnode("range", "--prefix", "b/").stdout == 'b/1\t"B/1"\nb/2\t"B/2"\n'
    assert kvnode("range", "--start", "b/2", "--end", "c", "--reverse").stdout == 'c\t"C"\nb/2\t"B/2"\n'
    first = kvnode("range", "--limit", "2", "--json")
    assert first.stdout == '{"key":"a","value":"A"}\n{"key":"b/1","value":"B/1"}\n'
    assert json.loads(first.stderr) == {"next_key": "b/2"}
    rest = kvnode("range", "--start", "b/2")
    assert (rest.stdout, rest.stderr) == ('b/2\t"B/2"\nc\t"C"\nü\t"Ü"\n', "")


def test_status(kvnode: Kvnode) -> None:
    kvnode("put", "a", "1")
    fields = json.loads(kvnode("status", "--json").stdout)
    assert (fields["role"], fields["applied_seq"], fields["durable_seq"]) == ("primary", 1, 1)
    shown = {line.split()[0]: line for line in kvnode("status").stdout.splitlines()}
    assert fields["name"] in shown["node"]
    assert shown["seq"].split() == ["seq", "last", "1,", "durable", "1,", "applied", "1"]


# ---- load and dump ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packages() -> list[Record]:
    """Debian's package index; made up where it cannot be had."""
    try:
        found = list(records(index_lines()))
    except (OSError, subprocess.CalledProcessError):
        found = []
    return found if len(found) >= 1000 else list(synthetic(40_000, seed=1))


@pytest.fixture
def packages_file(packages: list[Record], tmp_path: Path) -> Path:
    path = tmp_path / "packages.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_line(record) + "\n" for record in packages)
    return path


def read_lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def in_key_order(items: list[Record]) -> list[Record]:
    return sorted(items, key=lambda item: item["key"].encode())


@pytest.mark.timeout(180)
def test_the_package_index_goes_in_and_comes_out(
    kvnode: Kvnode, packages: list[Record], packages_file: Path, tmp_path: Path
) -> None:
    loaded = kvnode("load", str(packages_file), "--json")
    assert (loaded.returncode, loaded.stderr) == (0, "")
    assert json.loads(loaded.stdout)["acknowledged"] == len(packages)
    out = tmp_path / "out.jsonl"
    assert kvnode("dump", "-o", str(out)).returncode == 0
    assert read_lines(out) == in_key_order(packages)
    # Loaded over itself, and dumped again, it is the same to the byte.
    assert kvnode("load", str(out)).returncode == 0
    again = tmp_path / "again.jsonl"
    assert kvnode("dump", "-o", str(again)).returncode == 0
    assert again.read_bytes() == out.read_bytes()


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if is_true():
            return
        pause.wait(0.005)
    raise AssertionError(f"{what} did not happen within 30 s")


def acknowledged_lines(acked: Path) -> int:
    return acked.read_bytes().count(b"\n") if acked.exists() else 0


@pytest.mark.timeout(180)
def test_what_was_acknowledged_before_a_kill_is_there_and_the_rest_can_be_loaded(
    node: NodeProcess, kvnode: Kvnode, packages: list[Record], packages_file: Path, tmp_path: Path
) -> None:
    acked, failed, out = (tmp_path / name for name in ("acked.jsonl", "failed.jsonl", "out.jsonl"))
    command = [*KVNODE, "load", str(packages_file), "--url", node.url, "--batch", "50", "--retries", "0", "--json"]
    with subprocess.Popen(
        [*command, "--acked", str(acked), "--failed", str(failed)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as load:
        wait_until(lambda: acknowledged_lines(acked) >= 40 or load.poll() is not None, "an acknowledgement")
        node.kill()
        stdout, _ = load.communicate(timeout=60)
    assert load.returncode == 1
    summary = json.loads(stdout)
    assert summary["acknowledged"] + summary["failed"] == len(packages)
    sure = [record for batch in read_lines(acked) for record in packages[batch["first_line"] - 1 : batch["last_line"]]]
    assert len(sure) == summary["acknowledged"] < len(packages)

    node.restart()
    assert kvnode("dump", "-o", str(out)).returncode == 0
    held = {item["key"]: item["value"] for item in read_lines(out)}
    assert all(held[record["key"]] == record["value"] for record in sure)
    assert len(sure) <= len(held) <= len(sure) + summary["unknown"]
    assert kvnode("load", str(failed)).returncode == 0
    assert kvnode("dump", "-o", str(out)).returncode == 0
    assert read_lines(out) == in_key_order(packages)


@pytest.mark.timeout(180)
def test_a_load_outlives_a_restart_of_the_node(
    node: NodeProcess, kvnode: Kvnode, packages: list[Record], packages_file: Path, tmp_path: Path
) -> None:
    acked, out = tmp_path / "acked.jsonl", tmp_path / "out.jsonl"
    command = [*KVNODE, "load", str(packages_file), "--url", node.url, "--batch", "50", "--retries", "20", "--json"]
    with subprocess.Popen([*command, "--acked", str(acked)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as load:
        for kind, acknowledged in ((node.kill, 20), (node.stop, 60)):
            wait_until(lambda: acknowledged_lines(acked) >= acknowledged, "an acknowledgement")  # noqa: B023
            kind()
            assert load.poll() is None, "it ended before the node did"
            node.start()
            node.wait_ready()
        stdout, stderr = load.communicate(timeout=90)
    assert (load.returncode, json.loads(stdout)["acknowledged"]) == (0, len(packages)), stderr
    assert json.loads(stdout)["retries"] > 0
    assert kvnode("dump", "-o", str(out)).returncode == 0
    assert read_lines(out) == in_key_order(packages)


@pytest.mark.timeout(180)
def test_a_dump_of_a_killed_node_never_looks_whole(
    node: NodeProcess, kvnode: Kvnode, packages_file: Path, tmp_path: Path
) -> None:
    assert kvnode("load", str(packages_file)).returncode == 0
    with subprocess.Popen([*KVNODE, "dump", "--url", node.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as dump:
        assert dump.stdout is not None
        # The pipe is full soon, and the dump waits; most of it is still to come.
        first = dump.stdout.readline()
        node.kill()
        out = dump.stdout.read()
        assert dump.stderr is not None
        error = dump.stderr.read()
    assert dump.returncode == 1
    count = (first + out).count(b"\n")
    assert f"the dump is incomplete, it broke off after {count:,} records".encode() in error
    assert (first + out).endswith(b"\n")


# ---- start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_node_exits_with_0_and_comes_back(node: NodeProcess, kvnode: Kvnode, number: signal.Signals) -> None:
    kvnode("put", "a", "1")
    assert node.process is not None
    node.process.send_signal(number)
    assert node.wait() == 0
    assert "Traceback" not in node.text
    gone = kvnode("get", "a")
    assert gone.returncode == 1
    assert "is the node running? `kvnode start`" in gone.stderr
    node.restart()
    assert kvnode("get", "a").stdout == "1\n"


def test_a_second_node_on_a_directory_is_refused(node: NodeProcess, kvnode: Kvnode) -> None:
    other = NodeProcess(node.data)
    other.start()
    assert other.wait() == 1
    assert "code=directory_locked" in other.text
    assert kvnode("put", "a", "1").returncode == 0


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        other = NodeProcess(tmp_path / "data", "--http", f"127.0.0.1:{server.getsockname()[1]}")
        other.start()
        assert other.wait() == 1
    assert "event=listen_failed" in other.text
    assert "Traceback" not in other.text


def test_wrong_settings_are_wrong_usage(tmp_path: Path) -> None:
    other = NodeProcess(tmp_path / "data", "--cache-bytes", "lots")
    other.start()
    assert other.wait() == 2
    assert "--cache-bytes: expected a size" in " ".join(other.text.split())
    assert not (tmp_path / "data").exists()
