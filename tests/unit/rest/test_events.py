"""GET /events: what is told, to how many, how often, and when it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from kvnode.node.rest.events import KEY_BYTES, VALUE_BYTES
from kvnode.protocol.entry import EntryBeginning
from kvnode.protocol.types import Entry, Op, delete, put
from support.fake_store import EPOCH, SHOWN_ENTRIES
from support.holds import turns
from support.rest_rig import HttpAnswer, MakeRig, RestRig, Wire

#: Nothing here waits for time to pass.
PATIENCE_S = 20.0


class Event(NamedTuple):
    """One that came."""

    name: str
    id: str | None
    data: Any


class Stream:
    """An answer whose body is read event by event.

    Attributes:
        head: without the body.
        texts: what came that is no event.
    """

    def __init__(self, wire: Wire, head: HttpAnswer) -> None:
        self.wire = wire
        self.head = head
        self.texts: list[str] = []
        self._text = ""

    async def next(self) -> Event | None:
        """The next event; None at the end of the answer, which must be in order."""
        while True:
            while "\n\n" not in self._text:
                size = int(await self._line(), 16)
                chunk = await self.wire.reader.readexactly(size + 2)
                if not size:
                    assert self._text == ""
                    return None
                self._text += chunk[:-2].decode()
            block, _, self._text = self._text.partition("\n\n")
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            if "event" in fields:
                return Event(fields["event"], fields.get("id"), json.loads(fields["data"]))
            self.texts.append(block)

    async def take(self, name: str) -> Event:
        """The next event, which must have this name."""
        event = await self.next()
        assert event is not None
        assert event.name == name
        return event

    async def _line(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.wire.reader.readuntil(b"\r\n")


@asynccontextmanager
async def watching(rig: RestRig, *, receive_bytes: int = 1 << 26, **headers: str) -> AsyncIterator[Stream]:
    """A stream that has begun."""
    async with rig.connect(receive_bytes=receive_bytes) as wire:
        wire.request("GET", "/events", **headers)
        head = await wire.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head[:-4].decode().split("\r\n")
        pairs = dict(line.split(": ", 1) for line in lines)
        names = {name.lower(): value for name, value in pairs.items()}
        yield Stream(wire, HttpAnswer(int(status_line.split()[1]), head, names, b"", {}))


async def left(rig: RestRig, count: int) -> None:
    """Return when only so many watch any more. That a client has left shows when it was sent something."""
    async with asyncio.timeout(PATIENCE_S):
        while rig.events.watcher_count > count:
            rig.events.turn()
            await turns(1)


def log(rig: RestRig, seq: int, *ops: Op, ops_left_out: int = 0) -> None:
    """Publish an entry."""
    entry = Entry(seq, EPOCH, 1_700_000_000_000 + seq, ops or (put(b"k%d" % seq, b"%d" % seq),))
    rig.node.entries.append(EntryBeginning(entry, ops_left_out))


def seqs(event: Event) -> list[int]:
    return [entry["seq"] for entry in event.data["entries"]]


@pytest.fixture
async def still(rig: RestRig) -> RestRig:
    """A front whose events have no next tick, but those that a test makes."""
    rig.events.tick_s = 3600.0
    return rig


async def test_a_stream_begins_with_what_is_there(still: RestRig) -> None:
    log(still, 1)
    log(still, 2, delete(b"k1"))
    async with watching(still) as stream:
        assert stream.head.status == 200
        assert stream.head.headers["content-type"] == "text/event-stream"
        assert stream.head.headers["cache-control"] == "no-store"
        entries = await stream.take("entries")
        assert entries.id == f"{EPOCH}-2"
        assert entries.data == {
            "entries": [
                {
                    "seq": 1,
                    "epoch": str(EPOCH),
                    "time": 1_700_000_000_001,
                    "ops": [{"op": "put", "key": "k1", "value": "1"}],
                    "ops_left_out": 0,
                },
                {
                    "seq": 2,
                    "epoch": str(EPOCH),
                    "time": 1_700_000_000_002,
                    "ops": [{"op": "delete", "key": "k1"}],
                    "ops_left_out": 0,
                },
            ],
            "left_out": 0,
        }
        status = await stream.take("status")
        assert status.data == still.node.status() | {"look": 1, "padding": ""}
        assert stream.texts == ["retry: 1000"]


async def test_the_status_comes_again_and_again(rig: RestRig) -> None:
    rig.events.tick_s = 0.001
    async with watching(rig) as stream:
        await stream.take("entries")
        looks = [(await stream.take("status")).data["look"] for _ in range(5)]
    assert looks == sorted(set(looks))


async def test_new_entries_are_told_once_and_of_many_the_newest(still: RestRig) -> None:
    async with watching(still) as stream:
        first = await stream.take("entries")
        assert (first.data, first.id) == ({"entries": [], "left_out": 0}, "0.00000000-0")
        await stream.take("status")
        for seq in range(1, SHOWN_ENTRIES + 3):
            log(still, seq)
        still.events.turn()
        event = await stream.take("entries")
        assert (seqs(event), event.data["left_out"]) == ([3, 4, 5], 2)
        await stream.take("status")
        still.events.turn()
        await stream.take("status")


async def test_large_entries_are_cut_and_say_so(still: RestRig) -> None:
    letter = "é".encode()
    fits = put(b"k" * KEY_BYTES, b"1" * VALUE_BYTES)
    cut = put(b"k" + letter * KEY_BYTES, b'"' + letter * VALUE_BYTES + b'"')
    log(still, 1, fits, cut, delete(b"k" * 4000), ops_left_out=7)
    async with watching(still) as stream:
        (entry,) = (await stream.take("entries")).data["entries"]
    assert entry["ops_left_out"] == 7
    assert entry["ops"] == [
        {"op": "put", "key": "k" * KEY_BYTES, "value": "1" * VALUE_BYTES},
        {
            "op": "put",
            "key": "k" + "é" * ((KEY_BYTES - 1) // 2),
            "key_bytes": 1 + 2 * KEY_BYTES,
            "value": '"' + "é" * ((VALUE_BYTES - 1) // 2),
            "value_bytes": 2 + 2 * VALUE_BYTES,
        },
        {"op": "delete", "key": "k" * KEY_BYTES, "key_bytes": 4000},
    ]


async def test_who_comes_back_goes_on_where_it_was(still: RestRig) -> None:
    for seq in range(1, 10):
        log(still, seq)
    async with watching(still, Last_Event_ID=f"{EPOCH}-7") as stream:
        event = await stream.take("entries")
        assert (seqs(event), event.data["left_out"]) == ([8, 9], 0)
    async with watching(still, Last_Event_ID=f"{EPOCH}-2") as stream:
        event = await stream.take("entries")
        assert (seqs(event), event.data["left_out"]) == ([7, 8, 9], 4)
    async with watching(still, Last_Event_ID=f"{EPOCH}-9") as stream:
        await stream.take("status")


@pytest.mark.parametrize(
    "seen", ["1.00000001-3", "", "7", "x-7", f"{EPOCH}-", f"{EPOCH}--1", f"{EPOCH}-" + "9" * 30, f"{EPOCH}-1e3"]
)
async def test_an_id_of_something_else_is_as_good_as_none(still: RestRig, seen: str) -> None:
    log(still, 1)
    async with watching(still, Last_Event_ID=seen) as stream:
        event = await stream.take("entries")
        assert (seqs(event), event.data["left_out"]) == ([1], 0)


async def test_all_watchers_share_one_look_and_nobody_looks_when_none_watches(rig: RestRig) -> None:
    rig.events.tick_s = 3600.0
    assert rig.node.looks == 0
    async with watching(rig) as first, watching(rig) as second, watching(rig) as third:
        for stream in (first, second, third):
            await stream.take("entries")
            assert (await stream.take("status")).data["look"] == 1
        rig.events.turn()
        for stream in (first, second, third):
            assert (await stream.take("status")).data["look"] == 2
        assert rig.events.watcher_count == 3
    await left(rig, 0)
    assert rig.events._timer is None


async def test_a_client_that_leaves_is_noticed_when_it_is_sent_something(still: RestRig) -> None:
    async with watching(still) as stream:
        await stream.take("entries")
        await stream.take("status")
        assert still.events.watcher_count == 1
        stream.wire.reset()
        await left(still, 0)


async def test_a_client_that_will_send_no_more_still_watches(still: RestRig) -> None:
    async with watching(still) as stream:
        stream.wire.half_close()
        await stream.take("entries")
        await stream.take("status")
        still.events.turn()
        await stream.take("status")


async def test_not_more_than_so_many_may_watch(still: RestRig) -> None:
    still.events.max_watchers = 2
    async with watching(still) as first, watching(still):
        answer = await still.ask("GET", "/events")
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert (answer.error["limit"], answer.error["max"]) == ("max_watchers", 2)
        assert answer.headers["retry-after"] == "1"
        first.wire.reset()
        await left(still, 1)
        async with watching(still) as third:
            await third.take("entries")


async def test_a_slow_watcher_skips_ticks_and_misses_no_count(still: RestRig) -> None:
    """However long it takes nothing, what waits for it is bounded; then it is told the newest, and what it missed."""
    still.node.padding = "." * 100_000
    ticks = 200
    async with watching(still, receive_bytes=1 << 10) as slow, watching(still) as quick:
        for stream in (slow, quick):
            await stream.take("entries")
        await quick.take("status")
        for seq in range(1, ticks + 1):
            log(still, seq)
            still.events.turn()
            assert seqs(await quick.take("entries")) == [seq]
            await quick.take("status")
        looks, told, left_out = [], [], 0
        while not looks or looks[-1] < ticks + 1:
            event = await slow.next()
            assert event is not None
            if event.name == "entries":
                told += seqs(event)
                left_out += event.data["left_out"]
            else:
                looks.append(event.data["look"])
        assert len(looks) < ticks / 2
        assert looks == sorted(looks)
        assert told == sorted(told)
        assert told[-1] == ticks
        assert len(told) + left_out == ticks
        assert left_out


async def test_a_stop_shows_the_last_state_and_waits_for_nobody(still: RestRig) -> None:
    async with watching(still) as stream:
        await stream.take("entries")
        await stream.take("status")
        log(still, 1)
        still.front.stop_accepting()
        assert seqs(await stream.take("entries")) == [1]
        assert (await stream.take("status")).data["look"] == 2
        assert await stream.next() is None
        async with asyncio.timeout(PATIENCE_S):
            await still.front.close(3600.0)
        assert await stream.wire.at_end()


async def test_a_stop_breaks_off_who_takes_nothing(still: RestRig) -> None:
    """As a browser on a machine that sleeps does."""
    still.node.padding = "." * 1_000_000
    async with watching(still, receive_bytes=1 << 10):
        (connection,) = still.front._connections()
        async with asyncio.timeout(PATIENCE_S):
            while not connection.writing_paused:
                still.events.turn()
                await turns(1)
        still.front.stop_accepting()
        async with asyncio.timeout(PATIENCE_S):
            await still.front.close(3600.0)
    assert still.events.watcher_count == 0


async def test_a_node_that_stops_takes_no_new_watchers(still: RestRig) -> None:
    async with still.connect() as wire:
        assert (await wire.ask("GET", "/health")).status == 200
        still.front.stop_accepting()
        answer = await wire.ask("GET", "/events")
        assert (answer.status, answer.error["code"]) == (503, "draining")
    assert still.node.looks == 0


async def test_a_bug_is_logged_once_and_ends_all_streams_and_the_next_one_may_try_again(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.events.tick_s = 3600.0
    async with watching(rig) as first, watching(rig) as second:
        for stream in (first, second):
            await stream.take("entries")
            await stream.take("status")
        rig.node.watched_error = error = RuntimeError("a bug")
        rig.events.turn()
        assert await first.next() is None
        assert await second.next() is None
    assert [name for name, _ in rig.log.events] == ["answer_broken_off"]
    assert rig.log.traced == [error]
    assert rig.events.watcher_count == 0
    answer = await rig.ask("GET", "/events")
    assert (answer.status, answer.body) == (200, b""), "what was so before is not shown again"
    rig.node.watched_error = None
    async with watching(rig) as stream:
        await stream.take("entries")
        await stream.take("status")


async def test_an_entry_that_cannot_be_shown_is_a_bug_as_well(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.events.tick_s = 3600.0
    rig.node.entries.append(None)  # type: ignore[arg-type]
    answer = await rig.ask("GET", "/events")
    assert (answer.status, answer.body) == (200, b"")
    assert len(rig.log.traced) == 1


async def test_head_begins_nothing(still: RestRig) -> None:
    answer = await still.ask("HEAD", "/events")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert (still.node.looks, still.events.watcher_count) == (0, 0)


async def test_a_client_of_http_1_0_is_served_to_the_end_of_its_connection(still: RestRig) -> None:
    async with still.connect() as wire:
        wire.request("GET", "/events", version="1.0")
        assert b"\r\nConnection: close\r\n" in await wire.reader.readuntil(b"\r\n\r\n")
        assert await wire.reader.readuntil(b"\n\n") == b"retry: 1000\n\n"
        still.front.stop_accepting()
        assert (await wire.read_to_end()).endswith(b"\n\n")


async def test_another_request_may_follow_on_the_connection_when_a_stream_has_ended(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.events.tick_s = 3600.0
    async with watching(rig) as stream:
        await stream.take("entries")
        await stream.take("status")
        rig.node.watched_error = RuntimeError("a bug")
        rig.events.turn()
        assert await stream.next() is None
        assert (await stream.wire.ask("GET", "/health")).status == 200


async def test_events_take_no_parameters(rig: RestRig) -> None:
    answer = await rig.ask("GET", "/events?from=1")
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
