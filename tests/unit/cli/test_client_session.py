"""A client as a session: what its reads ask for, and what it makes of an answer that says "lost"."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from kvnode.cli.client import Client, HistoryLost, NoNodeAvailable, ServerError
from kvnode.protocol.types import Epoch, Position
from support.stub_server import EPOCH, Answer, StubServer

NEXT_EPOCH = "2.0000beef"


def at(seq: int, epoch: str = EPOCH) -> Position:
    return Position(Epoch.parse(epoch), seq)


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[StubServer, StubServer, Client]]:
    async with StubServer() as a, StubServer() as b, Client(a.url, b.url, retries=0) as client:
        yield a, b, client


def promote(stub: StubServer, *, at_seq: int) -> None:
    """Let a stub be in a new reign, which began after `at_seq`."""
    stub.earlier[EPOCH] = at_seq
    stub.epoch = NEXT_EPOCH


async def read_range(client: Client) -> list[str]:
    return [item.key async for item in client.range()]


async def dump(client: Client) -> list[bytes]:
    return [block async for block in client.dump()]


READS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "get": lambda client: client.get("a"),
    "get nothing": lambda client: client.get("nope"),
    "range": read_range,
    "dump": dump,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_every_read_asks_for_what_was_seen(read: Callable[[Client], Awaitable[object]]) -> None:
    async with StubServer() as stub, Client(stub.url, retries=0) as client:
        await read(client)
        assert "?" not in stub.requests[-1].raw_path
        assert client.position == at(0)
        # There is nothing to ask for before the first entry.
        await read(client)
        assert "?" not in stub.requests[-1].raw_path
        written = await client.put("a", 1)
        assert client.position == written.position == at(1)
        await read(client)
        assert stub.requests[-1].raw_path.endswith(f"?min_seq=1&epoch={EPOCH}")
        # Somebody else writes, and this client sees it.
        stub.seq = 9
        await read(client)
        await read(client)
        assert stub.requests[-1].raw_path.endswith(f"?min_seq=9&epoch={EPOCH}")


async def test_every_write_is_seen() -> None:
    async with StubServer() as stub, Client(stub.url, retries=0) as client:
        await client.batch({"a": 1})
        assert client.position == at(1)
        await client.delete("a")
        assert client.position == at(2)
        stub.faults["/put"].append(Answer(504, "replication_timeout", fields={"seq": 7, "epoch": EPOCH}))
        with pytest.raises(ServerError) as caught:
            await client.put("a", 1, acks=1)
        # It is durable on the primary.
        assert caught.value.position == client.position == at(7)


async def test_a_node_that_lags_is_passed_over() -> None:
    async with two_nodes() as (a, b, client):
        client.advance(at(5))
        b.records["k"] = (5, '"new"')
        a.seq, b.seq = 4, 5
        record = await client.get("k")
        assert record is not None
        assert record.value == "new"
        assert client.url == b.url
        b.seq = 4
        with pytest.raises(NoNodeAvailable) as caught:
            await client.get("k")
        assert {error.code for error in caught.value.failures.values()} == {"not_caught_up"}


async def test_a_read_that_need_not_be_consistent_neither_asks_nor_counts() -> None:
    async with StubServer() as stub, Client(stub.url, position=at(5), retries=0) as client:
        stub.seq = 3
        stub.records["k"] = (3, "1")
        assert await client.get("k", consistent=False) is not None
        assert await client.get("nope", consistent=False) is None
        assert [item.key async for item in client.range(consistent=False)] == ["k"]
        stub.seq = 9
        assert [block async for block in client.dump(consistent=False)] == [b'{"key":"k","value":1}\n']
        assert client.position == at(5)
        assert not any("min_seq" in seen.raw_path for seen in stub.requests)


async def test_a_position_goes_to_another_client_as_text() -> None:
    async with StubServer() as stub, Client(stub.url, retries=0) as writer:
        await writer.put("a", 1)
        async with Client(stub.url, position=str(writer.position), retries=0) as reader:
            assert await reader.get("a") is not None
            assert stub.requests[-1].raw_path == f"/read/a?min_seq=1&epoch={EPOCH}"
            await writer.put("a", 2)
            reader.advance(str(writer.position))
            assert reader.position == at(2)
            # Never backwards.
            reader.advance(at(1))
            assert reader.position == at(2)
    with pytest.raises(ValueError, match="not a position"):
        Client(position="7")


async def test_a_lost_history_is_said_until_the_client_begins_anew() -> None:
    async with StubServer() as stub, Client(stub.url, retries=0) as client:
        for value in range(10):
            await client.put("a", value)
        promote(stub, at_seq=8)
        stub.seq = 20
        for _ in range(2):
            with pytest.raises(HistoryLost) as caught:
                await client.get("a")
            assert (caught.value.status, caught.value.code, caught.value.url) == (409, "history_lost", stub.url)
            assert "forget_position()" in str(caught.value.hint)
        client.forget_position()
        assert client.position is None
        assert await client.get("a") is not None
        assert client.position == at(20, NEXT_EPOCH)


async def test_a_node_that_is_left_behind_by_a_promotion_is_passed_over() -> None:
    async with two_nodes() as (a, b, client):
        # The client has read from b, which says of a's reign what a does not know.
        client.advance(at(6, NEXT_EPOCH))
        a.epoch, b.epoch = "3.0000dead", NEXT_EPOCH
        a.seq = b.seq = 8
        assert await client.get("nope") is None
        assert client.url == b.url


async def test_a_read_after_a_promotion_that_lost_nothing_goes_on() -> None:
    async with StubServer() as stub, Client(stub.url, retries=0) as client:
        await client.put("a", 1)
        promote(stub, at_seq=1)
        stub.seq = 3
        assert await client.get("a") is not None
        assert client.position == at(3, NEXT_EPOCH)
        assert len(stub.requests) == 2


async def test_a_write_in_a_new_reign_does_not_hide_that_earlier_ones_are_lost() -> None:
    async with StubServer() as stub, Client(stub.url, retries=0) as client:
        for value in range(10):
            await client.put("a", value)
        # Promoted where seq 10 was not yet, and others have written since.
        promote(stub, at_seq=9)
        stub.seq = 20
        written = await client.put("b", 1)
        assert client.position == written.position == at(21, NEXT_EPOCH)
        for read in READS.values():
            with pytest.raises(HistoryLost, match=f"{EPOCH}-10 is not in this node's history"):
                await read(client)
        client.forget_position()
        assert await client.get("b") is not None


async def test_what_was_written_before_a_promotion_is_confirmed_once() -> None:
    async with StubServer() as stub, Client(stub.url, retries=0) as client:
        await client.put("a", 1)
        promote(stub, at_seq=1)
        await client.put("b", 1)
        del stub.requests[:]
        assert await client.get("b") is not None
        newest, earlier = f"?min_seq=2&epoch={NEXT_EPOCH}", f"?min_seq=1&epoch={EPOCH}"
        assert [seen.raw_path for seen in stub.requests] == [
            f"/read/-{newest}",
            f"/read/-{earlier}",
            f"/read/b{newest}",
        ]
        await client.get("b")
        assert [seen.raw_path for seen in stub.requests[3:]] == [f"/read/b{newest}"]


async def test_a_node_of_the_old_reign_cannot_confirm_anything() -> None:
    async with two_nodes() as (a, b, client):
        await client.put("a", 1)
        b.records, b.seq = {"a": (1, "1")}, 1
        promote(b, at_seq=1)
        a.faults["/put"].append(Answer(503, "no_primary"))
        assert (await client.put("b", 1)).position == at(2, NEXT_EPOCH)
        # Node a would say that it has what was written first; but it does not know of the second.
        b.faults["/read"].append(Answer(503, "syncing"))
        with pytest.raises(NoNodeAvailable) as caught:
            await client.get("a")
        assert [error.code for error in caught.value.failures.values()] == ["syncing", "not_caught_up"]
        assert await client.get("a") is not None
        assert client.url == b.url
