"""`kvnode bench` as a user calls it: what it prints, what it refuses, and how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import main
from kvnode.cli.bench.runner import Outcome, Plan
from kvnode.cli.bench.workload import Kind
from kvnode.cli.commands.bench import parse_mix, parse_sizes
from support.stub_server import Answer, StubServer

Kvnode = Callable[..., Result]

#: A run that is over soon.
SHORT = ("bench", "--requests", "60", "--warmup", "0", "--keys", "40", "-c", "4")


def test_the_report(kvnode: Kvnode, stub: StubServer) -> None:
    stub.status = {"name": "n1\x1b[2J", "role": "replica", "version": "9.9"}
    result = kvnode(*SHORT, "--mix", "put=2,get=1,range", "--value-size", "5-8")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert lines >= {
        f"node n1\\x1b[2J (replica) at {stub.url}, kvnode 9.9",
        "mix put=2, get=1, range=1",
        "keys 40 of 24 bytes, uniform",
        "values 5 to 8 bytes",
        "load 4 connections, each as fast as it is answered",
        "operation count per second errors p50 p90 p99 p99.9 max",
    }
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert sum(int(rows[name][1]) for name in ("put", "get", "range")) == int(rows["all"][1]) == 60
    assert "\x1b" not in result.stdout
    assert [line for line in result.stdout.splitlines() if line.endswith(" ")] == []
    assert len(stub.records) == 40
    assert all(key.startswith("bench/") for key in stub.records)


def test_in_json_all_numbers_are_there(kvnode: Kvnode, stub: StubServer) -> None:
    result = kvnode(*SHORT, "--json", "--mix", "put,get", "--seed", "7")
    said: dict[str, Any] = json.loads(result.stdout)
    assert said["nodes"] == [{"url": stub.url, "name": "stub", "role": "primary", "version": None}]
    assert said["workload"]["mix"] == {"put": 1, "get": 1}
    assert said["workload"]["seed"] == 7
    assert said["interrupted"] is False
    assert said["deleted"] is None
    total = said["all"]
    assert total["count"] == sum(each["count"] for each in said["operations"].values()) == 60
    assert total["per_second"] == pytest.approx(60 / said["seconds"], rel=0.01)
    times = total["latency_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]
    assert total["errors"] == {}
    assert total["received_bytes"] == said["operations"]["get"]["count"] * 102


def test_errors_are_counted_and_make_the_exit_code_1(kvnode: Kvnode, stub: StubServer) -> None:
    stub.faults["/put"].extend([Answer(507, "storage_full")] * 2)
    result = kvnode(*SHORT, "--mix", "put")
    assert result.exit_code == 1
    assert "errors   storage_full 2" in result.stdout
    stub.faults["/put"].extend([Answer(507, "storage_full")] * 2)
    result = kvnode(*SHORT, "--mix", "put", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["all"]["errors"] == {"storage_full": 2}


@pytest.mark.parametrize(
    ("mix", "is_filled"), [("put", False), ("get", True), ("delete", False), ("range=1,put", True)]
)
def test_keys_are_written_before_where_they_are_read(
    kvnode: Kvnode, stub: StubServer, mix: str, is_filled: bool
) -> None:
    assert kvnode(*SHORT, "--mix", mix).exit_code == 0
    assert bool(stub.bodies("/batchput")) is is_filled
    stub.requests.clear()
    assert kvnode(*SHORT, "--mix", mix, "--no-fill" if is_filled else "--fill").exit_code == 0
    assert bool(stub.bodies("/batchput")) is not is_filled


def test_a_node_that_takes_no_writes_is_told_with_a_way_out(kvnode: Kvnode, stub: StubServer) -> None:
    stub.faults["/batchput"].extend([Answer(503, "no_primary")] * 9)
    result = kvnode(*SHORT, "--mix", "get")
    assert result.exit_code == 1
    assert "(no_primary)\nhint: --no-fill" in result.stderr


def test_cleaning_up_leaves_other_keys_alone(kvnode: Kvnode, stub: StubServer) -> None:
    stub.records.update({"bench/mine": (1, "1"), "a": (1, "1")})
    result = kvnode(*SHORT, "--cleanup", "--mix", "get,put")
    assert "deleted  40 keys" in result.stdout
    assert stub.records.keys() == {"bench/mine", "a"}


def test_results_are_shown_also_where_cleaning_up_fails(kvnode: Kvnode, stub: StubServer) -> None:
    stub.faults["/delete"].extend([Answer(500, "internal")] * 9)
    result = kvnode(*SHORT, "--cleanup", "--mix", "put", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["all"]["count"] == 60
    assert json.loads(result.stderr)["error"]["code"] == "internal"


def test_nobody_there() -> None:
    # Bound, so that nobody else gets the port meanwhile, and not listening.
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        result = CliRunner().invoke(main, ["bench", "--url", url], catch_exceptions=False)
    assert result.exit_code == 1
    assert "(unreachable)\nhint: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mix", "put=1,pull=2"], "there is no operation 'pull', only put, get, delete, batch, range"),
        (["--mix", "put=x"], "expected a number of at least 0 behind put=, got 'x'"),
        (["--mix", "put=nan"], "expected a number"),
        (["--mix", "put=1,put=2"], "put is there twice"),
        (["--mix", "get=0"], "all weights are 0"),
        (["--mix", ""], "there is no operation ''"),
        (["--prefix", ""], "without a prefix it would write among your own keys"),
        (["--prefix", "\udcff"], "it is not UTF-8"),
        (["--keys", "0"], "--keys"),
        (["--key-size", "8"], "10,000 keys with the prefix 'bench/' take at least 10 bytes each, not 8"),
        (["--value-size", "9-3"], "9 is above 3"),
        (["--value-size", "-3"], "expected a size"),
        (["--value-size", "100GiB"], "over the limit"),
        (["--connections", "0"], "--connections"),
        (["--processes", "3", "--connections", "2"], "--processes 3 is more than --connections 2"),
        (["--rate", "0"], "--rate"),
        (["--seconds", "-1"], "--seconds"),
        (["--requests", "0"], "--requests"),
        (["--distribution", "normal"], "--distribution"),
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(
    kvnode: Kvnode, stub: StubServer, arguments: list[str], message: str
) -> None:
    result = kvnode("bench", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not stub.requests


def test_a_mix_and_sizes_are_read() -> None:
    assert parse_mix("put=50, get=45.5 ,range,delete=0") == {Kind.PUT: 50, Kind.GET: 45.5, Kind.RANGE: 1}
    assert parse_sizes("10-1KiB") == (10, 1024)
    assert parse_sizes("4KiB") == (4096, 4096)


@pytest.mark.parametrize(("cleanup", "said"), [([], ""), (["--cleanup"], "keys that begin with bench/ may be left")])
def test_ctrl_c_pressed_again_says_that_keys_are_left_where_they_should_not_be(
    kvnode: Kvnode, monkeypatch: pytest.MonkeyPatch, cleanup: list[str], said: str
) -> None:
    def broken_off(plan: Plan) -> tuple[Outcome, bool]:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvnode.cli.commands.bench.measure", broken_off)
    result = kvnode(*SHORT, "--mix", "put", *cleanup)
    assert (result.exit_code, result.stdout) == (130, "")
    assert said in result.stderr
    assert bool(result.stderr) is bool(cleanup)
    assert ("--cleanup, --no-fill and --requests 1" in result.stderr) is bool(cleanup)


def test_results_are_shown_also_where_the_deletion_is_broken_off(
    kvnode: Kvnode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken_off(plan: Plan, stop: asyncio.Event) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvnode.cli.commands.bench.clean_up", broken_off)
    result = kvnode(*SHORT, "--cleanup", "--mix", "put", "--json")
    assert result.exit_code == 130
    said = json.loads(result.stdout)
    assert (said["all"]["count"], said["deleted"]) == (60, None)
    assert json.loads(result.stderr)["warning"]["code"] == "interrupted"


def test_requests_without_an_answer_are_told(kvnode: Kvnode, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(plan: Plan) -> tuple[Outcome, bool]:
        outcome = Outcome.of_nothing(plan.workload)
        outcome.add(replace(Outcome.of_nothing(plan.workload), unanswered=16))
        return outcome, True

    monkeypatch.setattr("kvnode.cli.commands.bench.measure", interrupted)
    result = kvnode(*SHORT, "--mix", "put")
    assert result.exit_code == 130
    assert "unanswered  16 requests had no answer yet at the end" in result.stdout
    assert json.loads(kvnode(*SHORT, "--mix", "put", "--json").stdout)["unanswered"] == 16


def interrupted(stub: StubServer, *arguments: str, when: Callable[[], bool]) -> tuple[int, dict[str, Any], str]:
    """Press Ctrl-C in a benchmark once something is so; its exit code, what it says on stdout, and on stderr."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "kvnode.cli", "bench", "--json", *arguments],
        env={**os.environ, "KVNODE_URL": stub.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        pause = threading.Event()
        while process.poll() is None and not when():
            pause.wait(0.002)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    return process.returncode, json.loads(stdout), stderr.decode()


def test_ctrl_c_while_the_keys_are_written_deletes_those_that_are(stub: StubServer) -> None:
    stub.records["bench/mine"] = (1, "1")
    options = ("--keys", "100000", "--value-size", "100KiB", "-c", "2", "--cleanup")
    code, said, stderr = interrupted(stub, *options, when=lambda: len(stub.bodies("/batchput")) >= 3)
    assert (code, stderr) == (130, "")
    assert (said["interrupted"], said["all"]["count"], said["seconds"]) == (True, 0, 0)
    assert 20 <= said["deleted"] < 100_000
    assert stub.records.keys() == {"bench/mine"}


def test_ctrl_c_while_the_keys_are_deleted_shows_the_results_and_says_that_some_are_left(stub: StubServer) -> None:
    stub.records.update({f"bench/{number:018}": (1, "1") for number in range(5000)})
    options = ("--mix", "put", "--requests", "20", "--warmup", "0", "--cleanup")
    code, said, stderr = interrupted(stub, *options, when=lambda: len(stub.bodies("/delete")) >= 3)
    assert code == 130
    assert said["all"]["count"] == 20
    assert said["interrupted"] is False
    assert 3 <= said["deleted"] < 5000
    assert len(stub.records) > 0
    assert json.loads(stderr)["warning"]["code"] == "interrupted"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_ends_it_with_the_results_so_far(stub: StubServer, processes: str) -> None:
    command = ["bench", "--seconds", "1000", "--warmup", "0", "--mix", "put", "--json", "--processes", processes]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "kvnode.cli", *command],
        env={**os.environ, "KVNODE_URL": stub.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As from a terminal, the signal goes to all processes of it.
        process_group=0,
    ) as process:
        pause = threading.Event()
        for _ in range(6000):
            if len(stub.bodies("/put")) >= 20:
                break
            pause.wait(0.005)
        masks = blocked_signals(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"")
    # Blocked, not ignored: only that can be so from the beginning of a process.
    assert len(masks) == (int(processes) if processes != "1" else 0)
    assert all(mask >> (signal.SIGINT - 1) & 1 for mask in masks)
    said = json.loads(stdout)
    assert said["interrupted"] is True
    assert said["workload"]["processes"] == int(processes)
    assert 20 - 16 <= said["all"]["count"] <= len(stub.bodies("/put"))
    assert 0 < said["client_busy"] <= 1.5


def blocked_signals(pid: int) -> list[int]:
    """The signals that each process of a benchmark blocks, as bits, but for the first process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    shares = [
        Path("/proc") / child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    fields = [dict(line.split(":\t") for line in (share / "status").read_text().splitlines()) for share in shares]
    return [int(each["SigBlk"], 16) for each in fields]


def test_processes_share_the_work(stub: StubServer) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kvnode.cli", *SHORT, "--mix", "put", "--json", "--processes", "2"],
        env={**os.environ, "KVNODE_URL": stub.url},
        capture_output=True,
        timeout=50,
        check=True,
    )
    assert json.loads(done.stdout)["all"]["count"] == 60
    assert len(stub.bodies("/put")) == 60
    assert len(set(stub.bodies("/put"))) > 30, "each connection chooses for itself"
