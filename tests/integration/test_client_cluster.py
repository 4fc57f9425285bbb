"""The client against real nodes: it reads its own writes wherever it reads, and outlives the node that it is using."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kvnode.cli.client import Client, ClientError, HistoryLost, ServerError
from support.cluster import WAIT_S, Cluster, log_entries, records
from support.node_process import NodeProcess

WRITERS = 3
READERS = 3


async def until(is_true: Callable[[], object], what: str, *tasks: asyncio.Task[None]) -> None:
    """Return once the condition holds; raise what a task raises meanwhile."""
    async with asyncio.timeout(WAIT_S):
        while not is_true():
            for task in tasks:
                if task.done():
                    task.result()
                    raise AssertionError(f"a task has ended before {what}")
            await asyncio.sleep(0.01)


async def value_of(client: Client, key: str) -> object:
    record = await client.get(key)
    return None if record is None else record.value


async def test_reads_through_a_late_replica_see_what_was_written_and_say_when_it_is_lost(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1, proxied=["web2"]) as cluster:
        web1, web2, link = cluster.web1.url, cluster.web2.url, cluster.links["web2"]
        async with Client(web1, web2) as writer:
            await writer.put("k", "before")
            position = str(writer.position)
            async with Client(web2, position=position) as reader:
                assert await value_of(reader, "k") == "before"
            link.stall("down")
            await writer.put("k", "new")
            position = str(writer.position)
            async with (
                Client(web2, position=position) as patient,
                Client(web2, position=position, retries=0) as impatient,
                Client(web2, web1, position=position) as mobile,
            ):
                waiting = asyncio.create_task(value_of(patient, "k"))
                old = await patient.get("k", consistent=False)
                assert old is not None
                assert old.value == "before"
                refused, elsewhere = await asyncio.gather(
                    impatient.get("k"), value_of(mobile, "k"), return_exceptions=True
                )
                assert isinstance(refused, ServerError)
                assert (refused.code, refused.url) == ("not_caught_up", web2)
                assert elsewhere == "new"
                assert mobile.url == web1
                assert not waiting.done()
                link.heal()
                assert await waiting == "new"
                assert [item.value async for item in impatient.range(prefix="k")] == ["new"]

            # What the replica never got is lost by its promotion; a client that saw it hears of that.
            link.stall("down")
            lost = await writer.put("lost", 1)
            cluster.web1.kill()
            async with Client(web2) as operator:
                await operator.promote(force=True)
            with pytest.raises(HistoryLost, match=str(lost.position)):
                await writer.get("k")
            # Writes go on, and do not make it forget.
            await writer.put("k", "newest")
            with pytest.raises(HistoryLost, match=str(lost.position)):
                await writer.get("k")
            writer.forget_position()
            assert await value_of(writer, "k") == "newest"
            assert await writer.get("lost") is None


class Busy:
    """One client with tasks that write and read all the time, and what it was told.

    Attributes:
        acked: the values of writes that returned, by key; each has a key of its own.
        unknown: those of writes that may have happened.
        reads: how many returned.
    """

    def __init__(self, client: Client) -> None:
        self.acked: dict[str, int] = {}
        self.unknown: dict[str, int] = {}
        self.reads = 0
        self._client = client
        self._stopped = False

    def start(self) -> list[asyncio.Task[None]]:
        jobs: list[Awaitable[None]] = [self._write_on(number) for number in range(WRITERS)]
        jobs += [self._read_on(number) for number in range(READERS)]
        return [asyncio.ensure_future(job) for job in jobs]  # type: ignore[arg-type]

    def stop(self) -> None:
        self._stopped = True

    async def _write_on(self, writer: int) -> None:
        number = 0
        while not self._stopped:
            number += 1
            key = f"w{writer}/{number:06}"
            try:
                await self._client.put(key, number)
            except ClientError as error:
                if not error.maybe_written:
                    # The client was to overcome that.
                    raise
                self.unknown[key] = number
            else:
                self.acked[key] = number
            await asyncio.sleep(0.001)

    async def _read_on(self, reader: int) -> None:
        chosen = random.Random(reader)
        while not self._stopped:
            await asyncio.sleep(0.001)
            if not self.acked:
                continue
            key = chosen.choice(list(self.acked))
            if reader:
                assert await value_of(self._client, key) == self.acked[key], key
            else:
                items = [item async for item in self._client.range(start=key, limit=1)]
                assert [(item.key, item.value) for item in items] == [(key, self.acked[key])]
            self.reads += 1

    async def go_on(self, *tasks: asyncio.Task[None]) -> None:
        """Return when some more writes and reads have returned."""
        acked, reads = len(self.acked), self.reads
        await until(lambda: len(self.acked) >= acked + 30 and self.reads >= reads + 30, "it went on", *tasks)


async def test_reads_go_on_and_no_write_is_lost_or_doubled_when_nodes_are_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        web1, web2, web3 = cluster.nodes
        async with Client(web2.url, web3.url) as client:
            busy = Busy(client)
            tasks = busy.start()
            await busy.go_on(*tasks)
            assert client.url == web2.url
            web2.kill()
            await busy.go_on(*tasks)
            assert client.url == web3.url

            # Its primary goes, too: writes wait for the next one, reads do not.
            web1.kill()
            reads = busy.reads
            await until(lambda: busy.reads >= reads + 30, "reads went on", *tasks)
            async with Client(web3.url) as operator:
                await operator.promote()
            await busy.go_on(*tasks)
            busy.stop()
            await asyncio.gather(*tasks)
            check_ledger(busy, web3)
            assert {key: await value_of(client, key) for key in busy.acked} == busy.acked


def check_ledger(busy: Busy, node: NodeProcess) -> None:
    """Check that a node holds what was acknowledged, and of the rest only what may be there, all of it written once."""
    held = records(node)
    assert {key: held.get(key) for key in busy.acked} == busy.acked
    assert held.items() <= (busy.acked | busy.unknown).items()
    log = log_entries(node.data / "wal").values()
    for key in held:
        assert sum(key.encode() in entry for entry in log) == 1, f"{key} was written more than once"
    # Each writer has one write in flight when a node dies, or becomes the primary.
    assert len(busy.unknown) <= 3 * WRITERS
