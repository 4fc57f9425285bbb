"""The process dies in every single call that it makes to the disk and to LevelDB; what was acknowledged is never lost.

A scripted node goes through several lives: rotations, checkpoints, retention, a full disk, a failing LevelDB, clean
stops, a torn tail, kills. Each life is run once to count its calls, then once for every call with a crash in it. After
each crash the machine is recovered as after a kill, a power loss, and several power losses that tear what was not
synced; recovery is crashed too; and each time the recovered node must hold all that was acknowledged and nothing that
nobody wrote.

A failure names its case; ``pytest tests/faults/test_crash_everywhere.py --crash-case CASE`` runs that one alone.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import pytest

from kvnode.node.api import WriteResult
from kvnode.node.config import Config
from kvnode.node.errors import OutcomeUnknown, StorageFull
from kvnode.protocol.types import delete, put
from support.client import KEYS, Client, check_recovery
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash, Survival, torn
from support.ledger import Ledger
from support.simulated_node import Machine, SimulatedNode, tiny_config

CONFIG = tiny_config()
UNSAFE_CONFIG = tiny_config(fsync="never")

#: Operations that can be half done when the process dies in them, and how much of them then is.
PARTIAL = {
    "write_at": (0.0, 0.6, 1.0),
    "allocate": (0.0, 0.5),
    "engine_open_paranoid": (0.0, 1.0),
    "engine_write": (0.0, 1.0),
    "engine_flush": (0.0, 1.0),
}


# ---- the lives -------------------------------------------------------------------------------------------------


async def fill_the_disk(node: SimulatedNode, client: Client) -> None:
    """A new directory; the disk fills up and gets room again; a clean stop."""
    await client.write_groups(6)
    node.machine.plan.fail(("write_at", "*.wal"), errno.ENOSPC, partial=0.8)
    answers = await client.write_group([[put(key, b"1")] for key in KEYS[:4]])
    assert all(isinstance(answer, StorageFull) for answer in answers)
    await client.write_groups(3)
    node.machine.disk.free_bytes = 700
    answers = []
    while not any(isinstance(answer, StorageFull) for answer in answers):
        answers = await client.write_groups(1)
    await client.write_groups(2)
    await client.check_reads()
    node.machine.disk.free_bytes = None
    answers = await client.write_groups(5)
    assert all(isinstance(answer, WriteResult) for answer in answers)
    await client.check_reads()
    assert await node.stop()


async def die_inside_a_write(node: SimulatedNode, client: Client) -> None:
    """A start after a clean stop, which ends in the middle of a write to the log."""
    await client.write_groups(8)
    plan = node.machine.plan
    if plan.crash_at is None:
        plan.crash_at, plan.crash_partial = len(plan.calls) + 1, 0.6
    await client.write_group([[put(b"torn", b'"%s"' % (b"y" * 1200))], [put(KEYS[0], b"2")]])


async def survive_failures_of_leveldb(node: SimulatedNode, client: Client) -> None:
    """A start over a torn tail; LevelDB fails in a write and in a checkpoint; the process is killed."""
    await client.write_groups(3)
    node.machine.plan.fail(("engine_write", "*"), errno.EIO, partial=0.5)
    answers = await client.write_group([[put(KEYS[1], b"1")], [put(KEYS[2], b"2")]])
    assert all(isinstance(answer, OutcomeUnknown) for answer in answers)
    await client.write_groups(3)
    failing = node.machine.plan.fail(("engine_flush", "*"), errno.EIO, partial=1)
    while not failing.hits:
        await client.write_groups(1)
    await client.write_groups(2)
    await client.check_reads()
    await node.abandon()


async def write_large_values(node: SimulatedNode, client: Client) -> None:
    """A start after a kill; values that are larger than a segment; a clean stop."""
    await client.write_group([[put(KEYS[3], b'"%s"' % (b"z" * 6000))]])
    await client.write_groups(3)
    await client.write_group([[put(b"a" * 4096, b"1"), put(b"b", b'"%s"' % (b"z" * 3000))], [delete(KEYS[3])]])
    await client.write_groups(3)
    assert await node.stop()


async def write_nothing(node: SimulatedNode, client: Client) -> None:
    """A start and a clean stop without a write between."""
    await client.check_reads()
    assert await node.stop()


@dataclass(frozen=True, slots=True)
class Life:
    """One process: what it does, and what the crash or stop at its end leaves for the next."""

    script: Callable[[SimulatedNode, Client], Awaitable[None]]
    survival: Survival

    @property
    def name(self) -> str:
        return self.script.__name__


LIVES = (
    Life(fill_the_disk, KEPT),
    Life(die_inside_a_write, torn(3)),
    Life(survive_failures_of_leveldb, KEPT),
    Life(write_large_values, DROPPED),
    Life(write_nothing, KEPT),
    Life(survive_failures_of_leveldb, torn(11)),
    Life(write_nothing, KEPT),
)


def live(life: Life, machine: Machine, ledger: Ledger, seed: int, config: Config = CONFIG) -> None:
    """Run a life to its end, or until the machine's plan ends it."""

    async def run() -> None:
        node = SimulatedNode(machine, config)
        try:
            ledger.check_recovered(node.opened.storage, machine.disk)
            await life.script(node, Client(node, ledger, Random(f"{seed}/{life.name}/{ledger.last_seq}")))
        finally:
            await node.abandon()

    asyncio.run(run())


# ---- the cases -------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A crash in a call of a life, perhaps one in the recovery that follows, and what survives them."""

    seed: int
    life: int
    call: int
    partial: float
    survival: Survival
    second_call: int = 0
    second_partial: float = 0.0
    second_survival: Survival = KEPT

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Case:
        seed, life, call, partial, survival, *second = text.split("/")
        case = cls(int(seed), int(life), int(call), float(partial), Survival.parse(survival))
        if not second:
            return case
        return case._replace(
            second_call=int(second[0]), second_partial=float(second[1]), second_survival=Survival.parse(second[2])
        )


class Sweep:
    """All crashes of one life of one seed."""

    def __init__(self, seed: int, life: int, torn_seeds: int) -> None:
        self._seed = seed
        self._number = life
        self._life = LIVES[life]
        self._survivals = [KEPT, DROPPED, *(torn(1000 * seed + each) for each in range(torn_seeds))]
        self._machine, self._ledger = self._lives_before()
        self._crashed: tuple[tuple[int, float], Machine, Ledger] | None = None

    def cases(self, *, second_crashes: int) -> Iterator[Case]:
        """Every call with every survival; then with a crash in so many calls of the recovery too."""
        machine = self._machine.after_crash(KEPT)
        try:
            live(self._life, machine, self._ledger.copy(), self._seed)
        except SimulatedCrash:
            assert machine.plan.crash_at is not None, "the script has no crash"
        for call in machine.plan.calls:
            for partial in PARTIAL.get(call.operation, (0.0,)):
                for survival in self._survivals:
                    case = Case(self._seed, self._number, call.number, partial, survival)
                    yield case
                    yield from self._second_crashes(case, second_crashes)

    def check(self, case: Case) -> None:
        """Run a case."""
        machine, ledger = self._crash(case)
        if case.second_call:
            machine = machine.after_crash(case.survival, CrashPlan(case.second_call, case.second_partial))
            with pytest.raises(SimulatedCrash):
                machine.open(CONFIG)
            machine = machine.after_crash(case.second_survival)
        else:
            machine = machine.after_crash(case.survival)
        check_recovery(machine, ledger, CONFIG)

    def _lives_before(self) -> tuple[Machine, Ledger]:
        machine, ledger = Machine.new(seed=self._seed), Ledger()
        for life in LIVES[: self._number]:
            try:
                live(life, machine, ledger, self._seed)
            except SimulatedCrash:
                assert machine.plan.crash_at is not None, "the script has no crash"
            machine = machine.after_crash(life.survival)
        return machine, ledger

    def _crash(self, case: Case) -> tuple[Machine, Ledger]:
        """The machine and the ledger after the case's first crash."""
        wanted = (case.call, case.partial)
        if self._crashed is None or self._crashed[0] != wanted:
            machine = self._machine.after_crash(KEPT, CrashPlan(*wanted))
            ledger = self._ledger.copy()
            with pytest.raises(SimulatedCrash):
                live(self._life, machine, ledger, self._seed)
            machine.disk.free_bytes = None
            self._crashed = wanted, machine, ledger
        return self._crashed[1], self._crashed[2].copy()

    def _second_crashes(self, case: Case, count: int) -> Iterator[Case]:
        recovering = self._crash(case)[0].after_crash(case.survival)
        recovering.open(CONFIG)
        rng = Random(str(case))
        calls = recovering.plan.calls
        for call in rng.sample(calls, min(count, len(calls))):
            partial = rng.choice(PARTIAL.get(call.operation, (0.0,)))
            survival = rng.choice((KEPT, DROPPED, torn(rng.randrange(1000))))
            yield case._replace(second_call=call.number, second_partial=partial, second_survival=survival)


def run_case(sweep: Sweep, case: Case) -> None:
    """Run a case; if it fails, say how to run it alone."""
    try:
        sweep.check(case)
    except BaseException as error:
        error.add_note(f"to run this alone: pytest tests/faults/test_crash_everywhere.py --crash-case {case}")
        raise


@pytest.mark.parametrize("life", range(len(LIVES)), ids=[f"{n}-{life.name}" for n, life in enumerate(LIVES)])
def test_a_crash_in_every_call_loses_nothing_acknowledged(life: int, pytestconfig: pytest.Config) -> None:
    chosen = pytestconfig.getoption("--crash-case")
    if chosen:
        case = Case.parse(chosen)
        if case.life != life:
            pytest.skip("the case is of another life")
        run_case(Sweep(case.seed, life, 0), case)
        return
    long = pytestconfig.getoption("--long")
    for seed in range(6) if long else (1,):
        sweep = Sweep(seed, life, torn_seeds=5 if long else 2)
        for case in sweep.cases(second_crashes=4 if long else 1):
            run_case(sweep, case)


async def write_beside_checkpoints(node: SimulatedNode, client: Client) -> None:
    """Groups that do not wait for the checkpoints that run beside them."""
    client.settles = False
    await client.write_groups(25)
    await node.settle()
    assert await node.stop()


def test_a_crash_while_a_checkpoint_runs_beside_writes_loses_nothing_acknowledged() -> None:
    """The threads' order differs from run to run, so a failure here may take several runs to come again."""
    life, base = Life(write_beside_checkpoints, KEPT), Machine.new(seed=7)
    counted = base.after_crash(KEPT)
    live(life, counted, Ledger(), 7)
    calls, crashes = len(counted.plan.calls), 0
    for number in range(1, calls):
        machine, ledger = base.after_crash(KEPT, CrashPlan(number, 0.5)), Ledger()
        try:
            live(life, machine, ledger, 7)
        except SimulatedCrash:
            crashes += 1
        for survival in (KEPT, DROPPED, torn(number)):
            try:
                check_recovery(machine.after_crash(survival), ledger.copy(), CONFIG)
            except BaseException as error:
                error.add_note(f"{survival} after\n{machine.plan.story()}")
                raise
    # A run may have fewer calls than the one that was counted, and end before it would crash.
    assert crashes > 0.8 * calls


def test_without_fsync_a_kill_loses_nothing_and_a_power_loss_leaves_a_node_that_starts() -> None:
    """With ``--fsync never`` nothing is promised about a power loss but that the node goes on with what is left."""
    life, base = LIVES[0], Machine.new(seed=3)
    counted = base.after_crash(KEPT)
    live(life, counted, Ledger(), 3, UNSAFE_CONFIG)
    for call in counted.plan.calls:
        machine, ledger = base.after_crash(KEPT, CrashPlan(call.number, 0.5)), Ledger()
        with pytest.raises(SimulatedCrash):
            live(life, machine, ledger, 3, UNSAFE_CONFIG)
        machine.disk.free_bytes = None
        killed = machine.after_crash(KEPT)
        ledger.copy().check_recovered(killed.open(UNSAFE_CONFIG).storage, killed.disk)
        for survival in (DROPPED, *map(torn, range(8))):
            left = machine.after_crash(survival)
            try:
                ledger.check_started(left.open(UNSAFE_CONFIG).storage)
            except BaseException as error:
                error.add_note(f"after {call}, {survival}")
                raise
