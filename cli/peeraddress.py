"""HOST:PORT of a node's peer port as an argument of a command."""

from __future__ import annotations

import click

from kvnode.node.config import Address


def address_callback(ctx: click.Context, param: click.Parameter, text: str) -> Address:
    """Turn an argument's text into an address to connect to."""
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    if not address.port:
        raise click.BadParameter(f"nobody listens on port 0, got {text!r}", ctx, param)
    return address


#: The node of a debugging command; it reaches the command as `address`.
peer_argument = click.argument("address", callback=address_callback, metavar="HOST:PORT")
