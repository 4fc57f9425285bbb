"""The cluster's members as this node has them on disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from kvnode.node.storage.datadir import Member as StoredMember
from kvnode.node.storage.datadir import StateFiles
from kvnode.node.worker import Worker
from kvnode.protocol.fields import Member


class _Request(NamedTuple):
    """A change that was asked for, and who hears what became of it."""

    change: Callable[[tuple[Member, ...]], tuple[Member, ...]]
    saved: Callable[[tuple[Member, ...]], None]
    failed: Callable[[BaseException], None]


class StoredMembers:
    """The members, and the one thread that saves them. Used on the event loop only.

    Changes are made one after the other, each to what is durable then: one that fails takes no other with it.

    Attributes:
        all: durable ones.
    """

    def __init__(self, files: StateFiles, disk: Worker) -> None:
        """Load them; blocks for a small file."""
        self.all: tuple[Member, ...] = load_members(files)
        self._files = files
        self._disk = disk
        #: The first one is under way.
        self._requests: deque[_Request] = deque()

    @property
    def next(self) -> tuple[Member, ...]:
        """Those that will be when all that was asked for is done."""
        members = self.all
        for request in self._requests:
            members = request.change(members)
        return members

    def add(
        self, member: Member, saved: Callable[[tuple[Member, ...]], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Make a node a member, in place of the one with its id; then call one of the two."""
        self._ask(_Request(lambda members: (*_without(members, member.node_id), member), saved, failed))

    async def remove(self, node_id: bytes) -> tuple[Member, ...]:
        """Let a member go; returns those that are left. Cancelling does not keep it.

        Raises:
            OSError: the disk refuses; it is a member still.
        """
        future: asyncio.Future[tuple[Member, ...]] = asyncio.get_running_loop().create_future()

        def saved(members: tuple[Member, ...]) -> None:
            if not future.done():
                future.set_result(members)

        def failed(error: BaseException) -> None:
            if not future.done():
                future.set_exception(error)

        self._ask(_Request(lambda members: _without(members, node_id), saved, failed))
        return await future

    def replace(self, members: tuple[Member, ...]) -> None:
        """Others are durable now: a primary's, which came with its history."""
        self.all = members

    def _ask(self, request: _Request) -> None:
        self._requests.append(request)
        if len(self._requests) == 1:
            self._begin(request)

    def _begin(self, request: _Request) -> None:
        members = request.change(self.all)

        def done(_: None) -> None:
            self.all = members
            self._go_on()
            request.saved(members)

        def refused(error: BaseException) -> None:
            self._go_on()
            request.failed(error)

        self._disk.submit(lambda: save_members(self._files, members), done, refused)

    def _go_on(self) -> None:
        self._requests.popleft()
        if self._requests:
            self._begin(self._requests[0])


def _without(members: tuple[Member, ...], node_id: bytes) -> tuple[Member, ...]:
    return tuple([each for each in members if each.node_id != node_id])


def load_members(files: StateFiles) -> tuple[Member, ...]:
    """The members on disk, none where there is no such file."""
    stored = files.load_members() or ()
    return tuple([Member(bytes.fromhex(each.node_id), each.name, each.address) for each in stored])


def save_members(files: StateFiles, members: tuple[Member, ...]) -> None:
    """Replace the members on disk; blocks."""
    files.save_members(tuple([StoredMember(each.node_id.hex(), each.name, each.address) for each in members]))
