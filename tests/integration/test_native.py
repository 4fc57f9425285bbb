"""The native client and real nodes: many requests at once beside REST, a replica, promotion, kill and stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from kvnode.cli.client import Client, HistoryLost, NativeClient, Position, ServerError, Unanswered, Unreachable
from kvnode.node.config import Address
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.messages import Message, Purpose, Read, ReadResult, Welcome, Write, WriteResult
from kvnode.protocol.types import Epoch, put
from support.cluster import STOP_S, Cluster, kvnode
from support.peers import hello


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), replicas=1) as running:
        running.wait_following()
        yield running


async def test_thousands_of_calls_at_once_and_rest_sees_the_same(cluster: Cluster) -> None:
    async with NativeClient(cluster.web1.peer) as client:
        written = await asyncio.gather(*[client.put(f"many/{number}", number) for number in range(5000)])
        assert len({each.position for each in written}) == 5000
        records = await asyncio.gather(*[client.get(f"many/{number}") for number in range(5000)])
        assert [record and (record.value, record.version) for record in records] == [
            (number, each.position) for number, each in enumerate(written)
        ]
        assert await client.get_many([f"many/{number}" for number in range(5000)]) == records
        assert await client.get("many/none") is None
        assert (await client.delete("many/0")).deleted
        assert await client.get("many/0") is None
    async with Client(cluster.web1.url) as rest:
        found = await rest.get("many/4999")
        assert found is not None
        assert (found.value, found.version) == (4999, written[4999].position)


async def test_a_replica_is_read_at_a_position_and_takes_no_writes(cluster: Cluster) -> None:
    async with NativeClient(cluster.web1.peer) as primary, NativeClient(f"kv://{cluster.web2.peer}") as replica:
        for number in range(40):
            position = (await primary.put("moving", number)).position
            record = await replica.get("moving", position=position, wait_s=20)
            assert record is not None
            assert (record.value, record.version) == (number, position)
        with pytest.raises(ServerError) as caught:
            await replica.put("moving", 1)
        assert (caught.value.code, caught.value.maybe_written) == ("not_primary", False)
        with pytest.raises(HistoryLost):
            await replica.get("moving", position=Position(Epoch.of(1, 1), 10**9))
        with pytest.raises(ServerError) as caught:
            await replica.get("moving", position=Position(position.epoch, 10**9), wait_s=0.05)
        assert caught.value.code == "not_caught_up"
        with pytest.raises(ServerError) as caught:
            await replica.get("k" * 5000)
        assert (caught.value.code, caught.value.status) == ("too_large", 413)


def test_a_session_can_be_prepared_and_half_closed(cluster: Cluster) -> None:
    """All that was asked is answered, also what waits for the last write."""
    at = Address.parse(cluster.web1.peer)
    asked: list[Message] = [
        hello(Purpose.CLIENT, "", cluster_id=b""),
        Read(1, b"prepared/k", Epoch(0), 0, 0),
        Write(2, (put(b"prepared/k", b'"v"'),), 0, 5000),
        Read(3, b"prepared/k", Epoch(0), 1, 5000),
    ]
    decoder = FrameDecoder()
    with socket.create_connection((at.host, at.port), timeout=20) as connection:
        connection.sendall(b"".join(map(encode, asked)))
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            decoder.feed(data)
    welcome, *answers = list(decoder)
    assert isinstance(welcome, Welcome)
    assert welcome.features == ("read",)
    assert sorted((type(each).__name__, getattr(each, "request_id", None)) for each in answers) == [
        (ReadResult.__name__, 1),
        (ReadResult.__name__, 3),
        (WriteResult.__name__, 2),
    ]


async def test_promotion_kill_and_stop(cluster: Cluster) -> None:
    """The last one, which leaves nothing to the others."""
    old, new = cluster.web1, cluster.web2
    async with NativeClient(old.peer) as first, NativeClient(new.peer) as second:
        position = (await first.put("k", "old")).position
        assert await second.get("k", position=position, wait_s=20) is not None
        waiting = asyncio.ensure_future(second.get("k", position=Position(position.epoch, 10**9), wait_s=3600))

        old.kill()
        with pytest.raises((Unreachable, Unanswered)):
            await first.put("k", "lost")
        assert kvnode("promote", "--url", new.url, "--force").returncode == 0
        with pytest.raises(ServerError) as caught:
            await waiting
        assert caught.value.code == "not_caught_up"
        # The same connection goes on under the new reign.
        written = await second.put("k", "new")
        assert written.position.epoch > position.epoch
        record = await second.get("k", position=position)
        assert record is not None
        assert (record.value, record.version) == ("new", written.position)

        waiting = asyncio.ensure_future(second.get("k", position=Position(written.position.epoch, 10**9), wait_s=3600))
        await second.get("k")
        assert await asyncio.to_thread(new.stop, STOP_S) == 0
        with pytest.raises((ServerError, Unanswered)):
            await waiting
