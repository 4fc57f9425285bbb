"""Calls to the disk and to LevelDB fail, each in turn: nothing acknowledged is lost, and nobody is told a falsehood."""

from __future__ import annotations

import asyncio
import errno
from random import Random

import pytest

from kvnode.node import store
from kvnode.node.api import WriteResult
from kvnode.node.errors import DataLost, Draining, EngineFailed, LogFailed, OutcomeUnknown, StorageFull, Syncing
from kvnode.node.storage.segment import parse_segment_name
from kvnode.protocol.errors import KvError
from kvnode.protocol.types import put
from support.client import Client, check_recovery
from support.crash_plan import DROPPED, KEPT, Call, CrashPlan, Survival, torn
from support.events import CapturedEvents
from support.ledger import Ledger
from support.simulated_node import LAYOUT, Machine, SimulatedNode, tiny_config

CONFIG = tiny_config()
SEED = 5

#: Operations that can be half done when they fail; a failed sync may have made a part stable.
PARTIAL = {"write_at": (0.0, 0.6), "allocate": (0.0, 0.5), "sync": (0.0, 0.5), "engine_write": (0.0, 0.5, 1.0)}


def machine_after_a_kill() -> tuple[Machine, Ledger]:
    """A machine whose node was killed after some writes, so that the next start has work to do."""
    machine, ledger = Machine.new(seed=SEED), Ledger()

    async def run() -> None:
        node = SimulatedNode(machine, CONFIG)
        ledger.check_recovered(node.opened.storage, machine.disk)
        await Client(node, ledger, Random(SEED)).write_groups(12)
        await node.abandon()

    asyncio.run(run())
    return machine.after_crash(KEPT), ledger


class Life:
    """One process on a machine: start, writes, clean stop, as far as it comes.

    Attributes:
        refusal: why it did not start, None if it did.
        failure: why the node stopped by itself, None if it did not.
        answers: what the clients were told, group by group, with the number of calls before and after it.
        stopped: whether it stopped cleanly.
    """

    def __init__(self, machine: Machine, ledger: Ledger) -> None:
        self.refusal: Exception | None = None
        self.failure: BaseException | None = None
        self.answers: list[tuple[int, int, list[WriteResult | BaseException]]] = []
        self.stopped = False
        asyncio.run(self._run(machine, ledger))

    async def _run(self, machine: Machine, ledger: Ledger) -> None:
        calls = machine.plan.calls
        try:
            node = SimulatedNode(machine, CONFIG)
        except (KvError, OSError) as error:
            self.refusal = error
            return
        try:
            ledger.check_recovered(node.opened.storage, machine.disk)
            client = Client(node, ledger, Random(SEED + 1), may_fail=True)
            for _ in range(10):
                before = len(calls)
                told = await client.write_groups(1)
                self.answers.append((before, len(calls), told))
                if node.failure is not None:
                    break
                if not ledger.unknown:
                    await client.check_reads()
            self.failure = node.failure
            if node.failure is None:
                self.stopped = await node.stop()
        finally:
            await node.abandon()

    def answers_around(self, call: Call) -> list[WriteResult | BaseException]:
        """What the group was told that was under way at a call."""
        return next((told for before, after, told in self.answers if before < call.number <= after), [])

    def answers_after(self, call: Call) -> list[WriteResult | BaseException]:
        """What all later groups were told."""
        return [answer for before, _, told in self.answers if before >= call.number for answer in told]


def is_log(call: Call) -> bool:
    """Whether a call is on a segment that is in use."""
    return call.path.startswith(str(LAYOUT.wal)) and call.path.endswith(".wal")


def check_answers(life: Life, call: Call, error: int, plan: CrashPlan) -> None:
    """Check what the node did about a call that failed while it ran."""
    around, after = life.answers_around(call), life.answers_after(call)
    if not around:
        assert life.refusal is not None or life.failure is None
    elif is_log(call) and call.operation in ("write_at", "allocate", "truncate") and error == errno.ENOSPC:
        assert life.failure is None
        assert all(isinstance(answer, StorageFull) for answer in around)
        assert all(isinstance(answer, WriteResult) for answer in after), "writes did not resume"
    elif is_log(call) and call.operation in ("write_at", "allocate", "sync", "truncate"):
        assert isinstance(life.failure, LogFailed)
        assert not after
        unknown = [answer for answer in around if not isinstance(answer, WriteResult)]
        assert all(isinstance(answer, OutcomeUnknown) for answer in unknown)
        synced = [each for each in plan.calls[call.number :] if each.operation == "sync" and is_log(each)]
        assert not synced, "the log was synced again after that had failed"
    elif call.operation == "engine_write":
        assert life.failure is None
        assert all(isinstance(answer, OutcomeUnknown) for answer in around)
        assert all(isinstance(answer, WriteResult) for answer in after), "writes did not resume"


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["io-error", "disk-full"])
def test_a_failure_of_any_call_loses_nothing_acknowledged(error: int, pytestconfig: pytest.Config) -> None:
    base, base_ledger = machine_after_a_kill()
    counted = base.after_crash(KEPT)
    whole = Life(counted, base_ledger.copy())
    assert whole.stopped
    calls = counted.plan.calls
    outcomes = set()
    survivals = [KEPT, DROPPED, *map(torn, range(20 if pytestconfig.getoption("--long") else 2))]
    for call in calls:
        for partial in PARTIAL.get(call.operation, (0.0,)):
            plan, ledger = CrashPlan(), base_ledger.copy()
            plan.fail(call.number, error, partial=partial)
            machine = base.after_crash(KEPT, plan)
            try:
                life = Life(machine, ledger)
                check_answers(life, call, error, plan)
                for survival in survivals:
                    check_recovery(machine.after_crash(survival), ledger.copy(), CONFIG)
            except BaseException as failed:
                failed.add_note(f"where {call} fails with {errno.errorcode[error]}, {partial:.0%} done")
                raise
            outcomes.add((type(life.refusal), type(life.failure), life.stopped))
    assert (type(None), type(None), True) in outcomes, "some failures are got over"
    assert (type(None), LogFailed, False) in outcomes, "some failures are final"


# ---- a disk that is full for a while ---------------------------------------------------------------------------


def life_with_little_room(machine: Machine, ledger: Ledger, free_bytes: int) -> Exception | None:
    """Start and write with so many bytes free, then with room; returns why the node did not start."""

    async def run() -> Exception | None:
        machine.disk.free_bytes = free_bytes
        try:
            node = SimulatedNode(machine, CONFIG)
        except (KvError, OSError) as error:
            return error
        try:
            ledger.check_recovered(node.opened.storage, machine.disk)
            client = Client(node, ledger, Random(free_bytes))
            answers = await client.write_groups(8)
            await client.check_reads()
            assert all(isinstance(answer, WriteResult | StorageFull) for answer in answers)
            machine.disk.free_bytes = None
            answers = await client.write_groups(3)
            assert all(isinstance(answer, WriteResult) for answer in answers), "writes did not resume"
            await client.check_reads()
            assert await node.stop()
        finally:
            await node.abandon()
        return None

    return asyncio.run(run())


@pytest.mark.parametrize("survival", [KEPT, DROPPED, torn(1)], ids=str)
def test_a_disk_that_fills_up_at_any_point_costs_only_the_writes_that_were_refused(survival: Survival) -> None:
    base, base_ledger = machine_after_a_kill()
    refused = served = 0
    for free_bytes in range(0, 9000, 131):
        machine, ledger = base.after_crash(KEPT), base_ledger.copy()
        try:
            refusal = life_with_little_room(machine, ledger, free_bytes)
            if refusal is not None:
                assert "No space left" in str(refusal), repr(refusal)
                machine.disk.free_bytes = None
            check_recovery(machine.after_crash(survival), ledger, CONFIG)
        except BaseException as failed:
            failed.add_note(f"with {free_bytes} bytes free")
            raise
        refused += refusal is not None
        served += refusal is None
    assert refused
    assert served > refused


# ---- single failures, as stories -------------------------------------------------------------------------------


async def start(machine: Machine) -> tuple[SimulatedNode, Client]:
    """A node on a new machine, with a client."""
    node = SimulatedNode(machine, CONFIG)
    ledger = Ledger()
    ledger.check_recovered(node.opened.storage, machine.disk)
    return node, Client(node, ledger, Random(SEED))


async def test_a_failed_fsync_of_the_log_is_final_and_never_repeated() -> None:
    machine = Machine.new()
    node, client = await start(machine)
    await client.write_groups(2)
    client.may_fail = True
    acknowledged = client.ledger.last_seq
    machine.plan.fail(("sync", "*.wal"), errno.EIO)
    answers = await client.write_group([[put(b"lost", b"1")], [put(b"too", b"2")]])
    assert [type(answer) for answer in answers] == [OutcomeUnknown, OutcomeUnknown]
    assert isinstance(node.failure, LogFailed)
    failed_at = len(machine.plan.calls)
    (answer,) = await client.write_group([[put(b"later", b"3")]])
    assert isinstance(answer, Draining)
    assert not await node.stop()
    await node.abandon()
    assert [call for call in machine.plan.calls[failed_at:] if call.operation in ("sync", "write_at")] == []

    # The bytes are in the page cache and nowhere else: what a restart reads there must be made durable to count.
    restarted = machine.after_crash(KEPT)
    opened = restarted.open(CONFIG)
    assert opened.storage.wal.last_seq == acknowledged + 2
    client.ledger.check_recovered(opened.storage, restarted.disk)
    check_recovery(restarted.after_crash(DROPPED), client.ledger, CONFIG)


async def test_a_full_disk_leaves_nothing_of_the_refused_group_in_the_log() -> None:
    machine = Machine.new()
    node, client = await start(machine)
    await client.write_group([[put(b"a", b"1")]])
    segment = LAYOUT.wal / node.store.wal.segments[-1].name
    end = node.store.wal.segments[-1].end
    machine.plan.fail(("write_at", "*.wal"), errno.ENOSPC, partial=0.9)
    before = len(machine.plan.calls)
    answers = await client.write_group([[put(b"b", b"2")], [put(b"c", b"3")]])
    assert [type(answer) for answer in answers] == [StorageFull, StorageFull]
    assert [call.operation for call in machine.plan.calls[before:]] == ["write_at", "truncate", "sync"]
    assert len(machine.disk.stable_snapshot()[segment]) == end
    await client.check_reads()
    (answer,) = await client.write_group([[put(b"d", b"4")]])
    assert isinstance(answer, WriteResult)
    assert answer.position.seq == 2
    assert await node.stop()
    check_recovery(machine.after_crash(DROPPED), client.ledger, CONFIG)


async def test_after_leveldb_failed_the_log_brings_back_what_it_lost() -> None:
    machine = Machine.new()
    machine.engines.memtable_batches = 100
    node, client = await start(machine)
    for key in (b"a", b"b", b"c"):
        await client.write_group([[put(key, b"1")]])
    machine.plan.fail(("engine_write", "*"), errno.EIO)
    # What was acknowledged is gone from LevelDB too, though not the newest of it.
    del machine.engines.database(LAYOUT.db).logs[-1][1]
    (answer,) = await client.write_group([[put(b"d", b"1"), put(b"a", b"2")]])
    assert isinstance(answer, OutcomeUnknown)
    (answer,) = await client.write_group([[put(b"e", b"1")]])
    assert isinstance(answer, WriteResult)
    assert client.ledger.last_seq == 5, "the entry whose outcome was unknown is there"
    assert node.store.counters.engine_rebuilds == 1
    assert "engine_rebuilt" in node.events.names()
    await client.check_reads()
    assert machine.engines.last_opened is not None
    client.ledger.check_engine(machine.engines.last_opened)
    await node.abandon()
    check_recovery(machine.after_crash(DROPPED), client.ledger, CONFIG)


async def test_a_leveldb_without_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_RETRY_FIRST_S", 0.001)
    machine = Machine.new()
    node, client = await start(machine)
    await client.write_group([[put(b"a", b"1")]])
    machine.plan.fail(("engine_write", "*"), errno.ENOSPC)
    full = machine.plan.fail(("engine_open", "*"), errno.ENOSPC, sticky=True)
    (unknown,) = await node.commit([put(b"b", b"1")])
    assert isinstance(unknown, OutcomeUnknown)
    client.ledger.told([[put(b"b", b"1")]], [unknown])
    while full.hits < 3:
        (answer,) = await node.commit([put(b"c", b"1")])
        assert isinstance(answer, StorageFull)
        with pytest.raises(Syncing):
            await node.store.read(b"a")
    machine.plan.failures.clear()
    await node.settle()
    (answer,) = await client.write_group([[put(b"d", b"1")]])
    assert isinstance(answer, WriteResult)
    await client.check_reads()
    assert await node.stop()
    check_recovery(machine.after_crash(DROPPED), client.ledger, CONFIG)


async def test_a_leveldb_that_cannot_be_reopened_stops_the_node() -> None:
    machine = Machine.new()
    node, client = await start(machine)
    client.may_fail = True
    await client.write_group([[put(b"a", b"1")]])
    machine.plan.fail(("engine_write", "*"), errno.EIO)
    machine.plan.fail(("engine_open*", "*"), errno.EIO)
    await client.write_group([[put(b"b", b"1")]])
    assert isinstance(node.failure, EngineFailed)
    (answer,) = await client.write_group([[put(b"c", b"1")]])
    assert isinstance(answer, Draining)
    await node.abandon()
    check_recovery(machine.after_crash(KEPT), client.ledger, CONFIG)


@pytest.mark.parametrize("damage", ["missing", "unreadable", "older-than-the-checkpoint"])
def test_a_lost_leveldb_is_rebuilt_from_a_log_that_is_whole(damage: str) -> None:
    config = tiny_config(wal_keep_bytes=1 << 30)
    machine, ledger = Machine.new(seed=SEED), Ledger()

    async def run() -> None:
        node = SimulatedNode(machine, config)
        ledger.check_recovered(node.opened.storage, machine.disk)
        await Client(node, ledger, Random(SEED)).write_groups(25)
        await node.abandon()

    asyncio.run(run())
    after = machine.after_crash(KEPT)
    assert after.disk.exists(LAYOUT.checkpoint)
    database = after.engines.database(LAYOUT.db)
    match damage:
        case "missing":
            after.engines.lose_everything(LAYOUT.db)
        case "unreadable":
            database.broken = True
        case _:
            after.engines.roll_back(LAYOUT.db, flushes=len(database.earlier))
    check_recovery(after, ledger, config)


@pytest.mark.parametrize("damage", ["missing", "unreadable"])
def test_a_lost_leveldb_is_refused_when_the_log_was_cut(damage: str) -> None:
    machine, ledger = machine_after_a_kill()
    machine = machine.after_crash(KEPT)
    life = Life(machine, ledger)
    assert life.stopped
    after = machine.after_crash(KEPT)
    assert parse_segment_name(after.disk.list_names(LAYOUT.wal)[0]) != 1
    if damage == "missing":
        after.engines.lose_everything(LAYOUT.db)
    else:
        after.engines.database(LAYOUT.db).broken = True
    before = after.disk.snapshot(LAYOUT.wal)
    with pytest.raises(DataLost) as caught:
        after.open(CONFIG)
    assert caught.value.hint
    assert after.disk.snapshot(LAYOUT.wal) == before


def test_a_lost_log_leaves_the_data_of_leveldb() -> None:
    machine, ledger = machine_after_a_kill()
    after = machine.after_crash(KEPT)
    segments = [LAYOUT.wal / name for name in after.disk.list_names(LAYOUT.wal)]
    for path in segments:
        after.disk.remove_file(path)
    events = CapturedEvents()
    opened = after.open(CONFIG, events)
    assert "log_restarted" in events.names()
    assert opened.storage.wal.last_seq == ledger.last_seq
    assert opened.storage.history.current.term > ledger.epoch.term
    ledger.check_engine(opened.storage.engine)
