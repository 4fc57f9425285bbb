"""`kvnode load`."""

from __future__ import annotations

import asyncio
import io
import os
import random
import stat
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import BinaryIO

import click

from kvnode.cli.client import Client
from kvnode.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, ClientError
from kvnode.cli.jsontext import to_json
from kvnode.cli.lines import BadLine, Batch, MiB, ReadAhead, read_batches, read_lines
from kvnode.cli.loading import Cause, Loader, Policy, Summary
from kvnode.cli.options import json_option, nodes_options
from kvnode.cli.progress import Advance, progress
from kvnode.cli.reporting import report, warn
from kvnode.protocol.types import Position

#: A batch's lines: far enough below the node's limit of 16 MiB that several can wait there, and large enough to fly.
_BATCH_BYTES = 4 * MiB
#: Batches that are read before they can be sent.
_READ_AHEAD = 2

_STANDARD_INPUT = Path("-")


@click.command(
    epilog="""\b
Examples:
  kvnode load records.jsonl
  zcat records.jsonl.gz | kvnode load -
  kvnode load records.jsonl --failed failed.jsonl || kvnode load failed.jsonl
  kvnode load records.jsonl --json | jq .acknowledged
"""
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option(
    "--batch",
    "batch_items",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Records in one atomic write.",
)
@click.option(
    "--connections",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Batches in flight at the same time.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="Attempts of a batch after its first.",
)
@click.option("--stop-on-error", is_flag=True, help="Stop at the first line that is bad or refused.")
@click.option(
    "--failed",
    "failed_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the lines that were not acknowledged to FILE, as they came.",
)
@click.option(
    "--acked",
    "acked_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help='Write {"first_line", "last_line", "seq", "epoch"} to FILE for each batch, at once when it is acknowledged.',
)
@json_option("Print the summary as a JSON object on stdout.")
@nodes_options
@click.pass_context
def load(
    ctx: click.Context,
    file: Path,
    batch_items: int,
    connections: int,
    retries: int,
    stop_on_error: bool,
    failed_path: Path | None,
    acked_path: Path | None,
    as_json: bool,
    urls: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Store the records of a JSON lines file.

    FILE has one {"key": ..., "value": ...} a line, `-` (the default) is the standard input. It is read as it is sent,
    and may be larger than memory. Several batches are in flight at the same time; of a repeated key the last
    line wins all the same.

    A line that is no record, or that the node refuses, is reported with its number and left out. A batch is sent
    again after 503 and 507 (nothing was written; Retry-After is respected), when there is no connection,
    and also when nobody knows whether it was written: after 504, 500, a timeout or a cut connection. Storing the same
    records twice does no harm, unless another client changes the same keys in the meantime. A batch that
    still fails after its retries ends the load, so that the order is kept.

    What was not acknowledged is reported with its line numbers and counted, and the exit code is 1. --failed keeps
    those lines, and the rest of the input, for another load; after Ctrl-C the rest is not read.
    """
    policy = Policy(
        connections=connections,
        retries=retries,
        stop_on_error=stop_on_error,
        keep_rest=failed_path is not None,
    )
    began_s = time.monotonic()
    with ExitStack() as stack:
        source = _open_input(stack, file)
        failed = _open_output(stack, failed_path, source)
        acked = _open_output(stack, acked_path, source)
        advance = stack.enter_context(progress("loading", _size_ahead(source)))
        label = "<stdin>" if file == _STANDARD_INPUT else str(file)
        client = Client(urls, timeout_s=timeout_s, connections=connections, retries=0)
        report_lines = _LineReport(ctx, label, failed, acked, advance)
        loader = Loader(client.batch_texts, report_lines, policy, jitter=random.random)
        try:
            asyncio.run(_load(client, loader, source, batch_items))
        finally:
            # What was done is said also when reading or reporting broke.
            _print_summary(loader.summary, time.monotonic() - began_s, as_json)
    if loader.summary.interrupted:
        ctx.exit(EXIT_INTERRUPTED)
    if not loader.summary.is_complete:
        ctx.exit(EXIT_FAILED)


async def _load(client: Client, loader: Loader, source: io.FileIO, batch_items: int) -> None:
    def read(size: int) -> bytes:
        return source.read(size) or b""

    async with client:
        pieces = read_batches(read_lines(read), batch_items, _BATCH_BYTES)
        with closing(ReadAhead(pieces, _READ_AHEAD)) as ahead:
            await loader.run(ahead)


class _LineReport:
    """Tells the terminal and the two files what becomes of the lines.

    Args:
        ctx: of the command.
        label: the input's name in messages.
        failed: takes the lines that were not acknowledged.
        acked: takes a JSON line for each acknowledged batch.
        advance: told about what is settled.
    """

    def __init__(
        self,
        ctx: click.Context,
        label: str,
        failed: BinaryIO | None,
        acked: BinaryIO | None,
        advance: Advance,
    ) -> None:
        self._ctx = ctx
        self._label = label
        self._failed = failed
        self._acked = acked
        self._advance = advance

    def acknowledged(self, batch: Batch, position: Position) -> None:
        self._advance(batch.size + len(batch.texts), len(batch.texts))
        if self._acked is not None:
            members = {
                "first_line": batch.first_line,
                "last_line": batch.last_line,
                "seq": position.seq,
                "epoch": str(position.epoch),
            }
            self._acked.write(to_json(members) + b"\n")
            # Whoever reads it while the load goes on, or after a crash of this process, finds whole lines.
            self._acked.flush()

    def bad(self, line: BadLine) -> None:
        number, text = line.line
        self._note("bad_line", "", line.reason, number, number)
        if text is not None:
            self._keep([text])

    def failed(self, batch: Batch, cause: Cause, reason: str) -> None:
        self._keep(batch.texts)
        # The rest of the input can be any number of batches; the summary counts it.
        if cause is not Cause.UNSENT:
            self._note(cause.value, _MEANINGS[cause], reason, batch.first_line, batch.last_line)

    def retrying(self, error: ClientError) -> None:
        warn(self._ctx, error.code, f"{error.message}; trying again")

    def _note(self, code: str, meaning: str, reason: str, first_line: int, last_line: int) -> None:
        span = str(first_line) if first_line == last_line else f"{first_line}-{last_line}"
        message = f"{self._label}:{span}: {meaning}{reason}"
        report(self._ctx, code, message, fields={"first_line": first_line, "last_line": last_line})

    def _keep(self, texts: list[bytes]) -> None:
        self._advance(sum(map(len, texts)) + len(texts), 0)
        if self._failed is not None:
            self._failed.writelines(text + b"\n" for text in texts)


_MEANINGS = {
    Cause.REJECTED: "refused: ",
    Cause.UNKNOWN: "not acknowledged, perhaps written: ",
    Cause.UNWRITTEN: "not written: ",
}


def _open_input(stack: ExitStack, path: Path) -> io.FileIO:
    if path == _STANDARD_INPUT:
        # Not sys.stdin: its lock, held by a thread that waits for input, would abort the interpreter's end.
        return stack.enter_context(io.FileIO(0, closefd=False))
    return stack.enter_context(io.FileIO(path))


def _open_output(stack: ExitStack, path: Path | None, source: io.FileIO) -> BinaryIO | None:
    if path is None:
        return None
    if path.exists() and os.path.samestat(path.stat(), os.fstat(source.fileno())):
        raise click.UsageError(f"{path} is the input")
    return stack.enter_context(path.open("wb"))


def _size_ahead(source: io.FileIO) -> int | None:
    """How many bytes are left to be read, None where that cannot be known."""
    status = os.fstat(source.fileno())
    return status.st_size - source.tell() if stat.S_ISREG(status.st_mode) else None


def _print_summary(summary: Summary, seconds: float, as_json: bool) -> None:
    failed = {cause.value: count for cause, count in summary.failed.items()}
    position = summary.position
    if as_json:
        members = {
            "acknowledged": summary.acknowledged,
            "failed": sum(failed.values()),
            **failed,
            "stopped_at_line": summary.stopped_at_line,
            "interrupted": summary.interrupted,
            "batches": summary.batches,
            "retries": summary.retries,
            "seconds": round(seconds, 3),
            "seq": position.seq if position else None,
            "epoch": str(position.epoch) if position else None,
        }
        click.echo(to_json(members))
        return
    rate = summary.acknowledged / seconds if seconds else 0
    text = f"{summary.acknowledged:,} records loaded in {seconds:.1f} s ({rate:,.0f}/s)"
    if summary.retries:
        text += f", {summary.retries:,} retries"
    if any(failed.values()):
        counts = ", ".join(f"{count:,} {name}" for name, count in failed.items() if count)
        text += f"; {sum(failed.values()):,} failed: {counts}"
    if summary.stopped_at_line is not None:
        text += f"; stopped, line {summary.stopped_at_line:,} and what follows was not sent"
    click.echo(text)
