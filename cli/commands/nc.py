"""`kvnode nc`."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterable
from contextlib import aclosing, closing

import click

from kvnode.cli.errors import CommandFailed, ConnectionLost
from kvnode.cli.framejson import FRAME_LINE_HINT, frame_line, parse_frame
from kvnode.cli.lines import Line, ReadAhead, read_lines
from kvnode.cli.outlet import ended_with_reader
from kvnode.cli.peer import PeerClient, make_hello
from kvnode.cli.peeraddress import peer_argument
from kvnode.node.config import Address
from kvnode.protocol.codec import MAX_FRAME_BYTES
from kvnode.protocol.errors import LocalProtocolError
from kvnode.protocol.messages import Message, Ping, Purpose

#: A longer line is no frame that could be sent: bytes in hex take twice their number.
_MAX_LINE_BYTES = 3 * MAX_FRAME_BYTES
#: Lines that are read before they can be sent.
_READ_AHEAD = 1


@click.command(
    epilog="""\b
Examples:
  kvnode nc 127.0.0.1:7001                        then type frames, one a line; Ctrl-D, Ctrl-C
  echo '{"type":"status","request_id":1}' | kvnode nc 127.0.0.1:7001 --wait 1
  echo '{"type":"subscribe","position":"0.00000000-0","incoming":null}' | kvnode nc 127.0.0.1:7002
  kvnode nc 127.0.0.1:7001 --purpose probe --wait 1 < /dev/null

\b
The same with netcat, which sends and gets the bytes themselves:
  kvnode frame observe --from 1 | nc 127.0.0.1 7001 | kvnode frame --decode
"""
)
@peer_argument
@click.option("--raw", is_flag=True, help="Say nothing but what stdin says: no HELLO.")
@click.option(
    "--purpose",
    type=click.Choice([each.value for each in Purpose]),
    help="What HELLO says that the session is for.  [default: observe]",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="After the end of stdin, end when nothing but PINGs has come for so long. Without it, the node ends it.",
)
def nc(address: Address, raw: bool, purpose: str | None, wait_s: float | None) -> None:
    """Talk to a node's peer port in frames as JSON lines.

    HOST:PORT is the node's --peer. The command says HELLO as an observer, sends the frames that come on stdin, one a
    line, and prints every frame that comes back as a line, at once; an ERROR like every other frame. It sends nothing
    else by itself. protocol/FORMAT.md describes the frames and their form in JSON.

    The end of stdin half-closes the connection; printing goes on until the node closes it, which it does not for an
    observer. A line that is no frame is told with its number; that, bytes that are no frame, and a connection
    that breaks end the command with exit code 1.

    Whoever subscribes with the purpose `replica` is a member of the cluster from then on, until `kvnode forget`. The
    name is made up; `kvnode status` of the primary shows it.
    """
    if raw and purpose:
        raise click.UsageError("--raw says no HELLO, so there is no purpose to say")
    # Not sys.stdin: its lock, held by a thread that waits for input, would abort the interpreter's end.
    with io.FileIO(0, closefd=False) as source:
        lines = read_lines(lambda size: source.read(size) or b"", _MAX_LINE_BYTES)
        asyncio.run(_nc(address, None if raw else Purpose(purpose or Purpose.OBSERVE), lines, wait_s))


async def _nc(address: Address, purpose: Purpose | None, lines: Iterable[Line], wait_s: float | None) -> None:
    with ended_with_reader():
        async with PeerClient(address, silence_s=None) as peer:
            if purpose is not None:
                await peer.send(make_hello(purpose))
            await _Conversation(peer, wait_s).run(lines)


class _Conversation:
    """Sends lines and prints frames, at the same time.

    Args:
        peer: connected.
        wait_s: how long to wait for more once there is nothing more to send; None = for ever.
    """

    def __init__(self, peer: PeerClient, wait_s: float | None) -> None:
        self._peer = peer
        self._wait_s = wait_s
        self._patience = asyncio.timeout(None)
        self._has_sent_all = False

    async def run(self, lines: Iterable[Line]) -> None:
        """Return when the node has closed the connection, or has nothing more to say.

        Raises:
            CommandFailed: a line is no frame.
            RemoteProtocolError: what came is no frame.
            ConnectionLost: the connection broke.
        """
        try:
            async with self._patience:
                await self._run(lines)
        except TimeoutError:
            if not self._patience.expired():
                raise

    async def _run(self, lines: Iterable[Line]) -> None:
        sending = asyncio.create_task(self._send(lines))
        receiving = asyncio.create_task(self._print())
        try:
            await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not isinstance(sending.exception(), ConnectionLost):
                sending.result()
            # Where nothing more can be sent, what the node said before is still to be read, and may be the reason.
            await receiving
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _send(self, lines: Iterable[Line]) -> None:
        with closing(ReadAhead(lines, _READ_AHEAD)) as ahead:
            async for line in ahead:
                message = _parse(line)
                if message is not None:
                    try:
                        await self._peer.send(message)
                    except LocalProtocolError as error:
                        raise _bad_line(line, error) from error
        self._peer.finish()
        self._has_sent_all = True
        self._be_patient()

    async def _print(self) -> None:
        out = sys.stdout.buffer
        async with aclosing(self._peer.messages()) as messages:
            async for message in messages:
                out.write(frame_line(message))
                out.flush()
                if not isinstance(message, Ping):
                    self._be_patient()

    def _be_patient(self) -> None:
        """Wait once more as long for something to come."""
        if self._has_sent_all and self._wait_s is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + self._wait_s)


def _parse(line: Line) -> Message | None:
    """The frame that a line stands for, None for an empty one.

    Raises:
        CommandFailed: it is none.
    """
    if line.text is None:
        raise _bad_line(line, "it is too long")
    if not line.text.strip():
        return None
    try:
        return parse_frame(line.text)
    except ValueError as error:
        raise _bad_line(line, error) from error


def _bad_line(line: Line, reason: object) -> CommandFailed:
    return CommandFailed(f"line {line.number}: {reason}", hint=FRAME_LINE_HINT)
