"""The members on disk: what was said to be saved is there, and stays there."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvnode.node.replication.members import StoredMembers, load_members, save_members
from kvnode.node.replication.ports import Shared
from kvnode.protocol.fields import Member
from support.crash_plan import Failure
from support.fake_replicated_store import settled, sharing
from support.holds import Hold
from support.memory_disk import MemoryDisk

A, B, C = (Member(letter.encode() * 16, letter, f"10.0.0.{number}:7001") for number, letter in enumerate("abc", 1))


class Stored:
    """Members on a disk, and what became of each request.

    Attributes:
        told: by whom it was asked for: the members, or the error.
    """

    def __init__(self, shared: Shared, disk: MemoryDisk) -> None:
        self.shared = shared
        self.disk = disk
        self.members = StoredMembers(shared.files, shared.disk)
        self.told: list[tuple[str, Any]] = []

    def add(self, member: Member) -> None:
        self.members.add(
            member,
            lambda members: self.told.append((member.name, members)),
            lambda error: self.told.append((member.name, error)),
        )

    @property
    def on_disk(self) -> tuple[Member, ...]:
        return load_members(self.shared.files)

    def fail(self, *, skip: int = 0) -> None:
        """Let the disk refuse one of the next replacements."""
        self.disk.plan.failures.append(Failure(errno.ENOSPC, "write_at", "*members*", skip=skip))

    async def settled(self) -> None:
        """Return when all that was asked for has ended."""
        while self.members._requests:
            await settled(self.shared)


@asynccontextmanager
async def stored(*there: Member) -> AsyncIterator[Stored]:
    disk = MemoryDisk()
    async with sharing(disk=disk) as shared:
        if there:
            save_members(shared.files, there)
        yield Stored(shared, disk)


async def test_there_is_none_before_there_is_a_file() -> None:
    async with stored() as at:
        assert at.members.all == at.members.next == ()


async def test_a_member_is_told_when_it_is_durable() -> None:
    async with stored(A) as at:
        assert at.members.all == (A,)
        at.add(B)
        assert (at.members.all, at.members.next, at.told) == ((A,), (A, B), [])
        await at.settled()
        assert at.told == [("b", (A, B))]
        assert at.members.all == at.members.next == at.on_disk == (A, B)
        assert at.disk.unsynced_paths() == []


async def test_a_member_takes_the_place_of_the_one_with_its_id() -> None:
    async with stored(A, B) as at:
        renamed = A._replace(name="z", address="")
        at.add(renamed)
        await at.settled()
        assert set(at.on_disk) == {renamed, B}


async def test_those_that_are_added_at_a_time_are_all_there() -> None:
    async with stored() as at:
        for member in (A, B, C):
            at.add(member)
        assert at.members.next == (A, B, C)
        await at.settled()
        assert at.told == [("a", (A,)), ("b", (A, B)), ("c", (A, B, C))]
        assert at.on_disk == at.members.all == (A, B, C)


async def test_a_member_is_removed() -> None:
    async with stored(A, B) as at:
        assert await at.members.remove(A.node_id) == (B,)
        assert at.on_disk == at.members.all == at.members.next == (B,)
        assert await at.members.remove(C.node_id) == (B,)


async def test_a_full_disk_leaves_all_as_it_was() -> None:
    async with stored(A) as at:
        at.fail()
        at.add(B)
        await at.settled()
        ((name, error),) = at.told
        assert name == "b"
        assert isinstance(error, OSError)
        assert at.members.all == at.members.next == at.on_disk == (A,)
        at.fail()
        with pytest.raises(OSError, match="No space"):
            await at.members.remove(A.node_id)
        assert at.members.all == at.members.next == at.on_disk == (A,)
        at.add(C)
        await at.settled()
        assert at.on_disk == at.members.next == (A, C)


async def test_when_one_of_several_fails_the_others_stay_and_it_does_not_come_back() -> None:
    async with stored(A) as at:
        at.fail()
        at.add(B)
        at.add(C)
        await at.settled()
        assert isinstance(dict(at.told)["b"], OSError)
        assert dict(at.told)["c"] == (A, C)
        assert at.members.all == at.members.next == at.on_disk == (A, C)
        at.add(B)
        await at.settled()
        assert at.members.all == at.members.next == at.on_disk == (A, C, B)


async def test_a_failure_behind_another_request_takes_nothing_else_back() -> None:
    async with stored(A) as at:
        at.fail(skip=1)
        at.add(B)
        at.add(C)
        await at.settled()
        assert dict(at.told)["b"] == (A, B)
        assert isinstance(dict(at.told)["c"], OSError)
        assert at.members.all == at.members.next == at.on_disk == (A, B)


async def test_what_is_asked_for_while_a_failure_is_on_its_way_is_kept() -> None:
    async with stored(A) as at:
        at.fail()
        with Hold(at.shared.files, "save_members") as hold:
            at.add(B)
            await hold.reached()
            at.add(C)
            removing = asyncio.create_task(at.members.remove(A.node_id))
            await asyncio.sleep(0)
            hold.release()
        assert await removing == (C,)
        assert at.members.all == at.members.next == at.on_disk == (C,)


async def test_a_removal_whose_caller_left_is_done_all_the_same() -> None:
    async with stored(A, B) as at:
        with Hold(at.shared.files, "save_members") as hold:
            removing = asyncio.create_task(at.members.remove(A.node_id))
            await hold.reached()
            removing.cancel()
            await asyncio.wait([removing])
            hold.release()
            await at.settled()
        assert at.members.all == at.on_disk == (B,)


async def test_a_primarys_members_take_the_place_of_all() -> None:
    async with stored(A) as at:
        at.members.replace((B, C))
        assert at.members.all == at.members.next == (B, C)
