"""`kvnode get`."""

from __future__ import annotations

import asyncio

import click

from kvnode.cli.client import Client, Record
from kvnode.cli.errors import EXIT_FAILED
from kvnode.cli.jsontext import as_plain_text, to_json
from kvnode.cli.options import json_option, key_argument, nodes_options
from kvnode.cli.reporting import report


@click.command(
    epilog="""\b
Examples:
  kvnode get greeting
  kvnode get user/7 --json | jq .value
  if value=$(kvnode get greeting); then ...      exit code 1: no such key
"""
)
@key_argument
@json_option('Print {"key", "value", "version", "seq", "epoch"}.')
@nodes_options
@click.pass_context
def get(ctx: click.Context, key: str, as_json: bool, urls: tuple[str, ...], timeout_s: float) -> None:
    """Print the value of a key.

    A string is printed as its characters, any other value as the JSON text that was stored. With --json the
    value stands exactly as it was stored; "version" names the write that stored it, "seq" and "epoch" say which
    state of the node was read.
    """
    record = asyncio.run(_get(key, urls, timeout_s))
    if record is None:
        report(ctx, "key_not_found", "no such key", fields={"key": key} if as_json else None)
        ctx.exit(EXIT_FAILED)
    if as_json:
        click.echo(
            b'{"key":%b,"value":%b,"version":"%b","seq":%d,"epoch":"%b"}'
            % (
                to_json(key),
                record.text,
                str(record.version).encode(),
                record.applied.seq,
                str(record.applied.epoch).encode(),
            )
        )
    else:
        click.echo(as_plain_text(record.text))


async def _get(key: str, urls: tuple[str, ...], timeout_s: float) -> Record | None:
    async with Client(urls, timeout_s=timeout_s, retries=0) as client:
        return await client.get(key)
