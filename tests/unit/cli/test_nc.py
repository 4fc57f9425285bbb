"""`kvnode nc` against a scripted node: lines in, frames out, and the other way, and how a conversation ends."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO

import pytest
from click.testing import CliRunner

from kvnode.cli.__main__ import main
from kvnode.cli.framejson import frame_line
from kvnode.protocol.codec import encode
from kvnode.protocol.messages import Error, Hello, Ping, Purpose, Status
from support.background import in_background
from support.frames import SAMPLES
from support.stub_peer import Hold, Repeat, Reset, Say, StubPeer, Take, TakeAll, Until, welcome

KVNODE = [sys.executable, "-P", "-m", "kvnode.cli", "nc"]

PING = Ping(41, 1_700_000_000_000)
WELCOME_LINE = frame_line(welcome(7))
STATUS_LINES = b"".join(frame_line(Status(number)) for number in (1, 2))


def nc(address: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*KVNODE, address, *arguments], input=stdin, capture_output=True, timeout=30, check=False)


@contextmanager
def running(stub: StubPeer, *arguments: str) -> Iterator[tuple[IO[bytes], IO[bytes], subprocess.Popen[bytes]]]:
    """A process with unbuffered pipes: its stdin, its stdout, itself."""
    with subprocess.Popen(
        [*KVNODE, stub.address, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            yield process.stdin, process.stdout, process
        finally:
            process.kill()


def stderr_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    return process.stderr.read()


# ---- the conversation ----------------------------------------------------------------------------------------------


def test_lines_become_frames_and_frames_lines_each_at_once() -> None:
    script = Take(1), Say(welcome(7)), Take(2), Say(PING), Take(3), Say(Error("x", "y")), TakeAll(), Say(PING)
    with in_background(StubPeer(*script)) as stub, running(stub) as (stdin, stdout, process):
        assert stdout.readline() == WELCOME_LINE
        stdin.write(frame_line(Status(1)))
        assert stdout.readline() == frame_line(PING)
        stdin.write(b"\n  \n" + frame_line(Status(2)))
        assert stdout.readline() == frame_line(Error("x", "y"))
        # The end of stdin reaches the node, and what it says then is still printed.
        stdin.close()
        assert stdout.read() == frame_line(PING)
        assert process.wait(30) == 0
        assert stderr_of(process) == b""
    hello, *others = stub.received
    assert isinstance(hello, Hello)
    assert hello.purpose is Purpose.OBSERVE
    assert others == [Status(1), Status(2)]


def test_frames_of_every_type_are_sent_and_printed() -> None:
    samples = list(SAMPLES.values())
    stdin = b"".join(map(frame_line, samples))
    answers = [Say(sample) for sample in samples]
    with in_background(StubPeer(Take(len(samples)), *answers, TakeAll())) as stub:
        done = nc(stub.address, "--raw", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == stdin
    assert stub.received == samples


def test_what_is_on_stdin_need_not_wait_for_the_welcome() -> None:
    with in_background(StubPeer(TakeAll(), Say(welcome(7)))) as stub:
        done = nc(stub.address, stdin=STATUS_LINES)
    assert (done.returncode, done.stdout) == (0, WELCOME_LINE)
    assert stub.received[1:] == [Status(1), Status(2)]


def test_the_last_line_needs_no_end() -> None:
    with in_background(StubPeer(TakeAll())) as stub:
        assert nc(stub.address, "--raw", stdin=STATUS_LINES[:-1]).returncode == 0
    assert stub.received == [Status(1), Status(2)]


def test_raw_says_nothing_by_itself() -> None:
    with in_background(StubPeer(TakeAll(), Say(Error("protocol_error", "the first frame is HELLO")))) as stub:
        done = nc(stub.address, "--raw")
    assert (done.returncode, done.stdout) == (0, frame_line(Error("protocol_error", "the first frame is HELLO")))
    assert stub.received == []


@pytest.mark.parametrize("purpose", Purpose)
def test_the_purpose_is_said(purpose: Purpose) -> None:
    with in_background(StubPeer(Take(1), Say(welcome(7)))) as stub:
        assert nc(stub.address, "--purpose", purpose.value).stdout == WELCOME_LINE
    (hello,) = stub.received
    assert isinstance(hello, Hello)
    assert hello.purpose is purpose


# ---- its end -------------------------------------------------------------------------------------------------------


def test_it_ends_with_the_node_also_while_stdin_is_open() -> None:
    with in_background(StubPeer(Take(1), Say(welcome(7)))) as stub, running(stub) as (_, stdout, process):
        assert stdout.read() == WELCOME_LINE
        assert process.wait(30) == 0
        assert stderr_of(process) == b""


def test_wait_ends_it_when_nothing_more_comes() -> None:
    stub_peer = StubPeer(Take(1), Say(welcome(7)), Take(2), Say(Error("x", "y")), Hold())
    with in_background(stub_peer) as stub, running(stub, "--wait", "0.05") as (stdin, stdout, process):
        stdin.write(frame_line(Status(1)))
        assert stdout.readline() == WELCOME_LINE
        assert stdout.readline() == frame_line(Error("x", "y"))
        stdin.close()
        assert process.wait(30) == 0
        assert (stdout.read(), stderr_of(process)) == (b"", b"")


def test_wait_does_not_count_pings_as_something() -> None:
    with in_background(StubPeer(Repeat(PING, 0.05))) as stub:
        done = nc(stub.address, "--wait", "0.3")
    assert (done.returncode, done.stderr) == (0, b"")
    assert set(done.stdout.splitlines(keepends=True)) == {frame_line(PING)}


def test_wait_begins_anew_with_every_other_frame() -> None:
    frame = frame_line(Error("x", "y"))
    stub_peer = StubPeer(Repeat(Error("x", "y"), 0.1))
    with in_background(stub_peer) as stub, running(stub, "--wait", "2") as (stdin, stdout, process):
        stdin.close()
        # They take longer than it waits for the next one.
        assert [stdout.readline() for _ in range(22)] == [frame] * 22
        assert process.poll() is None


def test_wait_begins_with_the_end_of_stdin_only() -> None:
    more = Until()
    stub_peer = StubPeer(Take(1), Say(welcome(7)), more, Say(PING), Hold())
    with in_background(stub_peer) as stub, running(stub, "--wait", "0.01") as (stdin, stdout, process):
        assert stdout.readline() == WELCOME_LINE
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        more.happen()
        assert stdout.readline() == frame_line(PING)
        stdin.close()
        assert process.wait(30) == 0


def test_ctrl_c_ends_it() -> None:
    with in_background(StubPeer(Take(1), Say(welcome(7)), Hold())) as stub, running(stub) as (_, stdout, process):
        assert stdout.readline() == WELCOME_LINE
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert stderr_of(process) == b""


def test_it_ends_when_its_reader_has_left_also_while_nothing_comes() -> None:
    with in_background(StubPeer(Take(1), Say(welcome(7)), Hold())) as stub, running(stub) as (_, stdout, process):
        assert stdout.readline() == WELCOME_LINE
        stdout.close()
        assert process.wait(30) == 141
        assert stderr_of(process) == b""


# ---- when things go wrong ------------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    done = nc(address)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(f"error: cannot connect to {address}: Connection refused (unreachable)\n".encode())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"nonsense", b"error: line 3: "),
        (b"\xff", b"error: line 3: "),
        (b'{"type":"ping"}', b'error: line 3: ping: the member "last_seq" is missing (failed)\n'),
        (b'{"type":"status","request_id":-1}', b'error: line 3: status: "request_id": expected a whole number'),
        (b'{"type":"entries","records":[]}', b"error: line 3: ENTRIES.records: expected at least one log record"),
    ],
)
def test_a_line_that_is_no_frame_is_told_with_its_number(line: bytes, text: bytes) -> None:
    stub_peer = StubPeer(Take(2), Say(welcome(7)), Hold())
    with in_background(stub_peer) as stub, running(stub) as (stdin, stdout, process):
        stdin.write(frame_line(Status(1)) + b"\n")
        assert stdout.readline() == WELCOME_LINE
        stdin.write(line + b"\n" + frame_line(Status(2)))
        assert process.wait(30) == 1
        assert stdout.read() == b""
        error = stderr_of(process)
    assert error.startswith(text)
    assert error.splitlines()[1].startswith(b"hint: protocol/FORMAT.md")
    assert error.count(b"\n") == 2
    assert stub.received[1:] == [Status(1)]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"\x00\x00\x00\x01\xc1", b"error: frame is not msgpack: "),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"error: a frame announces 1213486160 bytes"),
        (encode(PING)[:-1], b"error: the stream ends "),
    ],
    ids=["garbage", "http", "half a frame"],
)
def test_bytes_that_are_no_frame_are_told_after_what_was_good(answer: bytes, text: bytes) -> None:
    with in_background(StubPeer(Take(1), Say(welcome(7)), Say(answer))) as stub, running(stub) as (_, stdout, process):
        assert stdout.read() == WELCOME_LINE
        assert process.wait(30) == 1
        error = stderr_of(process)
    assert error.startswith(text)
    assert b"Traceback" not in error


def test_a_connection_that_breaks() -> None:
    stub_peer = StubPeer(Take(1), Say(welcome(7)), Take(2), Reset())
    with in_background(stub_peer) as stub, running(stub) as (stdin, stdout, process):
        assert stdout.readline() == WELCOME_LINE
        stdin.write(frame_line(Status(1)))
        assert process.wait(30) == 1
        error = stderr_of(process).decode()
    assert error == f"error: the connection to {stub.address} broke: Connection reset by peer (connection_lost)\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing argument"),
        (["127.0.0.1"], "expected HOST:PORT"),
        (["127.0.0.1:1", "--purpose", "spy"], "--purpose"),
        (["127.0.0.1:1", "--wait", "0"], "--wait"),
        (["127.0.0.1:1", "--raw", "--purpose", "probe"], "--raw says no HELLO"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(main, ["nc", *arguments])
    assert result.exit_code == 2
    assert text in result.stderr
