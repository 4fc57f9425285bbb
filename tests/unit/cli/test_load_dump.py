"""`load` and `dump` as commands: files and pipes, summaries, exit codes, and interruptions."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from support.stub_server import EPOCH, Answer, Cut, CutStream, StubServer

Kvnode = Callable[..., Result]

KVNODE = [sys.executable, "-P", "-m", "kvnode.cli"]


def line(key: str, value: object = 1) -> str:
    return json.dumps({"key": key, "value": value})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes lines to a file and returns its name."""

    def write_lines(*lines: str, name: str = "records.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return str(path)

    return write_lines


def summary_of(result: Result) -> dict[str, object]:
    summary: dict[str, object] = json.loads(result.stdout)
    return summary


# ---- load ------------------------------------------------------------------------------------------------------


def test_load(kvnode: Kvnode, stub: StubServer, write: Callable[..., str]) -> None:
    path = write(*(line(f"k{number}", number) for number in range(2500)))
    result = kvnode("load", path)
    assert result.exit_code == 0
    assert result.stdout.startswith("2,500 records loaded in ")
    assert result.stderr == ""
    assert stub.values() == {f"k{number}": str(number) for number in range(2500)}
    assert sorted(body.count(b'"key"') for body in stub.bodies("/batchput")) == [500, 1000, 1000]


def test_load_keeps_the_bytes_of_the_values(kvnode: Kvnode, stub: StubServer, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(
        b'{"key":"a","value":1.0}\r\n\n{"value" : "\\ud800\\u00fc" , "key" : "b"}\n{"key":"c","value":[ 1e400 ]}'
    )
    assert kvnode("load", str(path)).exit_code == 0
    assert stub.values() == {"a": "1.0", "b": '"\\ud800\\u00fc"', "c": "[ 1e400 ]"}


def test_load_json_summary(kvnode: Kvnode, write: Callable[..., str]) -> None:
    summary = summary_of(kvnode("load", write(line("a"), line("b")), "--batch", "1", "--json"))
    assert isinstance(summary.pop("seconds"), float)
    assert summary == {
        "acknowledged": 2,
        "failed": 0,
        "bad": 0,
        "rejected": 0,
        "unknown": 0,
        "unwritten": 0,
        "unsent": 0,
        "stopped_at_line": None,
        "interrupted": False,
        "batches": 2,
        "retries": 0,
        "seq": 2,
        "epoch": EPOCH,
    }


def test_load_of_nothing(kvnode: Kvnode, stub: StubServer, write: Callable[..., str]) -> None:
    result = kvnode("load", write(), "--json")
    assert (result.exit_code, summary_of(result)["acknowledged"], stub.requests) == (0, 0, [])


def test_bad_and_refused_lines_are_named_counted_and_kept(
    kvnode: Kvnode, stub: StubServer, write: Callable[..., str], tmp_path: Path
) -> None:
    long_key = line("x" * 5000)
    path = write(line("a"), "bad", line("b"), long_key, line("c"), '{"key": "d"}')
    failed = tmp_path / "failed.jsonl"
    result = kvnode("load", path, "--failed", str(failed))
    assert result.exit_code == 1
    assert set(stub.values()) == {"a", "b", "c"}
    bad, missing, refused = sorted(result.stderr.splitlines(), key=lambda text: text.endswith("(rejected)"))
    assert bad.startswith(f"error: {path}:2: JSON is malformed")
    assert bad.endswith("(bad_line)")
    assert missing == f"error: {path}:6: Object missing required field `value` (bad_line)"
    assert refused == (f"error: {path}:4: refused: key is limited to 4096, got 5000 (too_large) (rejected)")
    assert "3 failed: 2 bad, 1 rejected" in result.stdout
    assert sorted(failed.read_text().splitlines()) == sorted(["bad", long_key, '{"key": "d"}'])


def test_errors_of_lines_in_json(kvnode: Kvnode, write: Callable[..., str]) -> None:
    result = kvnode("load", write("bad"), "--json")
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["first_line"], error["last_line"]) == ("bad_line", 1, 1)
    assert summary_of(result)["bad"] == 1


def test_a_bad_line_can_stop_it(kvnode: Kvnode, stub: StubServer, write: Callable[..., str]) -> None:
    result = kvnode("load", write(line("a"), "bad", line("b")), "--stop-on-error")
    assert result.exit_code == 1
    assert set(stub.values()) == {"a"}
    assert "1 failed: 1 bad; stopped, line 3 and what follows was not sent" in result.stdout


def test_what_passes_is_waited_for(kvnode: Kvnode, stub: StubServer, write: Callable[..., str]) -> None:
    stub.faults["/batchput"].extend(
        [Answer(503, "overloaded", retry_after=0), Answer(504, "outcome_unknown", is_written=True), Cut(), Cut(True)]
    )
    path = write(*(line(f"k{number % 7}", number) for number in range(30)))
    result = kvnode("load", path, "--batch", "5", "--json")
    assert result.exit_code == 0
    assert summary_of(result)["retries"] == 4
    assert stub.values() == {f"k{number % 7}": str(number) for number in range(23, 30)}
    assert json.loads(result.stderr.splitlines()[0])["warning"]["code"] in {
        "overloaded",
        "outcome_unknown",
        "unanswered",
    }


def test_what_was_given_up_can_be_loaded_again(
    kvnode: Kvnode, stub: StubServer, write: Callable[..., str], tmp_path: Path
) -> None:
    lines = [line(f"k{number % 3}", number) for number in range(10)]
    stub.faults["/batchput"].extend([Answer(507, "storage_full")] * 2)
    failed = tmp_path / "failed.jsonl"
    options = ["--batch", "3", "--retries", "1", "--connections", "1"]
    result = kvnode("load", write(*lines), "--failed", str(failed), *options)
    assert result.exit_code == 1
    assert "records.jsonl:1-3: not written: told to answer storage_full (storage_full) after 2 attempts" in (
        result.stderr
    )
    assert "10 failed: 3 unwritten, 7 unsent; stopped, line 4 and what follows was not sent" in result.stdout
    assert failed.read_text().splitlines() == lines
    assert kvnode("load", str(failed)).exit_code == 0
    assert stub.values() == {"k0": "9", "k1": "7", "k2": "8"}


def test_a_node_that_is_no_node_ends_it_at_once(kvnode: Kvnode, stub: StubServer, write: Callable[..., str]) -> None:
    stub.faults["/batchput"].append(Answer(404, "route_not_found"))
    result = kvnode("load", write(line("a"), line("b")), "--batch", "1", "--connections", "1")
    assert result.exit_code == 1
    assert len(stub.requests) == 1


def test_acked_names_the_lines_of_each_acknowledged_batch(
    kvnode: Kvnode, write: Callable[..., str], tmp_path: Path
) -> None:
    acked = tmp_path / "acked.jsonl"
    kvnode("load", write(line("a"), line("b"), "bad", line("c")), "--acked", str(acked), "--connections", "1")
    assert [json.loads(text) for text in acked.read_text().splitlines()] == [
        {"first_line": 1, "last_line": 2, "seq": 1, "epoch": EPOCH},
        {"first_line": 4, "last_line": 4, "seq": 2, "epoch": EPOCH},
    ]


def test_large_values_make_small_batches(kvnode: Kvnode, stub: StubServer, write: Callable[..., str]) -> None:
    path = write(*(line(f"k{number}", "x" * 1_000_000) for number in range(12)))
    assert kvnode("load", path).exit_code == 0
    assert [len(body) // 1_000_000 for body in stub.bodies("/batchput")] == [4, 4, 4]


@pytest.mark.parametrize("option", ["--failed", "--acked"])
def test_an_output_must_not_be_the_input(kvnode: Kvnode, write: Callable[..., str], option: str) -> None:
    path = write(line("a"))
    result = kvnode("load", path, option, path)
    assert result.exit_code == 2
    assert "is the input" in result.stderr
    assert Path(path).read_text() == line("a") + "\n"


def test_an_output_that_cannot_be_written_is_said(kvnode: Kvnode, write: Callable[..., str]) -> None:
    result = kvnode("load", write(line("a")), "--acked", "/dev/full")
    assert result.exit_code == 1
    assert "No space left on device (os_error)" in result.stderr
    assert "1 records loaded" in result.stdout


@pytest.mark.parametrize("arguments", [["load", "/nonexistent"], ["load", "--batch", "0"], ["load", "/"]])
def test_wrong_usage(kvnode: Kvnode, arguments: list[str]) -> None:
    assert kvnode(*arguments).exit_code == 2


def test_the_standard_input_is_read_as_it_comes(stub: StubServer) -> None:
    command = [*KVNODE, "load", "-", "--url", stub.url, "--batch", "1", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(line("a").encode() + b"\n" + line("b").encode() + b"\n")
        process.stdin.flush()
        # With the input still open, the first record is on its way.
        assert threading_wait(lambda: bool(stub.records))
        process.stdin.write(b"bad")
        out, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert json.loads(out)["acknowledged"] == 2
    assert json.loads(error)["error"]["message"].startswith("<stdin>:3: ")


def threading_wait(is_true: Callable[[], bool], timeout_s: float = 20) -> bool:
    """Wait until something is true that another thread makes true."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if is_true():
            return True
        pause.wait(0.01)
    return False


@pytest.mark.parametrize("source", ["file", "open pipe"])
def test_ctrl_c_accounts_for_all_and_is_quiet(stub: StubServer, tmp_path: Path, source: str) -> None:
    stub.open.clear()
    lines = [line(f"k{number}", number) for number in range(100)]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines))
    failed = tmp_path / "failed.jsonl"
    command = [*KVNODE, "load", "--batch", "10", "--connections", "2", "--json", "--failed", str(failed)]
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as pipe:
        pipe.write(path.read_bytes() + b"\n")
        pipe.flush()
        process = subprocess.Popen(
            [*command, "--url", stub.url, *([str(path)] if source == "file" else ["-"])],
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(read_end)
        with process:
            assert threading_wait(lambda: len(stub.bodies("/batchput")) == 2)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in error
    summary = json.loads(out)
    assert summary["interrupted"]
    assert (summary["acknowledged"], summary["unknown"], summary["stopped_at_line"]) == (0, 20, 21)
    assert sorted(failed.read_text().splitlines()) == sorted(lines[:20])


def test_a_progress_bar_is_for_terminals_only(stub: StubServer, write: Callable[..., str]) -> None:
    path = write(*(line(f"k{number}") for number in range(100)), "bad")
    leader, follower = os.openpty()
    with open(leader, "rb", buffering=0) as screen:
        process = subprocess.run(
            [*KVNODE, "load", path, "--url", stub.url],
            stdout=subprocess.PIPE,
            stderr=follower,
            timeout=30,
            check=False,
            env={"TERM": "xterm", "COLUMNS": "120"},
        )
        shown = screen.read(100_000)
        os.close(follower)
    assert process.returncode == 1
    assert process.stdout.startswith(b"100 records loaded in ")
    assert b"loading" in shown
    assert b"100 records" in shown
    assert f"{path}:101: JSON is malformed".encode() in shown


def test_memory_does_not_grow_with_the_input(stub: StubServer) -> None:
    """300 MB through a pipe and a process that may not have as much."""
    limit = 240 * 1024 * 1024
    code = (
        "import resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit})); "
        "from kvnode.cli.__main__ import main; main()"
    )
    command = [sys.executable, "-P", "-c", code, "load", "-", "--url", stub.url, "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        for number in range(1000):
            process.stdin.write(line(f"k{number % 10}", "x" * 300_000).encode() + b"\n")
            # The stub remembers what it got; this is the only thing that grows.
            stub.requests.clear()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["acknowledged"] == 1000


# ---- dump ------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(stub: StubServer) -> StubServer:
    stub.records.update({f"k{number:04}": (1, f"{number}.0") for number in range(3000)})
    return stub


LINES = [f'{{"key":"k{number:04}","value":{number}.0}}' for number in range(3000)]


def test_dump_to_stdout(kvnode: Kvnode, filled: StubServer) -> None:
    result = kvnode("dump")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == LINES


def test_dump_of_a_prefix_to_a_file(kvnode: Kvnode, filled: StubServer, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("what was there before")
    result = kvnode("dump", "--prefix", "k1", "-o", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"1,000 records written to {path}\n"
    assert path.read_text().splitlines() == LINES[1000:2000]
    assert list(tmp_path.iterdir()) == [path]


def test_dump_of_nothing_makes_an_empty_file(kvnode: Kvnode, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert kvnode("dump", "-o", str(path)).exit_code == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize("after_records", [0, 1234, 3000])
def test_a_cut_dump_never_looks_whole(kvnode: Kvnode, filled: StubServer, tmp_path: Path, after_records: int) -> None:
    filled.faults["/readrange"].append(CutStream(after_records))
    result = kvnode("dump")
    got = result.stdout.splitlines()
    assert result.exit_code == 1
    assert got == LINES[: len(got)]
    assert result.stdout.endswith("\n") or not got
    assert f"the dump is incomplete, it broke off after {len(got):,} records: " in result.stderr

    path = tmp_path / "out.jsonl"
    path.write_text("what was there before")
    filled.faults["/readrange"].append(CutStream(after_records))
    assert kvnode("dump", "-o", str(path)).exit_code == 1
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_dump_into_a_link_or_a_device(kvnode: Kvnode, filled: StubServer, tmp_path: Path) -> None:
    path, link = tmp_path / "out.jsonl", tmp_path / "link"
    link.symlink_to(path)
    assert kvnode("dump", "-o", str(link)).exit_code == 0
    assert link.is_symlink()
    assert path.read_text().splitlines() == LINES
    assert kvnode("dump", "-o", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_dump_to_where_it_cannot_be_written(kvnode: Kvnode, filled: StubServer) -> None:
    result = kvnode("dump", "-o", "/nonexistent/out.jsonl")
    assert result.exit_code == 1
    assert "No such file or directory (os_error)" in result.stderr
    assert not filled.requests
    assert "No space left on device (os_error)" in kvnode("dump", "-o", "/dev/full").stderr


def test_what_was_dumped_can_be_loaded(kvnode: Kvnode, stub: StubServer, tmp_path: Path) -> None:
    chance = random.Random(7)
    values = ['"\\ud800"', "1.0", "-0", "12345678901234567890", '{"a" : [1]}', '"ü\u2028"', "null", '""']
    for _ in range(500):
        key = "".join(chance.choices('aü"\\/\n\t\x00\U0001f600%?. ', k=chance.randint(1, 12)))
        stub.records[key] = (1, chance.choice(values))
    before = stub.values()
    path = tmp_path / "out.jsonl"
    assert kvnode("dump", "-o", str(path)).exit_code == 0
    stub.records.clear()
    assert kvnode("load", str(path)).exit_code == 0
    assert stub.values() == before


def test_ctrl_c_ends_a_dump_quietly(stub: StubServer, tmp_path: Path) -> None:
    stub.records.update({f"{number:06}": (1, '"' + "x" * 1000 + '"') for number in range(50_000)})
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*KVNODE, "dump", "--url", stub.url, "-o", str(fifo)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process, fifo.open("rb") as reader:
        assert reader.readline().startswith(b'{"key":"000000"')
        process.send_signal(signal.SIGINT)
        reader.read()
        out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (130, b"", b"")
