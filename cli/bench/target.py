"""A node as a benchmark sees it: requests of a workload in, what came of them out."""

from __future__ import annotations

from contextlib import aclosing
from types import TracebackType
from typing import NamedTuple, Self

from kvnode.cli.bench.workload import Kind, Request, Workload
from kvnode.cli.client import Client, JsonText


class Performed(NamedTuple):
    """A request that was answered.

    Attributes:
        is_found: whether the key was there, where that matters.
        sent_bytes: of keys and values written.
        received_bytes: of values read, of a range the lines with keys and values.
    """

    is_found: bool = True
    sent_bytes: int = 0
    received_bytes: int = 0


class Target:
    """A client of one node. Use it as an asynchronous context manager.

    Nothing is asked twice: what fails is for the benchmark to count. Reads take what the node has and wait for nothing.

    Args:
        url: of the node.
        timeout_s: of a request.
        connections: most requests in flight.
    """

    def __init__(self, url: str, *, timeout_s: float, connections: int) -> None:
        self._client = Client(url, timeout_s=timeout_s, connections=connections, retries=0)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    async def describe(self) -> dict[str, object]:
        """What the node is, from its status."""
        fields = (await self._client.status()).fields
        return {"url": self._client.url, **{name: fields.get(name) for name in ("name", "role", "version")}}

    async def perform(self, request: Request, workload: Workload) -> Performed:
        """Send a request and wait for the whole answer.

        Raises:
            ClientError: it failed.
        """
        key = request.key
        match request.kind:
            case Kind.PUT:
                ((_, value),) = request.items
                await self._client.put(key, JsonText.trusted(value))
                return Performed(sent_bytes=workload.key_bytes + len(value))
            case Kind.GET:
                record = await self._client.get(key, consistent=False)
                if record is None:
                    return Performed(is_found=False)
                return Performed(received_bytes=len(record.text))
            case Kind.DELETE:
                return Performed(is_found=(await self._client.delete(key)).deleted)
            case Kind.BATCH:
                await self._client.batch((each, JsonText.trusted(value)) for each, value in request.items)
                return Performed(sent_bytes=sum(workload.key_bytes + len(value) for _, value in request.items))
            case Kind.RANGE:
                received = 0
                found = self._client.dump(
                    start=key, prefix=workload.prefix, limit=workload.range_items, consistent=False
                )
                async with aclosing(found) as blocks:
                    async for block in blocks:
                        received += len(block)
                return Performed(received_bytes=received)

    async def keys(self, workload: Workload) -> list[str]:
        """The keys of the workload that are there."""
        async with aclosing(self._client.range(prefix=workload.prefix)) as items:
            return [item.key async for item in items if workload.is_own(item.key)]
