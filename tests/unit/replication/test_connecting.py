"""Connecting by a name: to which of its addresses, why not, and what is left of an attempt that is given up."""

import asyncio
import gc
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.node.config import Address
from kvnode.node.replication import connecting
from kvnode.node.replication.connecting import connect
from kvnode.node.replication.link import PeerLink
from kvnode.protocol.messages import Message
from support.peers import PATIENCE_S, PeerServer

#: Where no `PeerServer` is.
NOBODY = "127.0.0.10"


class Owner:
    """Of the links that are tried; keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def make_link(self) -> PeerLink:
        return PeerLink(self, 1 << 20, stranger=False)

    def link_made(self, link: PeerLink) -> None:
        self.told.append(f"made to {link.peer_host}")

    def frame_received(self, link: PeerLink, message: Message) -> None:
        self.told.append(f"received {message}")

    def link_drained(self, link: PeerLink) -> None:
        self.told.append("drained")

    def peer_finished(self, link: PeerLink) -> bool:
        return False

    def link_lost(self, link: PeerLink, reason: str) -> None:
        self.told.append("lost")


def name_stands_for(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name stand for these hosts. The loops of uvloop take no other methods, so `connect` gets a shell."""
    loop = asyncio.get_running_loop()

    async def getaddrinfo(_: str, port: int, **kinds: Any) -> list[Any]:
        return [(socket.AF_INET, kinds["type"], socket.IPPROTO_TCP, "", (host, port)) for host in hosts]

    shell = SimpleNamespace(getaddrinfo=getaddrinfo, create_connection=loop.create_connection)
    monkeypatch.setattr(connecting, "asyncio", SimpleNamespace(get_running_loop=lambda: shell))


async def test_the_addresses_of_a_name_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with PeerServer() as server:
        name_stands_for(monkeypatch, NOBODY, server.address.host, NOBODY)
        owner = Owner()
        link = await connect(Address("several", server.address.port), owner.make_link)
        await server.accept()
        assert link.is_open
        assert link.peer == str(server.address)
        assert owner.told == ["made to 127.0.0.9"], "of the attempt that failed, nothing is told"
        link.abort("the test is done")


async def test_a_name_that_nobody_listens_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async with PeerServer() as server:
        name_stands_for(monkeypatch, NOBODY, NOBODY)
        owner = Owner()
        with pytest.raises(ConnectionRefusedError):
            await connect(Address("several", server.address.port), owner.make_link)
        assert owner.told == []


async def test_a_name_without_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    name_stands_for(monkeypatch)
    with pytest.raises(OSError, match="the name stands for no address"):
        await connect(Address("none", 7001), Owner().make_link)


async def test_a_look_up_that_is_given_up_may_fail_later() -> None:
    """What it leaves would be told to the loop's exception handler, which the tests of this folder look at."""
    address = Address("no-such-host.invalid", 7001)
    for _ in range(4):
        trying = asyncio.create_task(connect(address, Owner().make_link))
        await asyncio.sleep(0)
        trying.cancel()
        await asyncio.wait([trying])
        assert trying.cancelled()
    # Later ones are not done before those.
    for _ in range(4):
        with pytest.raises(socket.gaierror):
            async with asyncio.timeout(PATIENCE_S):
                await connect(address, Owner().make_link)
    gc.collect()
    await asyncio.sleep(0)
