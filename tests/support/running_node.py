"""A simulated node for tests of the store: it runs while a block lasts, and nothing goes wrong unnoticed."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from kvnode.node.api import Item, KeyRange, RangeStream, WriteResult
from kvnode.node.errors import EngineFailed
from kvnode.protocol.types import put
from support.model_engine import ModelEngine
from support.simulated_node import Machine, SimulatedNode, tiny_config


class RunningNode(SimulatedNode):
    """A simulated node with what tests of its store ask for.

    Attributes:
        failures: everything that `on_failure` was called with.
    """

    def __init__(self, machine: Machine, **settings: int | str) -> None:
        self.failures: list[BaseException] = []
        super().__init__(machine, tiny_config(**settings))

    @property
    def engine(self) -> ModelEngine:
        """The engine that was opened last."""
        engine = self.machine.engines.last_opened
        assert engine is not None
        return engine

    def put(self, key: bytes, value: bytes = b"1") -> asyncio.Future[WriteResult]:
        """Queue one put."""
        return self.store.write([put(key, value)])

    async def get(self, key: bytes) -> bytes | None:
        """A key's value as REST reads it: from the cache, else from the engine."""
        record = self.store.cached(key) or (await self.store.read(key)).record
        return None if record is None else record.value

    async def scan(self, **wanted: Any) -> dict[bytes, bytes]:
        """All items of a range."""
        items: list[Item] = []
        stream = await self.open_range(items.extend, **wanted)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        return dict(items)

    async def open_range(self, take: Callable[[Sequence[Item]], None] = lambda _: None, **wanted: Any) -> RangeStream:
        """Begin a range read whose items `take` gets."""

        def encode(items: Sequence[Item]) -> bytes:
            take(items)
            return b"chunk"

        return await self.store.read_range(KeyRange(**wanted), encode)

    async def groups(self) -> list[str]:
        """The groups that reached the engine, each as "seq FIRST..LAST"."""
        return [call.detail for call in self.machine.plan.calls if call.operation == "engine_write"]

    async def reads_answered(self) -> None:
        """Return when all that the read thread was asked for so far is done, and its answers were heard."""
        await self.store._point_reads.run(lambda: None)

    async def maintained(self) -> None:
        """Likewise for the maintenance thread."""
        await self.store._maintenance.run(lambda: None)

    async def fail_the_engine_outside_of_a_commit(self) -> None:
        """Let a reader find that LevelDB has failed."""
        self.engine.scan = functools.partial(_fail, EngineFailed("a table is gone"))  # type: ignore[method-assign]
        try:
            await self.open_range()
        except Exception:
            return
        raise AssertionError("the range read did not fail")

    def _failed(self, error: BaseException) -> None:
        self.failures.append(error)
        super()._failed(error)


@asynccontextmanager
async def running(machine: Machine | None = None, **settings: int | str) -> AsyncIterator[RunningNode]:
    """A node on a machine, a new one if none is given; killed in the end unless it was stopped.

    Raises:
        AssertionError: a callback raised, or an error that nobody asked about was left in a future.
    """
    loop = asyncio.get_running_loop()
    unheard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unheard.append(context))
    node = RunningNode(machine if machine is not None else Machine.new(), **settings)
    try:
        yield node
    finally:
        await node.abandon()
    assert unheard == []


def _fail(error: BaseException, *_: object) -> Any:
    raise error
