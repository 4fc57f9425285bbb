"""Connecting to a peer port by its host's name, so that an attempt that is given up leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from kvnode.node.config import Address
from kvnode.node.replication.link import PeerLink


async def connect(address: Address, make_link: Callable[[], PeerLink]) -> PeerLink:
    """A link to the first of the addresses that the host stands for and that takes a connection.

    How long it may take is the caller's to say: cancelled, it ends at once.

    Args:
        make_link: called for each attempt; of those that fail, nobody is told.

    Raises:
        OSError: there is none; why the last attempt failed.
        UnicodeError: no host can have such a name.
    """
    loop = asyncio.get_running_loop()
    # Not by `create_connection`: uvloop's leaves the look-up to itself when it is cancelled, and a failure later on is
    # then an exception that nobody fetches.
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure = OSError("the name stands for no address")
    for family, _, _, _, place in found:
        try:
            _, link = await loop.create_connection(make_link, str(place[0]), address.port, family=family)
        except OSError as error:
            failure = error
        else:
            return link
    raise failure
