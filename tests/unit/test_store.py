"""The store while all goes well: admission, groups, publication, reads, waits and checkpoints."""

import asyncio
from typing import Any

import pytest

from kvnode.node import store as store_module
from kvnode.node.api import Acks, ReadToken, Record, WriteResult
from kvnode.node.config import OPERATION_BYTES
from kvnode.node.errors import (
    HistoryLost,
    NotCaughtUp,
    NotEnoughReplicas,
    Overloaded,
    RecordDamaged,
    TooLarge,
)
from kvnode.node.storage.segment import HEADER_BYTES
from kvnode.protocol.types import Epoch, Op, Position, delete, put
from support.crash_plan import KEPT
from support.holds import Hold, turns
from support.running_node import RunningNode, running
from support.simulated_node import Machine

BIG = b'"%s"' % (b"x" * 1500)


async def seq_of(future: asyncio.Future[WriteResult]) -> int:
    return (await future).position.seq


# ---- groups ----------------------------------------------------------------------------------------------------


async def test_the_writes_of_one_turn_are_one_group() -> None:
    async with running() as node:
        futures = [node.put(b"k%d" % number) for number in range(5)]
        assert [await seq_of(future) for future in futures] == [1, 2, 3, 4, 5]
        assert await node.groups() == ["seq 1..5"]
        assert await seq_of(node.put(b"k")) == 6
        assert await node.groups() == ["seq 1..5", "seq 6..6"]


async def test_what_arrives_while_a_group_is_written_is_the_next_group() -> None:
    async with running() as node:
        with Hold(node.opened.storage.wal, "append") as hold:
            first = node.put(b"a")
            await hold.reached()
            following = [node.put(b"b%d" % number) for number in range(3)]
            await turns()
            following += [node.put(b"c%d" % number) for number in range(3)]
            await turns()
            assert not first.done()
            hold.release()
            assert [await seq_of(future) for future in [first, *following]] == [1, 2, 3, 4, 5, 6, 7]
        assert await node.groups() == ["seq 1..1", "seq 2..7"]


async def test_a_group_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_GROUP_BYTES", 1000)
    async with running() as node:
        sizes = [400, 600, 210, 790, 1500, 210, 1000, 1000, 210]
        futures = [node.put(b"k", b"1" * (size - OPERATION_BYTES - 1)) for size in sizes]
        await asyncio.gather(*futures)
        # Each as large as fits; one that is larger than the bound goes alone.
        assert await node.groups() == [
            "seq 1..2",
            "seq 3..4",
            "seq 5..5",
            "seq 6..6",
            "seq 7..7",
            "seq 8..8",
            "seq 9..9",
        ]


async def test_a_write_is_taken_before_anything_is_awaited() -> None:
    """A handler that is cancelled at its first await has written."""
    async with running() as node:
        node.put(b"a", b"7").cancel()
        await node.store.drain()
        assert await node.get(b"a") == b"7"


async def test_cancelled_writes_happen_and_the_others_are_answered() -> None:
    async with running() as node:
        with Hold(node.opened.storage.wal, "append") as hold:
            in_flight, waiting = node.put(b"a"), None
            await hold.reached()
            waiting, stays = node.put(b"b"), node.put(b"c")
            in_flight.cancel()
            waiting.cancel()
            hold.release()
            assert await seq_of(stays) == 3
        assert await node.scan() == {b"a": b"1", b"b": b"1", b"c": b"1"}
        assert node.store.queued_bytes == 0


async def test_a_delete_sees_the_writes_before_it_wherever_they_are() -> None:
    async with running() as node:
        with Hold(node.opened.storage.wal, "append") as hold:
            node.put(b"a")
            await hold.reached()
            first, second = node.store.write([delete(b"a")]), node.store.write([delete(b"a")])
            hold.release()
            assert await first == WriteResult(Position(node.store.epoch, 2), 1)
            assert await second == WriteResult(Position(node.store.epoch, 2), 0)


async def test_a_delete_without_effect_waits_for_all_that_it_saw() -> None:
    """Its seq may be used to read: what it names must be published."""
    async with running() as node:
        with Hold(node.opened.storage.wal, "append") as hold:
            written, nothing = node.put(b"a"), node.store.write([delete(b"x")])
            await hold.reached()
            await turns()
            assert not nothing.done()
            nothing.add_done_callback(lambda _: seen.append(node.store.applied.seq))
            seen: list[int] = []
            hold.release()
            assert await nothing == WriteResult(Position(node.store.epoch, 1), 0)
            assert seen == [1]
            assert await seq_of(written) == 1
        assert await node.store.write([delete(b"x")]) == WriteResult(Position(node.store.epoch, 1), 0)


async def test_damage_met_by_one_write_does_not_fail_the_others() -> None:
    async with running() as node:
        await node.put(b"bad")
        node.engine.damaged_keys.add(b"bad")
        before, damaged, unheard, after = (
            node.put(b"a"),
            node.store.write([delete(b"bad")]),
            node.store.write([delete(b"bad")]),
            node.put(b"b"),
        )
        assert [await seq_of(before), await seq_of(after)] == [2, 3]
        with pytest.raises(RecordDamaged):
            await damaged
        # Nobody asks for the answer of this one: that is no event either.
        del unheard
        assert node.store.serving
        assert node.failures == []


# ---- admission -------------------------------------------------------------------------------------------------

LIMITS: dict[str, int] = {
    "max_key_bytes": 10,
    "max_value_bytes": 50,
    "max_batch_bytes": 100,
    "max_batch_items": 4,
    "max_queued_bytes": 120 + 4 * OPERATION_BYTES,
}


def puts(*sizes: int) -> list[Op]:
    """Puts of so many bytes each, key and value."""
    return [put(b"k%d" % number, b"1" * (size - 2)) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("fits", "too_large", "limit", "sent"),
    [
        ([put(b"k" * 10, b"1")], [put(b"k" * 11, b"1")], "max_key_bytes", 11),
        ([delete(b"k" * 10)], [delete(b"k" * 11)], "max_key_bytes", 11),
        ([put(b"k", b"1" * 50)], [put(b"k", b"1" * 51)], "max_value_bytes", 51),
        (puts(2, 2, 2, 2), puts(2, 2, 2, 2, 2), "max_batch_items", 5),
        (puts(50, 50), puts(50, 51), "max_batch_bytes", 101),
        ([*puts(50, 49), delete(b"k")], [*puts(50, 50), delete(b"k")], "max_batch_bytes", 101),
        # The first limit that is passed is named, also within a batch.
        (puts(2, 2), [*puts(2), put(b"k" * 11, b"1" * 60)], "max_key_bytes", 11),
    ],
)
async def test_limits_at_and_one_past(fits: list[Op], too_large: list[Op], limit: str, sent: int) -> None:
    async with running(**LIMITS) as node:
        await node.store.write(fits)
        before = node.store.applied.seq
        with pytest.raises(TooLarge) as caught:
            node.store.write(too_large)
        assert caught.value.fields == {"limit": limit, "max": LIMITS[limit], "sent": sent}
        assert node.store.queued_bytes == 0
        await node.store.drain()
        assert node.store.applied.seq == before


async def test_admission_at_and_one_past_the_limit() -> None:
    async with running(**LIMITS) as node:
        with Hold(node.opened.storage.wal, "append") as hold:
            first = node.store.write(puts(50, 20))
            await hold.reached()
            second = node.store.write(puts(49))
            # All but one byte and one operation, those in flight included.
            queued = 119 + 3 * OPERATION_BYTES
            assert node.store.queued_bytes == queued
            with pytest.raises(Overloaded) as caught:
                node.put(b"k", b"1")
            maximum = LIMITS["max_queued_bytes"]
            sent = 2 + OPERATION_BYTES
            assert caught.value.fields == {"limit": "max_queued_bytes", "max": maximum, "queued": queued, "sent": sent}
            third = node.store.write([delete(b"k")])
            assert node.store.queued_bytes == maximum
            with pytest.raises(Overloaded):
                node.store.write([delete(b"k")])
            hold.release()
            await asyncio.gather(first, second, third)
        assert node.store.queued_bytes == 0
        await asyncio.gather(node.store.write(puts(50, 50)), node.store.write(puts(20)))


async def test_acks_of_replicas_that_are_not_there() -> None:
    async with running() as node:
        with pytest.raises(NotEnoughReplicas) as caught:
            node.store.write([put(b"a", b"1")], Acks(2))
        assert caught.value.fields == {"asked": 2, "following": 0}
        # With one member, the primary is the majority.
        assert await seq_of(node.store.write([put(b"a", b"1")], Acks(None))) == 1
        assert await seq_of(node.store.write([put(b"a", b"1")], Acks(0))) == 2


# ---- publication -----------------------------------------------------------------------------------------------


async def test_an_answered_write_is_visible_everywhere() -> None:
    async with running() as node:
        result = await node.put(b"a", b"7")
        position = result.position
        assert node.store.applied == position
        assert node.store.cached(b"a") == Record(position, 0, b"7")
        assert (await node.store.read(b"a")).record == Record(position, 0, b"7")
        assert await node.scan() == {b"a": b"7"}


async def test_nothing_is_visible_before_it_is_published() -> None:
    async with running() as node:
        await node.put(b"a", b"old")
        with Hold(node.engine, "write", after=True) as hold:
            written = node.put(b"a", b"new")
            await hold.reached()
            # It is in the log and in LevelDB, but for the loop it has not happened.
            assert node.store.applied.seq == 1
            assert node.store.cached(b"a") == Record(Position(node.store.epoch, 1), 0, b"old")
            reading = asyncio.ensure_future(node.store.read(b"a"))
            ranging = asyncio.ensure_future(node.scan())
            await turns()
            await node.reads_answered()
            await turns()
            assert (reading.done(), ranging.done(), written.done()) == (False, False, False)
            hold.release()
            result = await reading
            assert result.record is not None
            assert (result.record.value, result.applied.seq) == (b"new", 2)
            assert await ranging == {b"a": b"new"}
            assert await seq_of(written) == 2


@pytest.mark.parametrize(
    "ops", [[put(b"a", b"new")], [put(b"x", b"1"), put(b"a", b"new")], [delete(b"a")]], ids=["put", "batch", "delete"]
)
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "not cached"])
async def test_a_slow_reader_never_puts_an_old_value_over_a_new_one(ops: list[Op], is_cached: bool) -> None:
    async with running() as node:
        await node.put(b"a", b"old")
        with Hold(node.engine, "read", after=True) as hold:
            reading = asyncio.ensure_future(node.store.read(b"a"))
            await hold.reached()
            if not is_cached:
                node.store.cache.clear()
            await node.store.write(ops)
            hold.release()
            result = await reading
            assert result.record is not None
            assert (result.record.value, result.applied.seq) == (b"old", 1)
        record = node.store.cached(b"a")
        assert record is None or record.value == b"new"
        # A batch refreshes what is there, a single put fills.
        assert (record is not None) == (ops[-1] != delete(b"a") and (is_cached or len(ops) == 1))
        assert await node.get(b"a") == (None if ops == [delete(b"a")] else b"new")


async def test_batches_refresh_the_cache_but_do_not_fill_it() -> None:
    async with running() as node:
        await node.put(b"hot", b"1")
        await node.store.write([put(b"hot", b"2"), put(b"cold", b"2"), put(b"hot", b"3")])
        hot = node.store.cached(b"hot")
        assert hot == Record(Position(node.store.epoch, 2), 0, b"3")
        assert node.store.cached(b"cold") is None
        await node.store.write([put(b"hot", b"4"), delete(b"hot")])
        assert node.store.cached(b"hot") is None
        assert await node.get(b"hot") is None


async def test_the_group_is_in_the_cache_in_its_order() -> None:
    async with running() as node:
        futures = [node.put(b"a", b"%d" % number) for number in range(4)]
        futures.append(node.store.write([delete(b"b")]))
        await asyncio.gather(*futures)
        assert node.store.cached(b"a") == Record(Position(node.store.epoch, 4), 0, b"3")


# ---- reads and waits -------------------------------------------------------------------------------------------


async def test_a_read_fills_the_cache_and_hits_are_counted() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        assert await node.stop()
    async with running(machine.after_crash(KEPT)) as node:
        assert [await node.get(b"a"), await node.get(b"a"), await node.get(b"b")] == [b"1", b"1", None]
        assert (node.store.cache.hits, node.store.cache.misses, node.store.cache.entries) == (1, 2, 1)


async def test_a_range_given_up_while_it_begins_leaves_no_snapshot() -> None:
    async with running() as node:
        await node.put(b"a")
        closed: list[bool] = []
        begin = node.engine.scan

        def scan(wanted: Any) -> Any:
            made = begin(wanted)
            made.close = lambda: closed.append(True)  # type: ignore[method-assign]
            return made

        node.engine.scan = scan  # type: ignore[method-assign]
        with Hold(node.engine, "scan", after=True) as hold:
            ranging = asyncio.ensure_future(node.open_range())
            await hold.reached()
            ranging.cancel()
            await turns()
            hold.release()
            with pytest.raises(asyncio.CancelledError):
                await ranging
        assert closed == [True]


async def test_ranges_take_turns_on_two_threads() -> None:
    async with running() as node:
        await node.put(b"a")
        with Hold(node.engine, "scan") as hold:
            stuck = asyncio.ensure_future(node.scan())
            await hold.reached()
            # A slow scan leaves the other thread, and single reads, alone.
            assert await node.scan() == {b"a": b"1"}
            assert (await node.store.read(b"a")).record is not None
            hold.release()
            assert await stuck == {b"a": b"1"}


async def test_waiting_for_a_seq() -> None:
    async with running() as node:
        epoch = node.store.epoch
        await node.put(b"a")
        await node.store.wait_applied(ReadToken(0))
        await node.store.wait_applied(ReadToken(1, epoch, 0))
        waiting = asyncio.ensure_future(node.store.wait_applied(ReadToken(2, epoch, 30)))
        await turns()
        assert not waiting.done()
        await node.put(b"b")
        await waiting
        with pytest.raises(NotCaughtUp) as caught:
            await node.store.wait_applied(ReadToken(3, None, 0))
        assert caught.value.fields == {"min_seq": 3, "applied_seq": 2}


async def test_a_token_of_a_lost_history_is_refused() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        await node.put(b"b")
        old = node.store.epoch
    async with running(machine.after_crash(KEPT)) as node:
        await node.put(b"c")
        current = node.store.epoch
        for token in (ReadToken(2, old), ReadToken(1, old), ReadToken(3, current), ReadToken(2, current)):
            await node.store.wait_applied(token)
        for lost in (ReadToken(3, old), ReadToken(1, Epoch.of(9, 9)), ReadToken(1, Epoch(old + 1))):
            with pytest.raises(HistoryLost) as caught:
                await node.store.wait_applied(lost)
            assert caught.value.fields == {"epoch": str(lost.epoch), "seq": lost.seq}


async def test_a_token_outlives_restarts_without_writes() -> None:
    """An epoch without entries is replaced by the next one; no answer may have named it."""
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
    for _ in range(3):
        machine = machine.after_crash(KEPT)
        async with running(machine) as node:
            seen = (await node.store.read(b"a")).applied
            no_op = await node.store.write([delete(b"missing")])
            for position in (seen, node.store.applied, no_op.position):
                await node.store.wait_applied(ReadToken(position.seq, position.epoch, 0))
    machine = machine.after_crash(KEPT)
    async with running(machine) as node:
        await node.store.wait_applied(ReadToken(seen.seq, seen.epoch, 0))
    async with running() as empty:
        await empty.store.wait_applied(ReadToken(empty.store.applied.seq, empty.store.applied.epoch, 0))


async def test_ending_the_waits() -> None:
    async with running() as node:
        waiting = asyncio.ensure_future(node.store.wait_applied(ReadToken(9, None, 30)))
        await turns()
        node.store.end_waits()
        with pytest.raises(NotCaughtUp, match="stopping"):
            await waiting


# ---- checkpoints and numbers -----------------------------------------------------------------------------------


async def fill_a_segment(node: RunningNode) -> None:
    """Write until a segment is closed."""
    before = node.store.wal.segments[-1].first_seq
    while node.store.wal.segments[-1].first_seq == before:
        await node.put(b"big", BIG)


async def test_a_closed_segment_brings_a_checkpoint_and_old_segments_go() -> None:
    async with running(wal_keep_bytes=0) as node:
        await fill_a_segment(node)
        last = node.store.wal.last_seq
        await node.settle()
        assert node.store.checkpoint_seq == last
        assert node.opened.files.load_checkpoint() == last
        assert node.store.counters.checkpoints == 1
        assert len(node.store.wal.segments) == 1


async def test_a_segment_closed_during_a_checkpoint_brings_another() -> None:
    async with running() as node:
        with Hold(node.engine, "flush", after=True) as hold:
            await fill_a_segment(node)
            await hold.reached()
            await fill_a_segment(node)
            await fill_a_segment(node)
            last = node.store.wal.last_seq
            hold.release()
            await node.settle()
        assert node.store.counters.checkpoints == 2
        assert node.store.checkpoint_seq == last


async def test_nothing_waits_for_the_disk_to_list_the_segments() -> None:
    """The event loop asks for them, for /status and /metrics, while a group is being synced."""
    async with running() as node:
        with Hold(node.store.wal._file, "sync") as hold:
            written = node.put(b"a")
            await hold.reached()
            loop = asyncio.get_running_loop()
            listing = loop.run_in_executor(None, lambda: (node.store.wal.segments, node.store.wal.last_seq))
            segments, last_seq = await asyncio.wait_for(asyncio.shield(listing), 5)
            assert (len(segments), last_seq) == (1, 0)
            hold.release()
            assert await seq_of(written) == 1


async def test_what_is_counted() -> None:
    async with running() as node:
        await asyncio.gather(*(node.put(b"%d" % number) for number in range(3)), node.store.write([delete(b"x")]))
        await node.store.write([delete(b"x")])
        counters = node.store.counters
        assert (counters.writes, counters.entries, sum(counters.commit_failures.values())) == (5, 3, 0)
        assert (counters.group_writes.count, counters.group_writes.sum) == (2, 5)
        # Only one of the two groups had anything for the disk.
        for times in (counters.append_seconds, counters.sync_seconds, counters.apply_seconds):
            assert times.count == 1
        records_bytes = node.store.wal.segments[0].end - HEADER_BYTES
        assert (counters.group_bytes.count, counters.group_bytes.sum) == (1, records_bytes)
