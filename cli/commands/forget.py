"""`kvnode forget`."""

from __future__ import annotations

import asyncio

import click

from kvnode.cli.client import Client
from kvnode.cli.completing import member_names
from kvnode.cli.jsontext import to_json
from kvnode.cli.options import json_option, nodes_options, text_callback


@click.command(
    epilog="""\b
Examples:
  kvnode forget web3
  kvnode forget web3 --url http://127.0.0.1:5002
"""
)
@click.argument("name", callback=text_callback, shell_complete=member_names)
@json_option('Print {"status", "name"}.', writes=True)
@nodes_options
def forget(name: str, as_json: bool, urls: tuple[str, ...], timeout_s: float) -> None:
    """Drop a member that will not return.

    The primary, which is to be among the nodes of --url, counts NAME no longer: not for a majority, and not among the
    replicas of its status.
    The name is free for another node. Refused, with exit code 1, while NAME is connected. A node that was
    forgotten and comes back becomes a member again.
    """
    forgotten = asyncio.run(_forget(name, urls, timeout_s))
    if as_json:
        click.echo(to_json({"status": "OK", "name": forgotten}))
    else:
        click.echo(f"{forgotten} is no longer a member")


async def _forget(name: str, urls: tuple[str, ...], timeout_s: float) -> str:
    async with Client(urls, timeout_s=timeout_s, retries=0) as client:
        return await client.forget(name)
