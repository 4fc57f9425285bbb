"""A node's storage on a simulated machine: the real start-up, store and stop on a disk and a LevelDB that can crash."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvnode.node.api import WriteResult
from kvnode.node.config import Config
from kvnode.node.startup import OpenedDirectory, begin_reign, open_directory
from kvnode.node.storage.datadir import Layout
from kvnode.node.storage.replay import reopen_engine
from kvnode.node.store import Store
from kvnode.protocol.errors import KvError
from kvnode.protocol.types import Op
from support.crash_plan import KEPT, CrashPlan, SimulatedCrash, Survival
from support.events import CapturedEvents
from support.memory_disk import MemoryDisk
from support.model_engine import ModelEngineDisk

DATA = Path("/data")
LAYOUT = Layout(DATA)

#: Long enough for any close here: nothing is inside that does not come out.
_CLOSE_TIMEOUT_S = 20.0


def tiny_config(**settings: int | str) -> Config:
    """A node whose segments are as small as they may be and whose log is soon cut."""
    defaults: dict[str, int | str] = {"wal_segment_bytes": 4096, "wal_keep_bytes": 9000, "name": "tiny"}
    return Config(data=DATA, **{**defaults, **settings})  # type: ignore[arg-type]


class SteppingClock:
    """`Clock` whose time is a millisecond later at each look."""

    def __init__(self) -> None:
        self._now_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        self._now_ms += 1
        return self._now_ms

    def monotonic_s(self) -> float:
        return self.now_ms() / 1000


@dataclass(frozen=True, slots=True)
class Machine:
    """What survives a process: the disk, and LevelDB's files on it."""

    disk: MemoryDisk
    engines: ModelEngineDisk

    @classmethod
    def new(cls, *, seed: int = 0, plan: CrashPlan | None = None) -> Machine:
        """A machine with an empty data directory whose name is durable."""
        disk = MemoryDisk()
        disk.make_directory(DATA)
        disk.sync_directory(DATA.parent)
        return cls(disk, ModelEngineDisk(disk, seed=seed)).after_crash(KEPT, plan)

    def after_crash(self, survival: Survival, plan: CrashPlan | None = None) -> Machine:
        """The machine as the next process would find it, were the crash now; this one stays as it is."""
        disk = self.disk.after_crash(survival, plan)
        return Machine(disk, self.engines.after_crash(survival, disk))

    @property
    def plan(self) -> CrashPlan:
        """The life of the process that runs on it."""
        return self.disk.plan

    def open(self, config: Config, events: CapturedEvents | None = None) -> OpenedDirectory:
        """Start up as a primary does, up to the point from which it could serve."""
        log = events or CapturedEvents()
        opened = open_directory(config, self.disk, self.engines, log)
        begin_reign(opened, log)
        return opened


class SimulatedNode:
    """A running node without its network fronts. Made and used on one event loop.

    Attributes:
        failure: why the node would have exited, None while it would not.
        events: the events logged so far.
    """

    def __init__(self, machine: Machine, config: Config) -> None:
        """Start on a machine; raises what start-up raises."""
        self.machine = machine
        self.failure: BaseException | None = None
        self._ended = False
        self.events = CapturedEvents()
        self.opened = machine.open(config, self.events)
        self.store = Store(
            config,
            self.opened.storage,
            self.opened.files,
            functools.partial(reopen_engine, machine.disk, Layout(config.data), machine.engines),
            SteppingClock(),
            self.events,
            self._failed,
        )

    async def commit(self, *writes: Sequence[Op]) -> list[WriteResult | BaseException]:
        """Commit writes as one group, and return what each one's client is told."""
        futures = [self._write(ops) for ops in writes]
        return await asyncio.gather(*futures, return_exceptions=True)

    async def settle(self) -> None:
        """Return when no checkpoint and no rebuilding is under way."""
        store = self.store
        # The store has no use for such a wait itself, and offers none.
        while True:
            tasks = [task for task in (store._checkpoints.task, store._rebuild_task) if task is not None]
            for task in tasks:
                # A crash in one is no news: the plan knows of it. Any other exception is.
                assert not task.done() or task.cancelled() or isinstance(task.exception(), SimulatedCrash | None)
            if all(task.done() for task in tasks):
                return
            await asyncio.wait(tasks)

    async def stop(self) -> bool:
        """Stop in order; returns whether that was a clean stop."""
        self._ended = True
        self.store.stop_writes()
        await self.store.drain()
        return await self.store.close(_CLOSE_TIMEOUT_S)

    async def abandon(self) -> None:
        """End the process, unless it ended before, as a kill does; only its threads are stopped."""
        self.machine.plan.kill()
        if not self._ended:
            await self.settle()
        self._ended = True
        store = self.store
        # Nothing of a proper stop is to run, and the threads have nothing left to do.
        for worker in (store._commits, store._point_reads, *store._range_reads, store._maintenance):
            worker.stop()

    def _write(self, ops: Sequence[Op]) -> asyncio.Future[WriteResult]:
        try:
            return self.store.write(ops)
        except KvError as error:
            refused: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

    def _failed(self, error: BaseException) -> None:
        self.failure = error
