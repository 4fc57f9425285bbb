"""The cluster's members as this node has them on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.node.storage.datadir import Member as StoredMember
from kvnode.node.storage.datadir import StateFiles
from kvnode.node.worker import Worker
from kvnode.protocol.fields import Member


class StoredMembers:
    """The members, and the one thread that saves them. Used on the event loop only.

    Attributes:
        all: durable ones.
        next: those that will be when all that was asked for is done.
    """

    def __init__(self, files: StateFiles, disk: Worker) -> None:
        """Load them; blocks for a small file."""
        self.all: tuple[Member, ...] = load_members(files)
        self._files = files
        self._disk = disk
        self.next = self.all

    def add(
        self, member: Member, saved: Callable[[tuple[Member, ...]], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Make a node a member, in place of the one with its id; then call one of the two."""
        kept = [each for each in self.next if each.node_id != member.node_id]
        self._save((*kept, member), saved, failed)

    async def remove(self, node_id: bytes) -> tuple[Member, ...]:
        """Let a member go; returns those that are left.

        Raises:
            OSError: the disk refuses; it is a member still.
        """
        future: asyncio.Future[tuple[Member, ...]] = asyncio.get_running_loop().create_future()
        kept = tuple([each for each in self.next if each.node_id != node_id])
        self._save(kept, future.set_result, future.set_exception)
        return await future

    def replace(self, members: tuple[Member, ...]) -> None:
        """Others are durable now: a primary's, which came with its history."""
        self.all = self.next = members

    def _save(
        self,
        members: tuple[Member, ...],
        saved: Callable[[tuple[Member, ...]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.next = members

        def done(_: None) -> None:
            self.all = members
            saved(members)

        def refused(error: BaseException) -> None:
            self.next = self.all
            failed(error)

        self._disk.submit(lambda: save_members(self._files, members), done, refused)


def load_members(files: StateFiles) -> tuple[Member, ...]:
    """The members on disk, none where there is no such file."""
    stored = files.load_members() or ()
    return tuple([Member(bytes.fromhex(each.node_id), each.name, each.address) for each in stored])


def save_members(files: StateFiles, members: tuple[Member, ...]) -> None:
    """Replace the members on disk; blocks."""
    files.save_members(tuple([StoredMember(each.node_id.hex(), each.name, each.address) for each in members]))
