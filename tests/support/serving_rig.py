"""A `ClientSession` with the client that a test plays frame by frame."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from kvnode.node.api import Acks, WriteResult
from kvnode.node.replication.link import PeerLink
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.serving import ClientSession
from kvnode.protocol.messages import Status, StatusResult, Write
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.types import Op, put
from support.fake_replicated_store import FakeReplicatedStore, sharing, store_of
from support.fake_store import FakeStore
from support.link_rig import Owner, linked
from support.peers import Peer

#: What STATUS is answered with, of about the size that a real node's has.
STATUS = {"name": "p1", "filler": "x" * 1500}


class Client:
    """A client that is played frame by frame.

    Attributes:
        reads: what its reads find.
        refusal: why the node is no primary; None = it is.
        write_error: raised by the node's write at once.
    """

    def __init__(self, shared: Shared, peer: Peer, link: PeerLink, reads: FakeStore) -> None:
        self.shared = shared
        self.peer = peer
        self.link = link
        self.refusal: str | None = None
        self.statuses = 0
        self.reads = reads
        self.session = ClientSession(shared, link, self.reads, self._write, self._answer_status, lambda: self.refusal)

    @property
    def store(self) -> FakeReplicatedStore:
        return store_of(self.shared)

    def write(self, *ops: Op, number: int = 1, acks: int | None = 0, timeout_ms: int = 5000) -> None:
        """Send a WRITE."""
        self.peer.send(Write(number, ops or (put(b"k", b"1"),), acks, timeout_ms))

    async def answer(self) -> WriteResultFrame:
        return await self.peer.take(WriteResultFrame)

    async def ask(self, *ops: Op) -> WriteResultFrame:
        """Send a WRITE that is refused; returns the answer."""
        self.write(*ops)
        return await self.answer()

    async def taken(self, count: int = 1) -> list[asyncio.Future[WriteResult]]:
        """The futures of the writes that the node has taken, once there are so many."""
        async with asyncio.timeout(20):
            while len(self.store.answers) < count:
                self.store.wrote.clear()
                await self.store.wrote.wait()
        return self.store.answers

    def _write(self, ops: Sequence[Op], acks: Acks) -> asyncio.Future[WriteResult]:
        return self.store.write(ops, acks)

    def _answer_status(self, link: PeerLink, frame: Status) -> None:
        self.statuses += 1
        link.send(StatusResult(frame.request_id, json.dumps(STATUS).encode()))


@asynccontextmanager
async def client(
    *, loop: Any = None, kernel_bytes: int | None = None, reads: FakeStore | None = None, **settings: Any
) -> AsyncIterator[Client]:
    """A session that has just begun; it has ended after the block.

    Args:
        loop: of the session, in place of the running one.
        kernel_bytes: what the kernel takes in for the client at most, about; None = as much as it likes.
        settings: of the node's configuration.
    """
    owner = Owner()
    async with sharing(loop=loop, **settings) as shared, linked(owner, kernel_bytes=kernel_bytes) as (link, peer):
        at = Client(shared, peer, link, reads or FakeStore())
        owner.on_frame = at.session.frame_received
        owner.on_drained = at.session.link_drained
        owner.peer_finished = at.session.peer_finished  # type: ignore[method-assign]
        yield at
        at.session.link_lost(link, "the end of the test")
