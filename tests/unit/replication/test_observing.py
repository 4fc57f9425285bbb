"""Observers: who only look on, from wherever they like, and cost nobody anything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvnode.node.replication.link import HIGH_WATER_BYTES, PeerLink
from kvnode.node.replication.observing import Observer
from kvnode.node.replication.ports import Shared
from kvnode.protocol.codec import encode
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    HistoryFrame,
    Message,
    Ping,
    Status,
    StatusResult,
    Subscribe,
    Write,
)
from kvnode.protocol.types import Epoch, Position, put
from support.fake_replicated_store import FakeReplicatedStore, settled, sharing, store_of
from support.holds import turns
from support.link_rig import Owner, linked
from support.manual_loop import ManualLoop
from support.peers import HISTORY, MEMBERS, Peer, hello, observe_from, payload_bytes, subscribe_from

#: What an observer may be sent at most that has not left, and a frame.
MOST_HELD = HIGH_WATER_BYTES + 300_000


class Observed:
    """An observer that is played frame by frame."""

    def __init__(self, shared: Shared, peer: Peer, link: PeerLink) -> None:
        self.shared = shared
        self.peer = peer
        self.link = link
        self.ended: list[Observer] = []
        self.observer = Observer(shared, link, lambda: MEMBERS, self._answer_status, self.ended.append)
        link.owner = self.observer

    @property
    def store(self) -> FakeReplicatedStore:
        return store_of(self.shared)

    @property
    def loop(self) -> ManualLoop:
        assert isinstance(self.shared.loop, ManualLoop)
        return self.shared.loop

    def publish(self, count: int = 1, value: bytes = b"1") -> None:
        """Publish entries, and tell the observer."""
        first = self.store.last_seq + 1
        self.shared.tail.add(first, self.store.publish(count, value=value))
        self.observer.published()

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, in which what is sent leaves."""
        for _ in range(int(seconds / 5)):
            self.loop.advance(5)
            await turns(3)

    async def begin(self, seq: int) -> None:
        """Subscribe from a seq on, and take HISTORY."""
        self.peer.send(observe_from(seq))
        assert await self.peer.take(HistoryFrame) == HistoryFrame(HISTORY, MEMBERS)

    async def take(self, count: int) -> list[LogRecord]:
        """The next so many entries, in whole frames."""
        found: list[LogRecord] = []
        while len(found) < count:
            found += (await self.peer.take(Entries)).records
        return found

    def _answer_status(self, link: PeerLink, frame: Status) -> None:
        link.send(StatusResult(frame.request_id, b'"%b"' % (b"x" * 1500)))


@asynccontextmanager
async def observing(*, kernel_bytes: int | None = None) -> AsyncIterator[Observed]:
    owner = Owner()
    async with (
        sharing(loop=ManualLoop()) as shared,
        linked(owner, kernel_bytes=kernel_bytes) as (link, peer),
    ):
        at = Observed(shared, peer, link)
        yield at
        at.store.may_read.set()
        link.abort("the end of the test")
        async with asyncio.timeout(20):
            while not at.ended:
                await turns(1)
        assert at.ended == [at.observer]
        # The observer was told of the end in the owner's place.
        owner.link_lost(link, "told to the observer")
        await settled(shared)
        assert [each for each in at.store.readers if each.is_open] == []
        assert at.loop.timers == []


# ---- where it begins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 2, 500, 1000])
async def test_it_begins_anywhere_and_goes_on(first: int) -> None:
    async with observing() as at:
        at.store.publish(1000)
        await at.begin(first)
        assert await at.take(1001 - first) == at.store.log[first - 1 :]
        at.publish(5)
        assert await at.take(5) == at.store.log[1000:]


async def test_behind_the_end_it_waits_for_its_entry() -> None:
    async with observing() as at:
        at.store.publish(3)
        await at.begin(6)
        at.publish(1)
        at.publish(1)
        at.publish(2)
        assert await at.take(2) == at.store.log[5:]


async def test_an_empty_log_is_observed() -> None:
    async with observing() as at:
        await at.begin(1)
        at.publish()
        assert await at.take(1) == at.store.log


async def test_a_position_of_this_history_is_gone_on_from() -> None:
    async with observing() as at:
        at.store.publish(10)
        at.peer.send(subscribe_from(7))
        await at.peer.take(HistoryFrame)
        assert await at.take(3) == at.store.log[7:]


@pytest.mark.parametrize("position", [Position(Epoch.of(2, 9), 7), Position(Epoch.of(9, 9), 2)])
async def test_a_position_of_another_history_is_refused(position: Position) -> None:
    async with observing() as at:
        at.store.publish(10)
        at.peer.send(Subscribe(position, None))
        assert await at.peer.refused() == Error("history_lost", f"{position} is not in this node's history")


async def test_a_position_behind_the_end_of_this_history_is_refused() -> None:
    async with observing() as at:
        at.store.publish(10)
        at.peer.send(subscribe_from(11))
        assert (await at.peer.refused()).code == "history_lost"


async def test_what_is_gone_from_the_log_is_refused_and_where_it_begins_is_said() -> None:
    async with observing() as at:
        at.store.publish(10)
        at.store.trim(5)
        at.peer.send(observe_from(4))
        error = await at.peer.refused()
        assert error == Error("log_trimmed", "entry 4 is gone from this node's log, which begins at 5")
    async with observing() as at:
        at.store.publish(10)
        at.store.trim(5)
        await at.begin(5)
        assert len(await at.take(6)) == 6


async def test_it_pins_nothing_and_what_is_dropped_under_it_ends_it() -> None:
    async with observing() as at:
        at.store.publish(10)
        at.store.may_read.clear()
        await at.begin(1)
        at.store.trim(5)
        at.store.may_read.set()
        error = await at.peer.refused()
        assert error == Error("log_trimmed", "entry 1 is gone from this node's log, which begins at 5")


async def test_a_damaged_log_ends_it() -> None:
    async with observing() as at:
        at.store.publish(10)
        at.store.damaged = True
        await at.begin(1)
        error = await at.peer.refused()
        assert error.code == "log_damaged"
        assert "damaged at offset 100" in error.message


async def test_replaced_data_end_it() -> None:
    async with observing() as at:
        at.store.publish(3)
        await at.begin(1)
        await at.take(3)
        at.observer.log_replaced()
        assert (await at.peer.refused()).code == "history_changed"


# ---- what it says ----------------------------------------------------------------------------------------------


async def test_it_may_ask_for_the_status_at_any_time() -> None:
    async with observing() as at:
        at.peer.send(Status(1))
        assert (await at.peer.take(StatusResult)).request_id == 1
        await at.begin(1)
        at.peer.send(Ping(0, 0), Status(2))
        assert (await at.peer.take(StatusResult)).request_id == 2


@pytest.mark.parametrize("message", [Ack(0, 0, 0), Write(1, (put(b"k", b"1"),), 0, 0), hello()])
async def test_what_it_must_not_say_ends_it(message: Message) -> None:
    async with observing() as at:
        at.peer.send(message)
        error = await at.peer.refused()
        assert error == Error("protocol_error", f"{message.TYPE.name} is not what an observer sends")


async def test_it_subscribes_once() -> None:
    async with observing() as at:
        await at.begin(1)
        at.peer.send(observe_from(1))
        assert await at.peer.refused() == Error("protocol_error", "SUBSCRIBE came twice")


async def test_a_half_closed_netcat_keeps_its_stream() -> None:
    async with observing() as at:
        at.store.publish(300)
        at.peer.send(observe_from(1))
        at.peer.half_close()
        await at.peer.take(HistoryFrame)
        assert await at.take(300) == at.store.log
        for _ in range(3):
            await at.pass_time(600)
            at.publish(2)
            assert len(await at.take(2)) == 2


async def test_a_half_closed_netcat_that_goes_away_is_noticed() -> None:
    async with observing() as at:
        at.peer.send(observe_from(1))
        at.peer.half_close()
        await at.peer.take(HistoryFrame)
        at.peer.reset()
        async with asyncio.timeout(20):
            while not at.ended:
                at.loop.advance(5)
                await turns(1)


# ---- signs of life ---------------------------------------------------------------------------------------------


async def test_a_ping_every_five_seconds_also_to_who_says_nothing() -> None:
    async with observing() as at:
        at.store.publish(4)
        for _ in range(3):
            at.loop.advance(5)
            assert (await at.peer.take(Ping, skip=())).last_seq == 4
        await at.pass_time(3600)
        assert at.link.is_open


# ---- what it costs ---------------------------------------------------------------------------------------------


async def test_thousands_of_entries_from_the_files_and_from_memory() -> None:
    async with observing() as at:
        at.store.publish(12_000, value=b"x" * 1000)
        first = at.store.last_seq + 1
        at.shared.tail.add(first, at.store.publish(4000, value=b"x" * 1000))
        await at.begin(1)
        for _ in range(20):
            at.publish(10)
        assert await at.take(16_200) == at.store.log
        assert payload_bytes(at.store.log) > 5 * HIGH_WATER_BYTES
        assert at.store.log_reads < 100


async def test_a_slow_reader_is_waited_for_in_bounded_memory() -> None:
    async with observing(kernel_bytes=4096) as at:
        at.store.publish(6000, value=b"x" * 2000)
        at.peer.pause()
        at.peer.send(observe_from(1))
        while at.link.held_bytes < HIGH_WATER_BYTES:
            await turns(1)
        await settled(at.shared)
        reads = at.store.log_reads
        for _ in range(20):
            at.publish(100, value=b"x" * 2000)
            await turns(2)
            assert at.link.held_bytes < MOST_HELD
        await settled(at.shared)
        assert at.store.log_reads == reads
        at.peer.resume()
        await at.peer.take(HistoryFrame)
        assert await at.take(8000) == at.store.log


async def test_a_reader_that_takes_nothing_for_thirty_seconds_is_dropped() -> None:
    async with observing(kernel_bytes=4096) as at:
        at.store.publish(6000, value=b"x" * 2000)
        at.peer.pause()
        at.peer.send(observe_from(1))
        while at.link.held_bytes < HIGH_WATER_BYTES:
            await turns(1)
        await turns(50)
        seconds = 0
        while not at.ended:
            at.loop.advance(1)
            await turns(5)
            seconds += 1
            assert seconds < 45
        assert seconds >= 30


async def test_who_asks_without_end_and_takes_nothing_is_asked_to_wait() -> None:
    async with observing(kernel_bytes=4096) as at:
        at.peer.pause()
        for number in range(200):
            at.peer.send(b"".join([encode(Status(number * 100 + each)) for each in range(100)]))
            await turns(2)
            assert at.link.held_bytes < HIGH_WATER_BYTES + 10_000
        at.peer.resume()
        assert [(await at.peer.take(StatusResult)).request_id for _ in range(20_000)] == list(range(20_000))


async def test_one_that_leaves_during_a_read_is_nothing() -> None:
    async with observing() as at:
        at.store.publish(10)
        at.store.may_read.clear()
        await at.begin(1)
        at.peer.reset()
        async with asyncio.timeout(20):
            while not at.ended:
                await turns(1)
        at.store.may_read.set()


async def test_many_observers_see_the_same() -> None:
    async with observing() as first, observing() as second:
        for at in (first, second):
            at.store.publish(100)
            await at.begin(40)
            found: list[Any] = await at.take(61)
            assert found == at.store.log[39:]
