"""`kvnode dump`."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from kvnode.cli.client import Client
from kvnode.cli.errors import ClientError, DumpIncomplete, Unanswered
from kvnode.cli.options import nodes_options, text_callback
from kvnode.cli.progress import Advance, progress


@click.command(
    epilog="""\b
Examples:
  kvnode dump -o backup.jsonl
  kvnode dump --prefix user/ | jq -r .key
  kvnode dump | gzip > backup.jsonl.gz            under `set -o pipefail`
  kvnode dump | kvnode load --url http://127.0.0.1:5002
"""
)
@click.option("--prefix", callback=text_callback, default="", metavar="TEXT", help="Only keys that begin with TEXT.")
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE, which is made or replaced only once the dump is whole.",
)
@nodes_options
def dump(prefix: str, path: Path | None, urls: tuple[str, ...], timeout_s: float) -> None:
    """Write all records, or those of a prefix, as JSON lines.

    One {"key": ..., "value": ...} a line, in key order, from one snapshot of the node; `kvnode load` reads it back. A
    dump that was cut off ends with exit code 1 and says how many records it had: never take it for whole.
    """
    if path is None:
        # On a terminal the records themselves show how far it is.
        if sys.stdout.isatty():
            asyncio.run(_dump(prefix, sys.stdout.buffer, lambda size, records: None, urls, timeout_s))
        else:
            with progress("dumping", None) as advance:
                asyncio.run(_dump(prefix, sys.stdout.buffer, advance, urls, timeout_s))
        return
    with _whole_or_nothing(path) as out, progress("dumping", None) as advance:
        count = asyncio.run(_dump(prefix, out, advance, urls, timeout_s))
    click.echo(f"{count:,} records written to {path}", err=True)


async def _dump(prefix: str, out: BinaryIO, advance: Advance, urls: tuple[str, ...], timeout_s: float) -> int:
    """Write the records to `out`, whole lines only; return how many there are.

    Raises:
        ClientError, DumpIncomplete: what was written is not all.
    """
    count = 0
    try:
        async with (
            Client(urls, timeout_s=timeout_s, retries=0) as client,
            aclosing(client.dump(prefix=prefix)) as blocks,
        ):
            async for block in blocks:
                out.write(block)
                records = block.count(b"\n")
                count += records
                advance(len(block), records)
    except ClientError as error:
        if not count and not isinstance(error, Unanswered):
            raise
        raise DumpIncomplete(
            f"the dump is incomplete, it broke off after {count:,} records: {error.message}",
            hint="run it again; there is no way to continue one",
        ) from error
    return count


@contextmanager
def _whole_or_nothing(path: Path) -> Iterator[BinaryIO]:
    """A file that gets the name `path` when the block has ended well, and leaves no trace otherwise.

    What is no regular file, /dev/stdout or a named pipe, is written to directly.
    """
    target = path.resolve()
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        with target.open("wb") as out:
            yield out
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with partial.open("xb") as out:
        try:
            yield out
            out.flush()
            os.fsync(out.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
