"""A client of several nodes over real connections: who is asked next, and that no write is ever sent twice.

`test_failover` has the decisions line by line; here it is shown that what happens on the wire leads to them.
"""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from typing import Self

import pytest

from kvnode.cli.client import Client, NoNodeAvailable, ServerError, Unanswered, Unreachable
from kvnode.cli.errors import BadAnswer
from support.stub_server import EPOCH, Answer, Cut, CutStream, Fault, Say, StubServer


@asynccontextmanager
async def two_nodes(**options: float) -> AsyncIterator[tuple[StubServer, StubServer, Client]]:
    async with StubServer() as a, StubServer() as b, Client(a.url, b.url, retries=0, **options) as client:  # type: ignore[arg-type]
        for stub in (a, b):
            stub.records["k"] = (1, "1")
            stub.seq = 1
        yield a, b, client


@pytest.fixture
def silent_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Look-ups of names take until this is set."""
    release = threading.Event()

    def wait(*args: object, **more: object) -> list[object]:
        assert release.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield release
    release.set()


def nobodys_url() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


Call = Callable[[Client], Awaitable[object]]


async def read_range(client: Client) -> list[str]:
    return [item.key async for item in client.range()]


READS: dict[str, Call] = {
    "/read": lambda client: client.get("k"),
    "/readrange": read_range,
    "/status": lambda client: client.status(),
}
WRITES: dict[str, Call] = {
    "/put": lambda client: client.put("a", 1),
    "/batchput": lambda client: client.batch({"a": 1}),
    "/delete": lambda client: client.delete("k"),
    "/cluster/forget": lambda client: client.forget("n2"),
}
HTML = Say(b"<html>", "text/html")
# aiohttp repeats a GET once by itself when the connection breaks before the answer's head.
CUTS: list[Fault] = [Cut(), Cut()]


def count(stub: StubServer, route: str) -> int:
    return len([seen for seen in stub.requests if seen.raw_path.startswith(route)])


# ---- the table, on the wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [*READS, *WRITES])
async def test_nothing_sent_goes_to_the_next_node(route: str) -> None:
    async with StubServer() as stub, Client(nobodys_url(), stub.url, retries=0) as client:
        stub.members = [{"name": "n2"}]
        await (READS | WRITES)[route](client)
        assert count(stub, route) == 1
        assert client.url == stub.url


@pytest.mark.parametrize("route", [*READS, *WRITES])
@pytest.mark.parametrize("code", ["overloaded", "draining", "syncing", "no_primary", "not_primary"])
async def test_a_node_that_cannot_do_it_now_passes_it_on(route: str, code: str) -> None:
    async with two_nodes() as (a, b, client):
        b.members = [{"name": "n2"}]
        a.faults[route].append(Answer(503, code, retry_after=1))
        await (READS | WRITES)[route](client)
        assert (count(a, route), count(b, route)) == (1, 1)


async def test_a_write_without_enough_replicas_goes_to_the_next_node() -> None:
    async with two_nodes() as (a, b, client):
        a.faults["/put"].append(Answer(503, "not_enough_replicas", retry_after=1))
        await client.put("a", 1, acks=1)
        assert (len(a.values()), len(b.values())) == (1, 2)


@pytest.mark.parametrize("route", READS)
@pytest.mark.parametrize(
    "faults", [CUTS, [HTML], [Answer(500, "internal")], [Answer(503, "not_caught_up")]], ids=lambda each: repr(each[0])
)
async def test_a_read_that_one_node_cannot_answer_goes_to_the_next(route: str, faults: list[Fault]) -> None:
    async with two_nodes() as (a, b, client):
        a.faults[route].extend(faults)
        await READS[route](client)
        assert (count(a, route), count(b, route)) == (len(faults), 1)


async def test_a_read_of_a_silent_node_goes_to_the_next() -> None:
    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(be_silent, "127.0.0.1", 0) as server, StubServer() as stub:
        stub.records["k"] = (1, "1")
        host, port = server.sockets[0].getsockname()
        urls = (f"http://{host}:{port}", stub.url)
        for route in ("/read", "/readrange"):
            async with Client(urls, node_timeout_s=0.05) as client:
                await READS[route](client)
            assert count(stub, route)


@pytest.mark.parametrize("is_read", [True, False])
async def test_what_waits_in_vain_for_a_connection_goes_to_the_next_node(is_read: bool) -> None:
    async with two_nodes(connections=1, timeout_s=1, node_timeout_s=10) as (a, b, client):
        a.open.clear()
        filler = asyncio.create_task(client.batch({"filler": 1}))
        await a.arrived.acquire()
        await (client.get("k") if is_read else client.delete("k"))
        assert (len(a.requests), len(b.requests)) == (1, 1)
        with pytest.raises(Unanswered):
            await filler


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_node_whose_name_nobody_resolves_is_passed_over(
    is_read: bool, silent_name_server: threading.Event
) -> None:
    async with StubServer() as stub, Client("http://kv.example:1", stub.url, timeout_s=1, retries=0) as client:
        stub.records["k"] = (1, "1")
        await (client.get("k") if is_read else client.delete("k"))
        assert len(stub.requests) == 1
    async with Client("http://kv.example:1", timeout_s=0.2) as client:
        with pytest.raises(Unreachable, match=r"address of the host of .* was not found") as caught:
            await client.put("k", 1)
        assert "name servers" in str(caught.value.hint)


@pytest.mark.parametrize("route", WRITES)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Cut(), Unanswered),
        (HTML, BadAnswer),
        (Answer(500, "internal"), ServerError),
        (Answer(504, "outcome_unknown"), ServerError),
        (Answer(504, "replication_timeout"), ServerError),
        (Answer(503, "some_later_code"), ServerError),
        (Answer(507, "storage_full"), ServerError),
        (Answer(400, "invalid_request"), ServerError),
        (Answer(413, "too_large"), ServerError),
    ],
    ids=lambda each: getattr(each, "code", None),
)
async def test_a_write_that_was_sent_is_raised_at_once_and_never_repeated(
    route: str, fault: Fault, kind: type[Exception]
) -> None:
    async with two_nodes() as (a, b, client):
        a.faults[route].append(fault)
        with pytest.raises(kind):
            await WRITES[route](client)
        assert (count(a, route), count(b, route)) == (1, 0)


async def test_a_write_that_takes_too_long_is_not_repeated() -> None:
    async with two_nodes(timeout_s=0.6) as (a, b, client):
        a.open.clear()
        with pytest.raises(Unanswered, match="did not answer within") as caught:
            await client.batch({"a": 1})
        assert (caught.value.url, caught.value.maybe_written) == (a.url, True)
        assert (count(a, "/batchput"), count(b, "/batchput")) == (1, 0)


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_request"), (404, "route_not_found"), (507, "storage_full")]
)
async def test_what_every_node_would_refuse_is_raised_at_once(status: int, code: str) -> None:
    async with two_nodes() as (a, b, client):
        a.faults["/read"].append(Answer(status, code))
        with pytest.raises(ServerError) as caught:
            await client.get("k")
        assert caught.value.code == code
        assert not b.requests


async def test_a_missing_key_is_an_answer() -> None:
    async with two_nodes() as (_, b, client):
        assert await client.get("nope") is None
        assert not b.requests


async def test_when_all_fail_the_error_names_each_node_and_its_reason() -> None:
    url = nobodys_url()
    async with StubServer() as stub, Client(url, stub.url, retries=0) as client:
        stub.faults["/put"].append(Answer(503, "no_primary", retry_after=1))
        with pytest.raises(NoNodeAvailable) as caught:
            await client.put("a", 1)
        error = caught.value
        assert list(error.failures) == [url, stub.url]
        assert f"{url}: cannot connect to {url}: Connection refused (unreachable)" in error.message
        assert f"{stub.url}: told to answer no_primary (no_primary)" in error.message
        assert "kvnode promote" in str(error.hint)
        assert not error.maybe_written
        assert not stub.values()


async def test_after_a_pause_the_same_node_is_asked_again() -> None:
    async with StubServer() as stub, Client(stub.url) as client:
        stub.faults["/put"].extend([Answer(503, "no_primary"), Answer(503, "overloaded")])
        await client.put("a", 1)
        stub.faults["/read"].extend([Answer(503, "not_caught_up"), *CUTS])
        assert await client.get("a") is not None
        assert (count(stub, "/put"), count(stub, "/read")) == (3, 4)


async def test_retry_after_is_respected() -> None:
    async with StubServer() as stub, Client(stub.url) as client:
        stub.faults["/put"].append(Answer(503, "overloaded", retry_after=1))
        began = time.monotonic()
        await client.put("a", 1)
        assert time.monotonic() - began >= 1


async def test_promote_is_for_one_node_and_made_once() -> None:
    async with two_nodes() as (_, _, client):
        with pytest.raises(ValueError, match="which one"):
            await client.promote()
    async with StubServer() as stub, Client(stub.url, retries=0) as client:
        stub.faults["/cluster/promote"].append(Cut())
        with pytest.raises(Unanswered):
            await client.promote()
        assert count(stub, "/cluster/promote") == 1


# ---- ranges ----------------------------------------------------------------------------------------------------


async def test_a_range_fails_over_before_its_first_item() -> None:
    async with two_nodes() as (a, b, client):
        a.faults["/readrange"].extend([CutStream(0)] * 2)
        assert [item.key async for item in client.range()] == ["k"]
        assert count(b, "/readrange") == 1


async def test_a_range_that_has_begun_does_not_fail_over() -> None:
    async with two_nodes() as (a, b, client):
        a.records = {f"{number:03}": (1, "1") for number in range(100)}
        cut = CutStream(50, when=asyncio.Event())
        a.faults["/readrange"].append(cut)
        got: list[str] = []

        async def read() -> None:
            async for item in client.range():
                got.append(item.key)
                cut.when.set()

        with pytest.raises(Unanswered, match="broke before the answer was whole"):
            await read()
        assert got == [f"{number:03}" for number in range(len(got))]
        assert 0 < len(got) <= 50
        assert not b.requests
        assert (await client.status()).url == b.url


async def test_a_range_that_is_left_gives_its_connection_back() -> None:
    async with StubServer() as stub, Client(stub.url, connections=1, timeout_s=1, retries=0) as client:
        stub.records = {f"{number:05}": (1, '"' + "x" * 1000 + '"') for number in range(20_000)}
        async with aclosing(client.range()) as items:
            await anext(items)
            with pytest.raises(Unreachable, match="was free in time") as caught:
                await client.get("00001")
            assert "connections" in str(caught.value.hint)
        assert await client.get("00001") is not None


# ---- kept connections ------------------------------------------------------------------------------------------

OK = b'{"status":"OK","key":"a","seq":1}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nKv-Seq: 1\r\nKv-Epoch: %b\r\nContent-Length: %d\r\n\r\n"


class Wire:
    """A server that sees each request on each connection, and closes connections when told to."""

    def __init__(self, *, closes_after: int | None = None, answers: int = 1_000) -> None:
        """Answer so many requests of a connection, read one more, and close it without an answer.

        Args:
            closes_after: close a connection in order, once so many of its requests were answered.
        """
        self.requests: list[tuple[int, bytes]] = []
        self.connections = 0
        self._closes_after = closes_after
        self._answers = answers
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        self._writers.append(writer)
        answered = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, length = head.lower().partition(b"content-length: ")
                if length:
                    await reader.readexactly(int(length.split(b"\r\n")[0]))
                self.requests.append((connection, head.split(b" ")[0]))
                if answered == self._answers:
                    break
                writer.write(HEAD % (EPOCH.encode(), len(OK)) + OK)
                await writer.drain()
                answered += 1
                if answered == self._closes_after:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()


async def test_a_post_whose_kept_connection_breaks_under_it_is_not_sent_again() -> None:
    async with Wire(answers=1) as wire, Client(wire.url) as client:
        await client.put("a", 1)
        with pytest.raises(Unanswered):
            await client.put("a", 1)
        assert wire.requests == [(1, b"POST"), (1, b"POST")]


async def test_a_post_on_a_new_connection_that_breaks_is_not_sent_again() -> None:
    async with Wire(answers=0) as wire, Client(wire.url) as client:
        with pytest.raises(Unanswered):
            await client.put("a", 1)
        assert wire.requests == [(1, b"POST")]


async def test_a_kept_connection_that_was_closed_is_not_used() -> None:
    async with Wire(closes_after=1) as wire, Client(wire.url) as client:
        for _ in range(5):
            await client.put("a", 1)
        assert wire.requests == [(number, b"POST") for number in range(1, 6)]


async def test_a_kept_connection_that_was_closed_while_the_loop_was_busy_is_not_used() -> None:
    close, closed = threading.Event(), threading.Event()
    requests: list[bytes] = []

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with closing(connection):
                request = b""
                while not request.endswith(b"}"):
                    request += connection.recv(65536)
                requests.append(request)
                connection.sendall(HEAD % (EPOCH.encode(), len(OK)) + OK)
                assert close.wait(10)
            closed.set()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        async with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            await client.put("a", 1)
            close.set()
            # Nothing on this loop can notice meanwhile.
            assert closed.wait(10)
            await client.put("a", 2)
        thread.join(10)
    assert [b'"value":%d' % number in request for number, request in enumerate(requests, 1)] == [True, True]


async def test_a_get_may_be_sent_again() -> None:
    async with Wire(answers=1) as wire, Client(wire.url, retries=0) as client:
        await client.put("a", 1)
        with pytest.raises(BadAnswer):
            # On a new connection, which answers; that this is no record is another matter.
            await client.get("a")
        assert wire.requests == [(1, b"POST"), (1, b"GET"), (2, b"GET")]
