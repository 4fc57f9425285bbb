"""A real node, killed with SIGKILL at random moments under concurrent writers: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.node_process import NodeProcess

ROUNDS = 10
SINGLE_WRITERS = 6
BATCH_WRITERS = 3
BATCH_ITEMS = 20


@dataclass
class Writer:
    """One client's memory across all rounds.

    Attributes:
        sent: the last number it sent.
        kept: the numbers whose own key was acknowledged.
        overwritten: the last number with which the overwriting write, or the batch, was acknowledged.
        seq: of the last acknowledgement.
    """

    name: str
    sent: int = 0
    kept: set[int] = field(default_factory=set)
    overwritten: int = 0
    seq: int = 0


@dataclass
class Clients:
    """All writers, and the highest seq that any of them was told."""

    singles: list[Writer] = field(default_factory=lambda: [Writer(f"s{i}") for i in range(SINGLE_WRITERS)])
    batches: list[Writer] = field(default_factory=lambda: [Writer(f"b{i}") for i in range(BATCH_WRITERS)])
    highest_seq: int = 0

    def note(self, writer: Writer, seq: int) -> None:
        """Take an acknowledgement's seq."""
        assert seq > writer.seq, "a later write of one client has a lower seq"
        writer.seq = seq
        self.highest_seq = max(self.highest_seq, seq)


async def write_until_killed(clients: Clients, url: str, killed: asyncio.Event) -> None:
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=10)) as session:

        async def post(path: str, body: Any) -> int | None:
            try:
                async with session.post(path, json=body) as answer:
                    text = await answer.json()
                    assert answer.status == 200, text
                    return int(text["seq"])
            except (aiohttp.ClientError, ConnectionError):
                assert killed.is_set(), "a connection broke though the node was not killed"
                return None

        async def single(writer: Writer) -> None:
            while not killed.is_set():
                writer.sent += 1
                # A key of its own for every write, and one that every write overwrites.
                number = writer.sent
                seq = await post("/put", {"key": f"{writer.name}/{number}", "value": number})
                if seq is None:
                    return
                clients.note(writer, seq)
                writer.kept.add(number)
                seq = await post("/put", {"key": f"{writer.name}/last", "value": number})
                if seq is None:
                    return
                clients.note(writer, seq)
                writer.overwritten = number

        async def batch(writer: Writer) -> None:
            while not killed.is_set():
                writer.sent += 1
                number = writer.sent
                items = [{"key": f"{writer.name}/{i}", "value": number} for i in range(BATCH_ITEMS)]
                seq = await post("/batchput", items)
                if seq is None:
                    return
                clients.note(writer, seq)
                writer.overwritten = number

        async with asyncio.TaskGroup() as tasks:
            for writer in clients.singles:
                tasks.create_task(single(writer))
            for writer in clients.batches:
                tasks.create_task(batch(writer))


async def check(clients: Clients, url: str) -> None:
    """Compare what the node holds with what the writers know."""
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/readrange") as answer:
            assert answer.status == 200
            held = {item["key"]: item["value"] for item in (await answer.json())["items"]}
        async with session.get("/status") as answer:
            status = await answer.json()
    assert status["applied_seq"] == status["last_seq"] >= clients.highest_seq
    for writer in clients.singles:
        for number in writer.kept:
            assert held[f"{writer.name}/{number}"] == number
        assert writer.overwritten <= held.get(f"{writer.name}/last", 0) <= writer.sent
    for writer in clients.batches:
        numbers = {held.get(f"{writer.name}/{i}", 0) for i in range(BATCH_ITEMS)}
        assert len(numbers) == 1, f"a batch of {writer.name} is not whole: {numbers}"
        assert writer.overwritten <= numbers.pop() <= writer.sent


@pytest.mark.timeout(180)
async def test_nothing_acknowledged_is_lost_by_sigkill(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    clients = Clients()
    # Small segments, so that kills hit rotations and checkpoints too.
    node = NodeProcess(tmp_path / "data", "--wal-segment-bytes", "64KiB", "--wal-keep-bytes", "256KiB")
    terms = []
    try:
        for _ in range(ROUNDS):
            node.start()
            node.wait_ready()
            await check(clients, node.url)
            before = clients.highest_seq
            killed = asyncio.Event()
            writing = asyncio.create_task(write_until_killed(clients, node.url, killed))
            await asyncio.sleep(moments.uniform(0.05, 0.8))
            terms.append(node.status()["epoch"].partition(".")[0])
            killed.set()
            node.kill()
            await writing
            assert clients.highest_seq > before, "nothing was written in this round"
        node.start()
        node.wait_ready()
        await check(clients, node.url)
    finally:
        node.stop()
    assert [int(term) for term in terms] == list(range(1, ROUNDS + 1)), "every start begins a new epoch"
