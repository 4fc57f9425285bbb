"""HOST:PORT of a node's peer port as an argument of a command."""

from __future__ import annotations

from typing import Any

import click

from kvnode.node.config import Address


class _PeerAddress(click.ParamType):
    """An address to connect to."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        try:
            address = Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not address.port:
            self.fail(f"nobody listens on port 0, got {value!r}", param, ctx)
        return address


PEER_ADDRESS = _PeerAddress()

#: The node of a debugging command; it reaches the command as `address`.
peer_argument = click.argument("address", type=PEER_ADDRESS, metavar="HOST:PORT")
