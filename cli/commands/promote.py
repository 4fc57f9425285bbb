"""`kvnode promote`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import click

from kvnode.cli.client import Client
from kvnode.cli.client.cluster import MemberPosition, Promotion, members_in
from kvnode.cli.errors import ServerError
from kvnode.cli.options import json_option, node_options
from kvnode.cli.tables import make_console, make_table

_REFUSED = "promotion_refused"
_FORCE_HINT = "`kvnode promote --force` promotes it all the same; entries that only other members hold are lost then"


@click.command(
    epilog="""\b
Examples:
  kvnode promote --url http://127.0.0.1:5002
  kvnode promote --url http://127.0.0.1:5002 --force
  kvnode promote --url http://127.0.0.1:5002 --json | jq .epoch
"""
)
@click.option(
    "--force", is_flag=True, help="Promote it also where the primary still answers, or a replica is ahead of it."
)
@json_option("Print the node's own JSON object.", writes=True)
@node_options
def promote(force: bool, as_json: bool, url: str, timeout_s: float) -> None:
    """Make a replica the primary of its cluster.

    The replica that --url names asks all members that it can reach how far they are, and takes over with a new epoch.
    Without --force it refuses, with exit code 1, when the primary answers, or when a replica is ahead of it:
    promote that one. Either way the positions of all members are shown.

    The other replicas follow it after `kvnode join` with its address. So does the former primary when it is back;
    entries that only it has are kept aside, in diverged/ of its directory.
    """
    try:
        promotion = asyncio.run(_promote(force, url, timeout_s))
    except ServerError as error:
        if not as_json:
            _print_members(members_in(error.fields))
        if error.code == _REFUSED:
            error.hint = error.hint or _FORCE_HINT
        raise
    if as_json:
        click.echo(promotion.text)
        return
    _print_members(promotion.members)
    click.echo(
        f"{promotion.name} is the primary now, in epoch {promotion.epoch}; its first write will be "
        f"seq {promotion.last_seq + 1:,}"
    )


async def _promote(force: bool, url: str, timeout_s: float) -> Promotion:
    async with Client(url, timeout_s=timeout_s, retries=0) as client:
        return await client.promote(force=force)


def _print_members(members: Iterable[MemberPosition]) -> None:
    rows = [
        (
            member.name,
            member.address,
            "yes" if member.reachable else f"no: {member.reason}" if member.reason else "no",
            member.role,
            member.epoch,
            None if member.last_seq is None else f"{member.last_seq:,}",
        )
        for member in members
    ]
    if rows:
        headings = ("name", "address", "answers", "role", "epoch", "last seq")
        make_console().print(make_table(headings, rows, title="members"))
