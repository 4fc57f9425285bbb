"""A client of a simulated node whose writes follow from a seed, and the checks of what it was told."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from kvnode.node.api import WriteResult
from kvnode.node.commit import Committer
from kvnode.node.config import Config
from kvnode.protocol.types import Op, delete, put
from support.crash_plan import DROPPED
from support.ledger import Ledger
from support.simulated_node import LAYOUT, Machine, SimulatedNode, SteppingClock

KEYS = [b"key-%d" % number for number in range(9)]


class Client:
    """Writes groups that a seed decides, and keeps the ledger.

    Attributes:
        may_fail: whether the node may stop by itself.
        settles: whether each group waits for the checkpoint that the one before may have asked for. If not, the order
            of the node's calls is not the same each time.
    """

    def __init__(self, node: SimulatedNode, ledger: Ledger, rng: Random, *, may_fail: bool = False) -> None:
        self.node = node
        self.ledger = ledger
        self.may_fail = may_fail
        self.settles = True
        self._rng = rng

    async def write_groups(self, count: int) -> list[WriteResult | BaseException]:
        """Commit some groups one after the other; returns all answers."""
        answers: list[WriteResult | BaseException] = []
        for _ in range(count):
            answers += await self.write_group([self._make_write() for _ in range(self._rng.randint(1, 3))])
        return answers

    async def write_group(self, writes: Sequence[Sequence[Op]]) -> list[WriteResult | BaseException]:
        """Commit one group, and wait for what the node does after it.

        Raises:
            SimulatedCrash: the process died meanwhile.
        """
        answers = await self.node.commit(*writes)
        self.ledger.told(writes, answers)
        if self.settles:
            await self.node.settle()
        self.node.machine.plan.check_alive()
        assert self.may_fail or self.node.failure is None, f"the node failed: {self.node.failure!r}"
        return answers

    async def check_reads(self) -> None:
        """Check that the node reads as the ledger says, from the cache or from LevelDB."""
        records = self.ledger.records()
        for key in KEYS:
            record = self.node.store.cached(key) or (await self.node.store.read(key)).record
            assert record == records.get(key)
        assert self.node.store.applied.seq == self.ledger.last_seq

    def _make_write(self) -> list[Op]:
        fate = self._rng.random()
        if fate < 0.55:
            return [self._make_put()]
        if fate < 0.75:
            return [delete(self._rng.choice(KEYS))]
        return [
            self._make_put() if self._rng.random() < 0.7 else delete(self._rng.choice(KEYS))
            for _ in range(self._rng.randint(2, 4))
        ]

    def _make_put(self) -> Op:
        filling = b"x" * self._rng.choice((0, 40, 300, 900))
        return put(self._rng.choice(KEYS), b'"%d %s"' % (self._rng.randrange(10**9), filling))


def check_recovery(machine: Machine, ledger: Ledger, config: Config) -> None:
    """Recover after a crash, write on, lose the power, recover again; check each time what the ledger says.

    What recovery found in the page cache only, and served, must by then be as durable as what is new.
    """
    opened = machine.open(config)
    storage = opened.storage
    ledger.check_recovered(storage, machine.disk)
    committer = Committer(storage.wal, storage.engine, storage.history.current, SteppingClock(), synced=True)
    writes: list[list[Op]] = [[put(b"after", b'"%d"' % ledger.last_seq)], [delete(KEYS[0]), put(KEYS[1], b"1")]]
    ledger.told(writes, committer.commit(writes).outcomes)
    machine = machine.after_crash(DROPPED)
    opened = machine.open(config)
    ledger.check_recovered(opened.storage, machine.disk)
    assert machine.disk.open_handles() == [LAYOUT.wal / opened.storage.wal.segments[-1].name]
