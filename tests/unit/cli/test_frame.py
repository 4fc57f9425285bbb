"""`kvnode frame` in a pipe: bytes in, lines out as they arrive, and what it says of bytes that are no frames."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import main
from kvnode.cli.framejson import frame_line
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.messages import Hello, Ping, Purpose, Subscribe
from kvnode.protocol.types import Epoch, Position
from support.frames import SAMPLES

COMMAND = [sys.executable, "-P", "-m", "kvnode.cli", "frame"]
ALL_FRAMES = b"".join(map(encode, SAMPLES.values()))
ALL_LINES = b"".join(map(frame_line, SAMPLES.values()))


def frame(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["frame", *arguments], input=stdin, catch_exceptions=False)


@contextmanager
def running(*arguments: str) -> Iterator[tuple[IO[bytes], IO[bytes], subprocess.Popen[bytes]]]:
    """A process with unbuffered pipes: its stdin, its stdout, itself."""
    command = [*COMMAND, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            yield process.stdin, process.stdout, process
        finally:
            process.kill()


# ---- decode and encode ---------------------------------------------------------------------------------------------


def test_decode_prints_every_frame_as_a_line() -> None:
    result = frame("--decode", stdin=ALL_FRAMES)
    assert result.exit_code == 0
    assert result.stdout_bytes == ALL_LINES
    assert result.stderr == ""


def test_encode_writes_every_line_as_a_frame() -> None:
    result = frame("--encode", stdin=b"\n" + ALL_LINES.replace(b"\n", b"\n  \n"))
    assert result.exit_code == 0
    assert result.stdout_bytes == ALL_FRAMES


def test_decode_shows_what_is_whole_before_more_comes() -> None:
    ping = encode(Ping(1, 2))
    with running("--decode") as (stdin, stdout, process):
        stdin.write(ping + ping[:3])
        assert json.loads(stdout.readline()) == {"type": "ping", "last_seq": 1, "time_ms": 2}
        stdin.write(ping[3:])
        assert stdout.readline()
        stdin.close()
        assert stdout.read() == b""
        assert process.wait(30) == 0


def test_encode_writes_a_frame_before_the_next_line_comes() -> None:
    ping = encode(Ping(1, 2))
    with running("--encode") as (stdin, stdout, process):
        stdin.write(frame_line(Ping(1, 2)))
        received = b""
        while len(received) < len(ping):
            chunk = stdout.read(len(ping) - len(received))
            assert chunk
            received += chunk
        assert received == ping
        stdin.close()
        assert process.wait(30) == 0


def test_decode_ends_quietly_when_its_reader_leaves() -> None:
    with running("--decode") as (stdin, stdout, process):
        stdin.write(encode(Ping(1, 2)))
        assert stdout.readline()
        stdout.close()
        stdin.write(encode(Ping(1, 2)))
        stdin.close()
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("kept", range(1, len(encode(Ping(1, 2)))))
def test_decode_tells_an_end_inside_a_frame(kept: int) -> None:
    ping = encode(Ping(1, 2))
    result = frame("--decode", stdin=ping + ping[:kept])
    assert result.exit_code == 1
    assert result.stdout_bytes == frame_line(Ping(1, 2))
    assert result.stderr.startswith(f"error: the stream ends {kept} bytes into a frame's ")
    assert result.stderr.endswith(" (protocol_error)\n")


@pytest.mark.parametrize(
    ("garbage", "text"),
    [
        (bytes(4), "error: frame of length 0 (protocol_error)\n"),
        (b"\xff" * 9, "error: a frame announces 4294967295 bytes, over the limit of 67108864 (protocol_error)\n"),
        (b"\x00\x00\x00\x01\xc1", "error: frame is not msgpack: "),
        (b"\x00\x00\x00\x02\x91\x63", "error: frame of unknown type: expected 1 to 17, got 99 (protocol_error)\n"),
        (b"\x00\x00\x00\x02\x91\x04", "error: PING.last_seq: missing (protocol_error)\n"),
    ],
)
def test_decode_prints_what_came_before_garbage_and_names_it(garbage: bytes, text: str) -> None:
    result = frame("--decode", stdin=encode(Ping(1, 2)) + garbage)
    assert result.exit_code == 1
    assert result.stdout_bytes == frame_line(Ping(1, 2))
    assert result.stderr.startswith(text)
    assert "Traceback" not in result.stderr


def test_decode_recognizes_the_wrong_port() -> None:
    result = frame("--decode", stdin=b"HTTP/1.1 400 Bad Request\r\n")
    assert result.exit_code == 1
    assert result.stderr.endswith("\nhint: these bytes look like HTTP, which has a port of its own\n")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("nonsense", "error: line 2: "),
        ('{"type":"ping"}', 'error: line 2: ping: the member "last_seq" is missing (failed)\n'),
        ('{"type":"entries","records":[]}', "error: line 2: ENTRIES.records: expected at least one log record"),
    ],
)
def test_encode_names_the_line_that_is_no_frame(line: str, text: str) -> None:
    result = frame("--encode", stdin=frame_line(Ping(1, 2)) + line.encode() + b"\n")
    assert result.exit_code == 1
    assert result.stdout_bytes == encode(Ping(1, 2))
    assert result.stderr.startswith(text)


# ---- observe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "seq"),
    [([], 0), (["--from", "1"], 0), (["--from", "1000"], 999), (["--from", str(2**64 - 1)], 2**64 - 2)],
)
def test_observe_writes_hello_and_subscribe(arguments: list[str], seq: int) -> None:
    result = frame("observe", *arguments)
    assert result.exit_code == 0
    decoder = FrameDecoder()
    decoder.feed(result.stdout_bytes)
    hello, subscribe = decoder
    decoder.end()
    assert isinstance(hello, Hello)
    assert hello.purpose is Purpose.OBSERVE
    assert (hello.min_version, hello.max_version) == (1, 1)
    assert (hello.cluster_id, hello.name, hello.features, hello.auth, hello.address) == (b"", "", (), b"", "")
    assert subscribe == Subscribe(Position(Epoch(0), seq), None)


def test_no_two_observers_have_an_id_in_common() -> None:
    seen = set()
    for _ in range(3):
        decoder = FrameDecoder()
        decoder.feed(frame("observe").stdout_bytes)
        hello, _ = decoder
        assert isinstance(hello, Hello)
        seen |= {hello.node_id, hello.boot_id}
    assert len(seen) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--decode", "observe"],
        ["observe", "--from", "0"],
        ["observe", "--from", str(2**64)],
        ["observe", "--from", "x"],
        ["--nope"],
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(arguments: list[str]) -> None:
    result = frame(*arguments)
    assert result.exit_code == 2
    assert result.stdout_bytes == b""
    assert "Usage: " in result.stderr


@pytest.mark.parametrize("arguments", [["observe"], ["--encode"]])
def test_frames_are_not_written_to_a_terminal(arguments: list[str]) -> None:
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=frame_line(Ping(1, 2)),
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 2
    assert b"frames are not text: send them to a pipe or a file" in done.stderr
