"""`kvnode tail`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

import click

from kvnode.cli.entryjson import entry_line
from kvnode.cli.errors import ConnectionLost, Refused
from kvnode.cli.outlet import ended_with_reader
from kvnode.cli.peer import SILENCE_S, PeerClient
from kvnode.cli.peeraddress import peer_argument
from kvnode.node.config import Address
from kvnode.protocol.entry import decode_entry, payload_crc
from kvnode.protocol.errors import EntryDamaged, RemoteProtocolError
from kvnode.protocol.fields import U64_MAX, LogRecord
from kvnode.protocol.messages import Entries, Error, HistoryFrame, Ping, Purpose, Subscribe
from kvnode.protocol.types import Entry, Epoch, Position, Seq

_TRIMMED = "log_trimmed"


@click.command(
    epilog="""\b
Examples:
  kvnode tail 127.0.0.1:7001 --from 1000
  kvnode tail 127.0.0.1:7002 --from 1000 --follow | jq -c '.ops[]'
  diff <(kvnode tail 127.0.0.1:7001) <(kvnode tail 127.0.0.1:7002) && echo same history
"""
)
@peer_argument
@click.option(
    "--from",
    "first",
    type=click.IntRange(1, U64_MAX),
    default=1,
    show_default=True,
    metavar="SEQ",
    help="The first entry wanted.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new entries as they are made, until stopped.")
def tail(address: Address, first: int, follow: bool) -> None:
    """Print the entries of a node's log as JSON lines.

    HOST:PORT is the peer port, --peer, of a primary or a replica. Each line is {"seq","epoch","time","ops"}; an
    operation is {"op":"put","key","value"} or {"op":"delete","key"}. The last line is the entry that was the node's
    last one when the command began, unless it follows.

    It reads as an observer, who counts for nothing: no write waits for it, and no log is kept for it. Where the log
    begins later than SEQ, the error says where. The CRC of every entry is checked: what is printed is what the
    primary wrote. A connection that ends before the last line is an error, with --follow at any time.
    """
    asyncio.run(_tail(address, first, follow))


async def _tail(address: Address, first: Seq, follow: bool) -> None:
    with ended_with_reader():
        # Who follows waits for the next write, however long nobody makes one.
        async with PeerClient(address, silence_s=None if follow else SILENCE_S) as peer:
            welcome = await peer.welcome(Purpose.OBSERVE)
            last = U64_MAX if follow else welcome.last_seq
            if first > last:
                return
            await peer.send(Subscribe(Position(Epoch(0), first - 1), incoming=None))
            await _print_stream(peer, first, last)


async def _print_stream(peer: PeerClient, first: Seq, last: Seq) -> None:
    """Print the entries from `first` to `last`, as they come."""
    expected = first
    try:
        async with aclosing(peer.messages()) as messages:
            async for message in messages:
                match message:
                    case Entries(records):
                        expected = _print_entries(records, expected, last)
                        if expected > last:
                            return
                    case Error(code, text):
                        hint = "begin with an entry that is still there: --from N" if code == _TRIMMED else None
                        raise Refused(code, text, hint=hint)
                    case HistoryFrame() | Ping():
                        pass
                    case _:
                        name = message.TYPE.name
                        raise RemoteProtocolError(f"{peer.address} sent {name}, which is not for an observer")
        came = f"after entry {expected - 1}" if expected > first else "before the first entry"
        raise ConnectionLost(f"{peer.address} closed the connection {came}")
    except ConnectionLost as error:
        error.hint = f"go on with --from {expected}"
        raise


def _print_entries(records: tuple[LogRecord, ...], expected: Seq, last: Seq) -> Seq:
    """Print entries up to `last`; return the seq that is expected next.

    Raises:
        RemoteProtocolError: a record is not the one that is expected, or damaged; those before it are printed.
    """
    out = sys.stdout.buffer
    try:
        for record in records:
            if expected > last:
                break
            out.write(entry_line(_check(record, expected)))
            expected += 1
    finally:
        # What is good is shown before more is waited for, and before an error is told.
        out.flush()
    return expected


def _check(record: LogRecord, expected: Seq) -> Entry:
    if payload_crc(record.payload) != record.crc:
        raise EntryDamaged(
            f"entry {expected} does not match its CRC",
            hint="`kvnode wal verify` on that node's data directory tells whether its log is damaged",
        )
    try:
        entry = decode_entry(record.payload)
    except EntryDamaged as error:
        raise EntryDamaged(f"entry {expected}: {error.message}") from error
    if entry.seq != expected:
        raise RemoteProtocolError(f"entry {entry.seq} came, where {expected} was expected")
    return entry
