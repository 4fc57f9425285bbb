"""`kvnode tail` against a scripted node: which entries it prints, when it ends, and what it says of a bad stream."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import main
from kvnode.cli.entryjson import entry_line
from kvnode.protocol.codec import encode
from kvnode.protocol.entry import payload_crc
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.messages import Ack, Entries, Error, Hello, HistoryFrame, Message, Ping, Purpose, Subscribe
from kvnode.protocol.types import Entry, Epoch, Position
from support.background import in_background
from support.frames import ENTRY, HISTORY, ID, log_record
from support.stub_peer import Hold, Reset, Say, Step, StubPeer, Take, Until, welcome

KVNODE = [sys.executable, "-P", "-m", "kvnode.cli", "tail"]

HISTORY_SENT = Say(HistoryFrame(HISTORY, (Member(ID, "web1", ""),)))
PING = Ping(9, 1_700_000_000_000)


def entry(seq: int) -> Entry:
    return ENTRY._replace(seq=seq)


def entries(first: int, last: int) -> Entries:
    return Entries(tuple(log_record(entry(seq)) for seq in range(first, last + 1)))


def lines(first: int, last: int) -> bytes:
    return b"".join(entry_line(entry(seq)) for seq in range(first, last + 1))


def session(last_seq: int, *steps: Step | Message | bytes) -> StubPeer:
    """A node whose log ends with `last_seq`, and what it does after SUBSCRIBE."""
    scripted = [step if isinstance(step, Step) else Say(step) for step in steps]
    return StubPeer(Take(1), Say(welcome(last_seq)), Take(2), HISTORY_SENT, *scripted)


def tail(stub: StubPeer, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["tail", stub.address, *arguments], catch_exceptions=False)


@contextmanager
def running(stub: StubPeer, *arguments: str) -> Iterator[tuple[IO[bytes], subprocess.Popen[bytes]]]:
    """A process with unbuffered pipes: its stdout, itself."""
    command = [*KVNODE, stub.address, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        try:
            assert process.stdout is not None
            yield process.stdout, process
        finally:
            process.kill()


# ---- what is printed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        [entries(1, 3)],
        [entries(1, 1), PING, entries(2, 2), HistoryFrame(HISTORY, ()), entries(3, 3)],
        [encode(entries(1, 2)) + encode(entries(3, 3))],
        [encode(entries(1, 3))[:20], encode(entries(1, 3))[20:]],
    ],
    ids=["one frame", "others between", "together", "in pieces"],
)
def test_all_entries_up_to_the_last_of_when_it_began(frames: list[Message | bytes]) -> None:
    with in_background(session(3, *frames, Hold())) as stub:
        result = tail(stub)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout_bytes == lines(1, 3)
    assert json.loads(result.stdout.splitlines()[0]) == {
        "seq": 1,
        "epoch": str(ENTRY.epoch),
        "time": "2023-11-14T22:13:20.123Z",
        "ops": [{"op": "put", "key": "greeting", "value": "hello"}, {"op": "delete", "key": "gone"}],
    }


def test_it_is_an_observer_that_subscribes_by_seq_alone() -> None:
    with in_background(session(7, entries(6, 7))) as stub:
        assert tail(stub, "--from", "6").stdout_bytes == lines(6, 7)
    hello, subscribe = stub.received
    assert isinstance(hello, Hello)
    assert hello.purpose is Purpose.OBSERVE
    assert subscribe == Subscribe(Position(Epoch(0), 5), incoming=None)


def test_entries_made_since_it_began_are_left_out() -> None:
    with in_background(session(3, entries(2, 5), Hold())) as stub:
        assert tail(stub, "--from", "2").stdout_bytes == lines(2, 3)


@pytest.mark.parametrize(("last_seq", "first"), [(0, "1"), (7, "8"), (7, str(2**64 - 1))])
def test_beyond_the_end_there_is_nothing(last_seq: int, first: str) -> None:
    with in_background(session(last_seq, Hold())) as stub:
        result = tail(stub, "--from", first)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert len(stub.received) == 1


@pytest.mark.parametrize("first", ["0", "-1", "x", str(2**64)])
def test_from_is_a_seq(first: str) -> None:
    assert CliRunner().invoke(main, ["tail", "127.0.0.1:1", "--from", first]).exit_code == 2


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:0", "http://127.0.0.1:1", ":1"])
def test_an_address_is_host_and_port(address: str) -> None:
    assert CliRunner().invoke(main, ["tail", address]).exit_code == 2


# ---- following -----------------------------------------------------------------------------------------------------


def test_follow_prints_entries_as_they_come_until_it_is_stopped() -> None:
    more = Until()
    peer = session(1, entries(1, 1), more, entries(2, 3), Hold())
    with in_background(peer) as stub, running(stub, "--follow") as (stdout, process):
        assert stdout.readline() == lines(1, 1)
        more.happen()
        assert stdout.readline() + stdout.readline() == lines(2, 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_followed_connection_that_ends_is_an_error() -> None:
    with in_background(session(1, entries(1, 1), entries(2, 3))) as stub:
        result = tail(stub, "-f")
    assert result.exit_code == 1
    assert result.stdout_bytes == lines(1, 3)
    error = f"error: {stub.address} closed the connection after entry 3 (connection_lost)\n"
    assert result.stderr == f"{error}hint: go on with --from 4\n"


def test_follow_may_begin_beyond_the_end() -> None:
    with in_background(session(1, entries(5, 6))) as stub:
        result = tail(stub, "--follow", "--from", "5")
    assert result.stdout_bytes == lines(5, 6)
    assert isinstance(stub.received[1], Subscribe)
    assert stub.received[1].position.seq == 4


def test_it_ends_when_its_reader_has_left_also_while_nothing_comes() -> None:
    with in_background(session(1, entries(1, 1), Hold())) as stub, running(stub, "--follow") as (stdout, process):
        assert stdout.readline() == lines(1, 1)
        stdout.close()
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_reader_that_leaves_in_the_middle_is_no_error() -> None:
    peer = session(20_000, *(entries(first, first + 999) for first in range(1, 20_000, 1000)), Hold())
    with in_background(peer) as stub, running(stub) as (stdout, process):
        assert stdout.readline() == lines(1, 1)
        stdout.close()
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("into", ["file", "/dev/null"])
def test_stdout_need_not_be_a_pipe(into: str, tmp_path: Path) -> None:
    path = tmp_path / into  # an absolute one stays as it is
    with in_background(session(3, entries(1, 3), Hold())) as stub, path.open("wb") as out:
        done = subprocess.run([*KVNODE, stub.address], stdout=out, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    if path.is_file():
        assert path.read_bytes() == lines(1, 3)


# ---- when things go wrong ------------------------------------------------------------------------------------------


def failed(result: Result, printed: bytes = b"") -> list[str]:
    """The lines on stderr of a run that failed after it had printed something."""
    assert result.exit_code == 1
    assert result.stdout_bytes == printed
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()


def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    error, hint = failed(CliRunner().invoke(main, ["tail", address]))
    assert error == f"error: cannot connect to {address}: Connection refused (unreachable)"
    assert hint == "hint: is the node running, and is this its peer port (--peer)?"


def test_a_log_that_begins_later() -> None:
    text = "entry 1 is gone from this node's log, which begins at 900"
    with in_background(session(1000, Error("log_trimmed", text))) as stub:
        error, hint = failed(tail(stub))
    assert error == f"error: {text} (log_trimmed)"
    assert hint == "hint: begin with an entry that is still there: --from N"


def test_a_log_that_is_trimmed_under_it() -> None:
    with in_background(session(1000, entries(1, 2), Error("log_trimmed", "entry 3 is gone"))) as stub:
        error, _ = failed(tail(stub), lines(1, 2))
    assert error == "error: entry 3 is gone (log_trimmed)"


def test_a_refusal() -> None:
    with in_background(StubPeer(Take(1), Say(Error("unsupported_version", "update the older one")))) as stub:
        assert failed(tail(stub)) == ["error: update the older one (unsupported_version)"]


def test_another_service() -> None:
    with in_background(StubPeer(Take(1), Say(b"HTTP/1.1 400 Bad Request\r\n\r\n"))) as stub:
        error, hint = failed(tail(stub))
    assert error.endswith("(protocol_error)")
    assert "HTTP, which has a port of its own" in hint


def test_garbage_after_good_entries() -> None:
    with in_background(session(9, entries(1, 2), b"\x00\x00\x00\x01\xc1")) as stub:
        (error,) = failed(tail(stub), lines(1, 2))
    assert error.startswith("error: frame is not msgpack: ")


def test_a_frame_that_is_none_of_an_observers() -> None:
    with in_background(session(9, entries(1, 2), Ack(1, 1, 1))) as stub:
        (error,) = failed(tail(stub), lines(1, 2))
    assert error == f"error: {stub.address} sent ACK, which is not for an observer (protocol_error)"


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_half_a_frame(follow: list[str]) -> None:
    half = encode(entries(3, 4))[:-1]
    with in_background(session(4, entries(1, 2), half)) as stub:
        (error,) = failed(tail(stub, *follow), lines(1, 2))
    assert error == f"error: the stream ends {len(half)} bytes into a frame's {len(half) + 1} bytes (protocol_error)"


@pytest.mark.parametrize(
    ("frames", "printed", "where", "seq"),
    [([], b"", "before the first entry", 1), ([entries(1, 2)], lines(1, 2), "after entry 2", 3)],
)
def test_an_end_before_the_last_entry(frames: list[Message], printed: bytes, where: str, seq: int) -> None:
    with in_background(session(3, *frames)) as stub:
        error, hint = failed(tail(stub), printed)
    assert error == f"error: {stub.address} closed the connection {where} (connection_lost)"
    assert hint == f"hint: go on with --from {seq}"


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_a_connection_that_breaks(follow: list[str]) -> None:
    with in_background(session(3, Reset())) as stub:
        error, hint = failed(tail(stub, *follow))
    assert hint == "hint: go on with --from 1"
    assert error == f"error: the connection to {stub.address} broke: Connection reset by peer (connection_lost)"


def test_silence_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.cli.commands.tail.SILENCE_S", 0.1)
    with in_background(session(3, entries(1, 2), Hold())) as stub:
        (error,) = failed(tail(stub), lines(1, 2))
    assert error == f"error: {stub.address} sent nothing for 0.1 s (peer_silent)"


def test_a_wrong_crc_ends_it_after_the_entries_before() -> None:
    good, bad = log_record(entry(1)), log_record(entry(2))
    flipped = LogRecord(bad.crc, bad.payload[:-3] + bytes([bad.payload[-3] ^ 1]) + bad.payload[-2:])
    for damaged in (LogRecord(bad.crc ^ 1, bad.payload), flipped):
        with in_background(session(3, Entries((good, damaged, log_record(entry(3)))), Hold())) as stub:
            error, hint = failed(tail(stub), lines(1, 1))
        assert error == "error: entry 2 does not match its CRC (entry_damaged)"
        assert "kvnode wal verify" in hint


def test_what_is_no_entry_though_its_crc_is_right() -> None:
    payload = b"\x93\x01\x02\x03"
    with in_background(session(3, Entries((LogRecord(payload_crc(payload), payload),)), Hold())) as stub:
        (error,) = failed(tail(stub))
    assert error == "error: entry 1: entry payload is not an array of four (entry_damaged)"


@pytest.mark.parametrize(("first", "last"), [(4, 5), (2, 3), (1, 1)])
def test_a_gap_and_a_repetition_are_told(first: int, last: int) -> None:
    with in_background(session(9, entries(1, 2), entries(first, last), Hold())) as stub:
        (error,) = failed(tail(stub), lines(1, 2))
    assert error == f"error: entry {first} came, where 3 was expected (protocol_error)"
