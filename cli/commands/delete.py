"""`kvnode delete`."""

from __future__ import annotations

import asyncio

import click

from kvnode.cli.client import Client, Deleted
from kvnode.cli.errors import EXIT_FAILED
from kvnode.cli.jsontext import to_json
from kvnode.cli.options import json_option, key_argument, nodes_options
from kvnode.cli.reporting import report


@click.command(
    epilog="""\b
Examples:
  kvnode delete greeting
  kvnode delete greeting --json
"""
)
@key_argument
@json_option('Print {"key", "deleted", "seq", "epoch"}.', writes=True)
@nodes_options
@click.pass_context
def delete(ctx: click.Context, key: str, as_json: bool, urls: tuple[str, ...], timeout_s: float) -> None:
    """Remove a key.

    The command returns once the node has made the removal durable. Where there is no such key nothing changes,
    and the exit code is 1.
    """
    outcome = asyncio.run(_delete(key, urls, timeout_s))
    if as_json:
        seq, epoch = outcome.position.seq, str(outcome.position.epoch)
        click.echo(to_json({"key": key, "deleted": outcome.deleted, "seq": seq, "epoch": epoch}))
    elif outcome.deleted:
        click.echo("deleted")
    else:
        report(ctx, "key_not_found", "no such key")
    if not outcome.deleted:
        ctx.exit(EXIT_FAILED)


async def _delete(key: str, urls: tuple[str, ...], timeout_s: float) -> Deleted:
    async with Client(urls, timeout_s=timeout_s, retries=0) as client:
        return await client.delete(key)
