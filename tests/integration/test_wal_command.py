"""`kvnode wal` on the directory of a real node: while it writes, and after it was killed and its log was damaged."""

import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from support.node_process import NodeProcess

#: Small segments, of which few are kept, so that a node closes and drops one every moment.
SMALL = ("--wal-segment-bytes=32KiB", "--wal-keep-bytes=96KiB")

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def wal(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "kvnode.cli", "wal", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def put(node: NodeProcess, number: int) -> int:
    """Put a number under its own key, in a value of some length; returns the seq."""
    body = json.dumps({"key": f"k{number}", "value": f"{number}{'.' * 300}"}).encode()
    with _OPENER.open(urllib.request.Request(f"{node.url}/put", body), timeout=30) as answer:
        return int(json.load(answer)["seq"])


def value_of(node: NodeProcess, number: int) -> str:
    with _OPENER.open(f"{node.url}/read/k{number}", timeout=30) as answer:
        return str(json.load(answer)["value"])


class Writer:
    """Puts numbers until told to stop."""

    def __init__(self, node: NodeProcess, first: int, step: int) -> None:
        self.numbers: list[int] = []
        self.failures: list[Exception] = []
        self._node = node
        self._first, self._step = first, step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        number = self._first
        try:
            while not self._stop.is_set():
                put(self._node, number)
                self.numbers.append(number)
                number += self._step
        except Exception as error:
            self.failures.append(error)


def test_running_node_is_found_sound_however_it_writes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with NodeProcess(data, *SMALL) as node, Writer(node, 0, 3) as a, Writer(node, 1, 3) as b, Writer(node, 2, 3) as c:
        for _ in range(5):
            verified = wal("verify", data)
            assert verified.returncode == 0, verified.stdout
            assert "sound: seq " in verified.stdout
            listed = wal("ls", data, "--json")
            assert listed.returncode == 0, listed.stderr
            segments = json.loads(listed.stdout)
            assert [segment["state"] for segment in segments[-1:]] == ["tail"]
            assert {fault["kind"] for segment in segments if (fault := segment["fault"])} <= {"torn_tail"}
            dumped = wal("dump", data)
            seqs = [json.loads(line)["seq"] for line in dumped.stdout.splitlines()]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
            assert dumped.returncode == 0 or "segments_dropped" in dumped.stderr
        refused = wal("repair", data, "--yes")
        assert refused.returncode == 1
        assert f"is open in another process (pid {node.pid})" in refused.stderr
    assert [writer.failures for writer in (a, b, c)] == [[], [], []]
    assert segments[0]["first_seq"] > 1, "the node dropped no segment, so this showed less than it should"
    stopped = wal("verify", data)
    assert stopped.returncode == 0
    assert "stopped in order after seq" in stopped.stdout


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_damaged_log_is_refused_repaired_and_nothing_lost_that_leveldb_has(tmp_path: Path, where: float) -> None:
    data = tmp_path / "data"
    count = 250
    with NodeProcess(data, *SMALL) as node:
        seqs = [put(node, number) for number in range(count)]
        node.kill()
        tail = max((data / "wal").glob("*.wal"))
        entries = json.loads(wal("ls", data, "--json").stdout)[-1]
        content = bytearray(tail.read_bytes())
        content[40 + int((entries["used_bytes"] - 40) * where)] ^= 0x40
        tail.write_bytes(content)

        node.start()
        assert node.wait() == 1
        assert "code=log_damaged" in node.text
        assert "kvnode wal repair" in node.text
        verified = wal("verify", data)
        assert verified.returncode == 1
        assert str(tail) in verified.stdout

        repaired = wal("repair", data, "--yes")
        assert repaired.returncode == 0, repaired.stderr
        assert wal("verify", data).returncode == 0
        node.start()
        node.wait_ready()
        assert all(value_of(node, number) == f"{number}{'.' * 300}" for number in range(count))
        assert put(node, count) == seqs[-1] + 1
    assert wal("verify", data).returncode == 0
    (aside,) = (data / "wal-old").glob("repair-*")
    kept = wal("dump", aside, "--skip-damage")
    assert json.loads(kept.stdout.splitlines()[-1])["seq"] == seqs[-1]
