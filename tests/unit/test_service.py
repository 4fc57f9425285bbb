"""The node as a whole on a simulated disk: what it says of itself, and the order of its stop."""

import asyncio
import errno
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kvnode.node import service
from kvnode.node.clock import RealClock
from kvnode.node.config import Address, Config
from kvnode.node.errors import NotReplica
from kvnode.node.service import Node
from kvnode.node.startup import begin_reign, open_directory
from kvnode.node.storage.replay import reopen_engine
from support.crash_plan import KEPT
from support.events import CapturedEvents
from support.holds import Hold, turns
from support.model_engine import ModelEngine
from support.simulated_node import DATA, LAYOUT, Machine


class Served:
    """A node under way, and one client of it.

    Attributes:
        running: its `run`; the result is the exit code.
    """

    def __init__(self, machine: Machine, config: Config) -> None:
        self.machine = machine
        self.captured = CapturedEvents()
        log = self.captured
        self.opened = open_directory(config, machine.disk, machine.engines, log)
        begin_reign(self.opened, log)
        reopen = functools.partial(reopen_engine, machine.disk, LAYOUT, machine.engines)
        self.node = Node(config, self.opened, reopen, RealClock(), log)
        self.running = asyncio.create_task(self.node.run())
        self.session: aiohttp.ClientSession

    @property
    def store(self) -> Any:
        """The node's store."""
        return self.node.store

    @property
    def engine(self) -> ModelEngine:
        """The engine that was opened last."""
        engine = self.machine.engines.last_opened
        assert engine is not None
        return engine

    async def listening(self) -> str:
        """The URL, once there is one."""
        while "listening" not in self.captured.names():
            assert not self.running.done()
            await asyncio.sleep(0)
        return f"http://{self.captured.fields_of('listening')['http']}"

    async def get(self, path: str) -> tuple[int, Any]:
        """(status, decoded body) of a GET."""
        async with self.session.get(path) as answer:
            return answer.status, await answer.json()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """(status, decoded body) of a POST."""
        async with self.session.post(path, json=body) as answer:
            return answer.status, await answer.json()

    def posting(self, path: str, body: Any) -> "asyncio.Task[tuple[int, Any]]":
        """A POST under way."""
        return asyncio.create_task(self.post(path, body))

    async def end(self) -> None:
        """Stop it if it runs, and its threads in any case."""
        if not self.running.done():
            self.node.request_stop("the end of the test")
        await asyncio.wait([self.running])
        store = self.node.store
        for worker in (store._commits, store._point_reads, *store._range_reads, store._maintenance):
            worker.stop()
            assert worker.join(10)


@asynccontextmanager
async def serving(machine: Machine | None = None, **settings: Any) -> AsyncIterator[Served]:
    """A node that serves, ended in the end."""
    defaults = {
        "name": "n1",
        "http": Address("127.0.0.1", 0),
        "peer": Address("127.0.0.1", 0),
        "wal_segment_bytes": 4096,
    }
    served = Served(machine or Machine.new(), Config(data=DATA, **{**defaults, **settings}))
    try:
        async with aiohttp.ClientSession(await served.listening()) as served.session:
            yield served
    finally:
        await served.end()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens what a stop waits for."""
    monkeypatch.setattr(service, "_WAITS_END_S", 0.2)
    monkeypatch.setattr(service, "_CLIENTS_END_S", 0.3)
    monkeypatch.setattr(service, "_STOPPED_S", 0.4)
    monkeypatch.setattr(service, "_LAST_ANSWERS_S", 0.2)


# ---- what it says of itself ------------------------------------------------------------------------------------


async def test_status() -> None:
    async with serving() as served:
        await served.post("/put", {"key": "a", "value": 1})
        await served.get("/read/a")
        await served.get("/read/b")
        status, body = await served.get("/status")
        assert status == 200
        assert body.pop("uptime_s") >= 0
        assert body.pop("version")
        tail = served.store.wal.segments[-1]
        identity = served.opened.identity
        assert body == {
            "name": "n1",
            "role": "primary",
            "cluster_id": identity.cluster_id,
            "epoch": str(served.store.epoch),
            "last_seq": 1,
            "durable_seq": 1,
            "applied_seq": 1,
            "wal": {"first_seq": 1, "last_seq": 1, "segments": 1, "bytes": tail.end},
            "cache": {"entries": 1, "bytes": served.store.cache.bytes, "hits": 1, "misses": 1},
            "replicas": [],
            "primary": None,
            "full_syncs_received": 0,
            "full_syncs_sent": 0,
            "members": [{"name": "n1", "address": str(served.captured.fields_of("listening")["peer"])}],
        }


async def test_without_fsync_what_is_durable_is_the_checkpoint() -> None:
    async with serving(fsync="never") as served:
        for number in range(9):
            await served.post("/put", {"key": "a", "value": "x" * 1000 + str(number)})
        await served.store._maintenance.run(lambda: None)
        await turns()
        _, body = await served.get("/status")
        assert body["last_seq"] == 9
        assert body["durable_seq"] == served.store.checkpoint_seq
        assert 0 < body["durable_seq"] < 9


async def test_roles() -> None:
    async with serving() as served:
        assert (await served.get("/primary"))[0] == 200
        status, body = await served.get("/replica")
        assert (status, body["error"]["code"]) == (503, "not_replica")
        with pytest.raises(NotReplica, match="this node is a primary"):
            served.node.check_role("replica")


async def test_a_node_that_rebuilds_is_not_ready() -> None:
    async with serving() as served:
        await served.post("/put", {"key": "a", "value": 1})
        served.machine.plan.fail(("engine_write", "*"))
        with Hold(served.engine, "close") as closing:
            status, body = await served.post("/put", {"key": "a", "value": 2})
            assert (status, body["error"]["code"]) == (504, "outcome_unknown")
            await closing.reached()
            for path in ("/ready", "/primary", "/read/a", "/readrange"):
                status, body = await served.get(path)
                assert (path, status, body["error"]["code"]) == (path, 503, "syncing")
            assert (await served.get("/health"))[0] == 200
            _, body = await served.get("/status")
            assert (body["last_seq"], body["applied_seq"]) == (2, 1)
            assert (await served.session.get("/metrics")).status == 200
            closing.release()
            while (await served.get("/ready"))[0] != 200:
                pass
        assert (await served.get("/read/a"))[1]["value"] == 2


# ---- stopping --------------------------------------------------------------------------------------------------


async def test_a_stop_answers_what_is_under_way_and_says_that_it_stops() -> None:
    machine = Machine.new()
    async with serving(machine) as served:
        # One connection each, open before the stop.
        assert {status for status, _ in await asyncio.gather(*(served.get("/ready") for _ in range(3)))} == {200}
        with Hold(served.store.wal, "append") as hold:
            in_flight = served.posting("/put", {"key": "a", "value": 1})
            await hold.reached()
            served.node.request_stop("SIGTERM")
            await turns()
            status, body = await served.get("/ready")
            assert (status, body["error"]["code"]) == (503, "draining")
            status, body = await served.post("/put", {"key": "b", "value": 1})
            assert (status, body["error"]["code"]) == (503, "draining")
            # Both answers were the last on their connections, and there are no new ones.
            with pytest.raises(aiohttp.ClientConnectorError):
                await served.get("/health")
            hold.release()
            assert (await in_flight)[0] == 200
        assert await served.running == 0
        assert [name for name in served.captured.names() if name.startswith("stop")] == ["stopping", "stopped"]
        assert served.captured.fields_of("stopping")["reason"] == "SIGTERM"
    opened = open_directory(Config(data=DATA), machine.after_crash(KEPT).disk, machine.engines, CapturedEvents())
    assert (opened.storage.clean, opened.storage.wal.last_seq) == (True, 1)


async def test_only_the_first_reason_to_stop_counts() -> None:
    async with serving() as served:
        served.node.request_stop("SIGTERM")
        served.node.request_stop("SIGINT")
        assert await served.running == 0
        assert served.captured.fields_of("stopping")["reason"] == "SIGTERM"


async def test_idle_clients_and_those_that_came_last_do_not_hold_up_a_stop() -> None:
    async with serving() as served:
        host, port = served.session._base_url.host, served.session._base_url.port  # type: ignore[union-attr]
        assert host is not None
        idle = await asyncio.open_connection(host, port)
        half_a_head = await asyncio.open_connection(host, port)
        half_a_head[1].write(b"POST /put HTTP/1.1\r\n")
        assert (await served.get("/health"))[0] == 200
        newest = await asyncio.open_connection(host, port)
        served.node.request_stop("SIGTERM")
        # Without anything shortened: this would take 8 s.
        async with asyncio.timeout(5):
            assert await served.running == 0
        for reader, writer in (idle, half_a_head, newest):
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


@pytest.mark.usefixtures("soon")
async def test_a_client_that_does_not_finish_is_cut_off_in_time() -> None:
    async with serving() as served:
        await served.post("/put", {"key": "a", "value": 1})
        base = served.session._base_url
        assert base is not None
        assert base.host is not None
        reader, writer = await asyncio.open_connection(base.host, base.port)
        writer.write(b"POST /put HTTP/1.1\r\nHost: n\r\nContent-Length: 100\r\n\r\n{")
        assert (await served.get("/health"))[0] == 200
        served.node.request_stop("SIGTERM")
        assert await served.running == 0
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


@pytest.mark.usefixtures("soon")
async def test_waits_of_readers_end_with_the_stop() -> None:
    async with serving() as served:
        # The write keeps the stop from being over before the waits are.
        with Hold(served.store.wal, "append") as hold:
            in_flight = served.posting("/put", {"key": "a", "value": 1})
            await hold.reached()
            waiting = asyncio.create_task(served.get("/read/a?min_seq=99&wait=60"))
            while not served.store._applied._waiters:
                await turns(1)
            served.node.request_stop("SIGTERM")
            status, body = await waiting
            assert (status, body["error"]["code"]) == (503, "not_caught_up")
            hold.release()
            await asyncio.wait([in_flight])


@pytest.mark.usefixtures("soon")
async def test_a_wait_that_the_stop_ends_is_answered() -> None:
    async with serving() as served:
        waiting = asyncio.create_task(served.get("/read/a?min_seq=99&wait=60"))
        while not served.store._applied._waiters:
            await turns(1)
        served.node.request_stop("SIGTERM")
        status, body = await waiting
        assert (status, body["error"]["code"]) == (503, "not_caught_up")
        assert await served.running == 0


@pytest.mark.usefixtures("soon")
async def test_a_commit_that_is_stuck_does_not_keep_the_node_from_ending() -> None:
    async with serving() as served:
        await served.post("/put", {"key": "a", "value": 1})
        with Hold(served.store.wal, "append") as hold:
            in_flight = served.posting("/put", {"key": "b", "value": 1})
            await hold.reached()
            served.node.request_stop("SIGTERM")
            assert await served.running == 1
            with pytest.raises(aiohttp.ClientError):
                await in_flight
            assert {"drain_timeout", "stop_incomplete"} <= set(served.captured.names())
            assert "stopped" not in served.captured.names()
            assert served.opened.files.load_clean_stop() is None
            hold.release()
            await turns()


async def test_a_failed_log_answers_who_waits_and_ends_the_node() -> None:
    async with serving() as served:
        await served.post("/put", {"key": "a", "value": 1})
        served.machine.plan.fail(("sync", "*.wal"))
        status, body = await served.post("/put", {"key": "b", "value": 1})
        assert (status, body["error"]["code"]) == (504, "outcome_unknown")
        assert await served.running == 1
        failed = served.captured.fields_of("node_failed")
        assert (failed["code"], "syncing the log failed" in str(failed["reason"])) == ("log_failed", True)
        assert failed["hint"]
        assert served.opened.files.load_clean_stop() is None


async def test_a_failure_during_the_stop_makes_it_a_failed_one() -> None:
    async with serving() as served:
        served.machine.plan.fail(("sync", "*.wal"))
        with Hold(served.store.wal, "append") as hold:
            in_flight = served.posting("/put", {"key": "b", "value": 1})
            await hold.reached()
            served.node.request_stop("SIGTERM")
            await turns()
            hold.release()
            status, body = await in_flight
            assert (status, body["error"]["code"]) == (504, "outcome_unknown")
        assert await served.running == 1
        assert "stopped" not in served.captured.names()


async def test_a_full_disk_during_the_stop_is_said() -> None:
    async with serving() as served:
        await served.post("/put", {"key": "a", "value": 1})
        served.machine.plan.fail(("create", "*/checkpoint.tmp"), errno.ENOSPC)
        served.node.request_stop("SIGTERM")
        assert await served.running == 1
        assert "No space left" in str(served.captured.fields_of("stop_incomplete")["reason"])


async def test_an_occupied_address_stops_the_node_cleanly() -> None:
    async with serving() as first:
        address = Address.parse(str(first.captured.fields_of("listening")["http"]))
        machine = Machine.new()
        second = Served(machine, Config(data=DATA, http=address, peer=Address("127.0.0.1", 0)))
        assert await second.running == 1
        await second.end()
        assert "listening" not in second.captured.names()
        failed = second.captured.fields_of("listen_failed")
        assert failed["http"] == address
        assert f"'sport = :{address.port}'" in str(failed["hint"])
        assert "--http" in str(failed["hint"])
        assert second.opened.files.load_clean_stop() is not None
