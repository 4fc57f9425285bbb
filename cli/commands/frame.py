"""`kvnode frame`."""

from __future__ import annotations

import secrets
import sys
from io import BufferedIOBase
from typing import cast

import click

from kvnode.cli.errors import CommandFailed
from kvnode.cli.framejson import FRAME_LINE_HINT, frame_line, parse_frame
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.fields import ID_BYTES
from kvnode.protocol.messages import MAX_VERSION, MIN_VERSION, Hello, Purpose, Subscribe
from kvnode.protocol.types import Epoch, Position

_READ_BYTES = 64 * 1024

_BYTES_HINT = "are these the bytes that a node's peer port (--peer) sent, from the first one on?"


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  kvnode frame observe --from 1 | nc 127.0.0.1 7001 | kvnode frame --decode
  kvnode frame observe --from 1 | nc 127.0.0.1 7001 | kvnode frame --decode | jq -c 'select(.type == "entries")'
  kvnode frame observe --from 1 | kvnode frame --decode
  echo '{"type":"status","request_id":1}' | kvnode frame --encode | xxd
""",
)
@click.option("--decode", "mode", flag_value="decode", help="Read frames from stdin, print each as a line of JSON.")
@click.option(
    "--encode", "mode", flag_value="encode", help="Read frames as lines of JSON from stdin, write their bytes."
)
@click.pass_context
def frame(ctx: click.Context, mode: str | None) -> None:
    """Turn frames of the peer protocol into JSON lines, and back.

    With netcat in between, this talks to the peer port of any node. protocol/FORMAT.md describes the frames and their
    form in JSON.

    --decode prints every frame as soon as it is complete. Bytes that are no frame, and an end in the middle of one, are
    told on stderr, with exit code 1.
    """
    if (mode is None) is (ctx.invoked_subcommand is None):
        raise click.UsageError("say one of --decode, --encode, or a command", ctx)
    if mode == "decode":
        _decode()
    elif mode == "encode":
        _encode()


@frame.command(
    epilog="""\b
Examples:
  kvnode frame observe --from 1000 | nc 127.0.0.1 7001 | kvnode frame --decode
"""
)
@click.option(
    "--from",
    "first",
    type=click.IntRange(1, 2**64 - 1),
    default=1,
    show_default=True,
    metavar="SEQ",
    help="The first entry wanted.",
)
def observe(first: int) -> None:
    """Write an observer's first frames, HELLO and SUBSCRIBE.

    An observer sees the stream of any node, replica or primary, and counts for nothing: it holds no log back, and no
    write waits for it.
    """
    hello = Hello(
        min_version=MIN_VERSION,
        max_version=MAX_VERSION,
        cluster_id=b"",
        node_id=secrets.token_bytes(ID_BYTES),
        boot_id=secrets.token_bytes(ID_BYTES),
        name="",
        purpose=Purpose.OBSERVE,
        features=(),
        auth=b"",
        address="",
    )
    _write_frames(encode(hello) + encode(Subscribe(Position(Epoch(0), first - 1), incoming=None)))


def _decode() -> None:
    # Unlike `read`, `read1` returns what is there instead of waiting for all that was asked for.
    source = cast(BufferedIOBase, sys.stdin.buffer)
    out = sys.stdout.buffer
    decoder = FrameDecoder()
    has_come = False
    try:
        while data := source.read1(_READ_BYTES):
            try:
                decoder.feed(data)
                for message in decoder:
                    has_come = True
                    out.write(frame_line(message))
            finally:
                # What is complete is shown before more is waited for, and before an error is told.
                out.flush()
        decoder.end()
    except RemoteProtocolError as error:
        if not has_come:
            error.hint = error.hint or _BYTES_HINT
        raise


def _encode() -> None:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if not line.strip():
            continue
        try:
            encoded = encode(parse_frame(line))
        except (ValueError, LocalProtocolError) as error:
            raise CommandFailed(f"line {number}: {error}", hint=FRAME_LINE_HINT) from error
        _write_frames(encoded)


def _write_frames(frames: bytes) -> None:
    if sys.stdout.isatty():
        raise click.UsageError("frames are not text: send them to a pipe or a file")
    sys.stdout.buffer.write(frames)
    sys.stdout.buffer.flush()
