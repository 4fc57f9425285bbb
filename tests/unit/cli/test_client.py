"""The client of one node against the stub: what it sends, what it returns, and each way in which it fails."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing
from typing import Any

import pytest

from kvnode.cli.client import Client, Deleted, JsonText, RangeItem, Record, Written, parse_position
from kvnode.cli.client.cluster import MemberPosition, members_in
from kvnode.cli.client.jsonvalues import JsonValue
from kvnode.cli.errors import BadAnswer, ClientError, ServerError, Unanswered, Unreachable
from kvnode.cli.urls import DEFAULT_URL, parse_url, parse_urls
from kvnode.protocol.types import Epoch, Position
from support.stub_server import EPOCH, Answer, Cut, CutStream, Say, StubServer

ODD_KEYS = ["/", "..", ".", "...", "a/../b", "a b+c", "?x=1&y#z", "%2F", "ü\U0001f600", "\x00\n", '"\\', "x" * 4000]


def at(seq: int) -> Position:
    return Position(Epoch.parse(EPOCH), seq)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[StubServer, Client]]:
    async with StubServer() as stub, Client(stub.url, timeout_s=30, retries=0) as client:
        yield stub, client


async def collect(client: Client, **query: Any) -> list[RangeItem]:
    return [item async for item in client.range(**query)]


def text(value: bytes) -> JsonText:
    return JsonText.trusted(value)


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_any_key_can_be_written_read_and_deleted(key: str) -> None:
    async with connected() as (stub, client):
        assert await client.put(key, 1) == Written(at(1))
        assert stub.values() == {key: "1"}
        assert await client.get(key) == Record(text(b"1"), at(1), at(1))
        assert await collect(client, start=key, end=key) == [RangeItem(key, text(b"1"))]
        assert await collect(client, prefix=key, end=key, reverse=True) == [RangeItem(key, text(b"1"))]
        assert await client.delete(key) == Deleted(True, at(2))
        assert await client.delete(key) == Deleted(False, at(2))
        assert await client.get(key) is None


@pytest.mark.parametrize(
    "value", ["", 'ü\n"', 7, -(2**70), 1.5, True, False, None, [], [1, ["a"]], {}, {"a": {"b": [None]}}, "\ud800"]
)
async def test_python_values_come_back_as_they_were(value: JsonValue) -> None:
    async with connected() as (_, client):
        await client.put("a", value)
        await client.batch({"b": value, "c": [value]})
        for key in "ab":
            record = await client.get(key)
            assert record is not None
            assert record.value == value
            assert type(record.value) is type(value)
        assert [item.value for item in await collect(client)] == [value, value, [value]]


@pytest.mark.parametrize("value", [b"1.0", b"12345678901234567890", b'"\\ud800"', b'{"a" : [1e5],"a":2}', b"1e400"])
async def test_json_text_travels_byte_for_byte(value: bytes) -> None:
    async with connected() as (stub, client):
        await client.put("a", JsonText(value))
        await client.batch([("b", JsonText(value)), ("c", 1), ("c", JsonText(value))])
        assert set(stub.values().values()) == {value.decode()}
        record = await client.get("b")
        assert record is not None
        assert record.text == value
        await client.put("d", record.text)
        assert await collect(client) == [RangeItem(key, text(value)) for key in "abcd"]


@pytest.mark.parametrize("value", [b"1", float("nan"), float("inf"), {1, 2}, object(), [b"1"]])
async def test_what_is_no_json_value_is_not_sent(value: Any) -> None:
    async with connected() as (stub, client):
        for call in (client.put("a", value), client.batch({"a": value})):
            with pytest.raises((TypeError, ValueError)):
                await call
        assert not stub.requests


async def test_version_is_the_writes_and_position_the_nodes() -> None:
    async with connected() as (_, client):
        await client.put("a", 1)
        await client.put("b", 2)
        assert await client.get("a") == Record(text(b"1"), version=at(1), applied=at(2))


async def test_acks_are_asked_for() -> None:
    async with connected() as (stub, client):
        await client.put("a", 1, acks=2, ack_timeout_s=1.5)
        await client.batch({"a": 1}, acks="majority")
        await client.delete("a", ack_timeout_s=10)
        assert [seen.raw_path for seen in stub.requests] == [
            "/put?acks=2&ack_timeout=1.500",
            "/batchput?acks=majority",
            "/delete?ack_timeout=10.000",
        ]


async def test_a_range_can_write_meanwhile() -> None:
    async with connected() as (stub, client):
        await client.batch({f"{number:03}": number for number in range(100)})
        async for item in client.range():
            await client.put(item.key, item.value + 1)
        assert list(stub.values().values()) == [str(number + 1) for number in range(100)]


async def test_ranges() -> None:
    async with connected() as (stub, client):
        await client.batch(dict.fromkeys(("a", "b/1", "b/2", "c", "ü"), 1))
        queries: list[tuple[dict[str, Any], list[str]]] = [
            ({}, ["a", "b/1", "b/2", "c", "ü"]),
            ({"start": "b/1", "end": "c"}, ["b/1", "b/2", "c"]),
            ({"prefix": "b/"}, ["b/1", "b/2"]),
            ({"limit": 2}, ["a", "b/1"]),
            ({"limit": 2, "reverse": True}, ["ü", "c"]),
            ({"prefix": "nothing"}, []),
        ]
        for query, keys in queries:
            assert [item.key for item in await collect(client, **query)] == keys
        with pytest.raises(ServerError) as caught:
            await collect(client, start="b", end="a", consistent=False)
        assert caught.value.fields == {"field": "start_key"}
        assert stub.requests[-1].raw_path == "/readrange?start_key=b&end_key=a"


async def test_a_range_can_be_left_early() -> None:
    async with connected() as (_, client):
        await client.batch((f"{number:05}", "x") for number in range(20_000))
        async with aclosing(client.range()) as items:
            assert (await anext(items)).value == "x"
        record = await client.get("00001")
        assert record is not None
        assert record.value == "x"


async def test_dump_gives_whole_lines() -> None:
    async with connected() as (_, client):
        values = {f"{number:05}": "x" * (number % 3000) for number in range(2000)}
        await client.batch(values)
        blocks = [block async for block in client.dump()]
        assert all(block.endswith(b"\n") for block in blocks)
        assert b"".join(blocks).decode() == "".join(f'{{"key":"{k}","value":"{v}"}}\n' for k, v in values.items())


@pytest.mark.parametrize("after_records", [0, 1, 500, 1000])
async def test_a_cut_stream_never_looks_whole(after_records: int) -> None:
    async with connected() as (stub, client):
        await client.batch((f"{number:04}", 1) for number in range(1000))
        # aiohttp repeats a GET by itself when the connection breaks before the head.
        stub.faults["/readrange"].extend([CutStream(after_records)] * 2)
        got: list[str] = []

        async def read() -> None:
            async for item in client.range():
                got.append(item.key)  # noqa: PERF401, what came before the error is wanted

        with pytest.raises(Unanswered):
            await read()
        assert got == [f"{number:04}" for number in range(len(got))]
        assert len(got) <= after_records


async def test_status_is_kept_as_it_was_sent() -> None:
    async with connected() as (stub, client):
        stub.status = {"role": "primary", "more": {"deep": [1.0]}}
        status = await client.status()
        assert status.fields == stub.status
        assert status.text == b'{"role": "primary", "more": {"deep": [1.0]}}'


async def test_promote_and_forget() -> None:
    async with connected() as (stub, client):
        stub.members = [
            {"name": "n1", "address": "", "reachable": False, "role": None, "epoch": None, "last_seq": None},
            {"name": "n2", "address": "h:1", "reachable": True, "role": "replica", "epoch": EPOCH, "last_seq": 7},
        ]
        stub.seq = 7
        promotion = await client.promote()
        assert promotion[1:4] == ("stub", Epoch.parse(EPOCH), 7)
        assert promotion.members == (
            MemberPosition(name="n1", address=""),
            MemberPosition(name="n2", address="h:1", reachable=True, role="replica", epoch=EPOCH, last_seq=7),
        )
        await client.promote(force=True)
        assert stub.bodies("/cluster/promote") == [b'{"force":false}', b'{"force":true}']
        assert await client.forget("n2") == "n2"
        with pytest.raises(ServerError) as caught:
            await client.forget("n2")
        assert caught.value.code == "member_not_found"


async def test_a_promotion_that_was_cut_off_may_have_happened() -> None:
    async with connected() as (stub, client):
        stub.faults["/cluster/promote"].append(Cut())
        with pytest.raises(Unanswered) as caught:
            await client.promote()
        assert "the change may have happened" in str(caught.value.hint)


async def test_a_nodes_hint_is_the_errors() -> None:
    async with connected() as (stub, client):
        stub.faults["/put"].append(Answer(503, "overloaded", fields={"hint": "wait a little"}))
        with pytest.raises(ServerError) as caught:
            await client.put("a", 1)
        assert caught.value.hint == "wait a little"
        assert caught.value.fields == {"told": True}


@pytest.mark.parametrize(
    "fields", [{}, {"members": None}, {"members": [7]}, {"members": [{"name": "n1", "last_seq": "7"}]}]
)
def test_members_that_are_none_are_left_out(fields: dict[str, object]) -> None:
    assert members_in(fields) == ()


async def test_server_errors_are_passed_on_whole() -> None:
    async with connected() as (stub, client):
        with pytest.raises(ServerError) as caught:
            await client.forget("nope")
        error = caught.value
        assert (error.status, error.code, error.message) == (404, "member_not_found", "no such member")
        assert (error.fields, error.retry_after_s, error.url) == ({"name": "nope"}, None, stub.url)
        assert str(error) == f"{stub.url}: member_not_found (404): no such member"

        stub.faults["/put"].append(Answer(503, "overloaded", retry_after=7))
        with pytest.raises(ServerError) as caught:
            await client.put("a", 1)
        assert (caught.value.code, caught.value.retry_after_s, caught.value.fields) == (
            "overloaded",
            7.0,
            {"told": True},
        )


async def test_a_cut_connection_leaves_the_outcome_open_and_nothing_is_sent_again() -> None:
    async with connected() as (stub, client):
        for is_written in (True, False):
            stub.faults["/put"].append(Cut(is_written))
            with pytest.raises(Unanswered) as caught:
                await client.put(str(is_written), 1)
            assert "may have happened" in str(caught.value.hint)
        assert stub.values() == {"True": "1"}
        assert len(stub.requests) == 2


async def test_no_answer_in_time_leaves_the_outcome_open() -> None:
    async with StubServer() as stub, Client(stub.url, timeout_s=0.3) as client:
        stub.open.clear()
        with pytest.raises(Unanswered, match=r"within 0\.3 s"):
            await client.batch({"a": 1})


async def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}", retries=0) as client:
        with pytest.raises(Unreachable, match="Connection refused") as caught:
            await client.put("a", 1)
        assert "kvnode start" in str(caught.value.hint)


Call = Callable[[Client], Awaitable[object]]

CALLS: dict[str, Call] = {
    "/put": lambda client: client.put("a", 1),
    "/batchput": lambda client: client.batch({"a": 1}),
    "/delete": lambda client: client.delete("a"),
    "/read": lambda client: client.get("a"),
    "/readrange": lambda client: collect(client),
    "/status": lambda client: client.status(),
    "/cluster/promote": lambda client: client.promote(),
    "/cluster/forget": lambda client: client.forget("n2"),
}

#: Routes whose answers name no position.
WITHOUT_POSITION = {"/cluster/promote", "/cluster/forget"}

POSITION = {"Kv-Seq": "1", "Kv-Epoch": EPOCH}


STRANGE = {
    "html": Say(b"<html>hello</html>", "text/html"),
    "cut": Say(b'{"seq":"x"', headers=POSITION),
    "no object": Say(b'[{"seq":1}]', headers=POSITION),
    # A status may be any object.
    "no epoch": Say(b'{"seq":1,"deleted":true,"key":"a","value":1}', headers={"Kv-Seq": "1"}),
    "bad seq": Say(b'{"seq":1,"deleted":true,"key":"a","value":1}', headers={"Kv-Seq": "x", "Kv-Epoch": EPOCH}),
    "no value": Say(b'{"key":"a"}\n', "application/x-ndjson", POSITION),
    "no line end": Say(b'{"key":"a","value":1}', "application/x-ndjson", POSITION),
}


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        pytest.param(route, answer, id=f"{route} {name}")
        for route in CALLS
        for name, answer in STRANGE.items()
        if route != "/status" or not answer.body.startswith(b"{") or name == "cut"
        if route not in WITHOUT_POSITION or name not in {"no epoch", "bad seq"}
    ],
)
async def test_whatever_is_no_nodes_answer_is_called_that(route: str, answer: Say) -> None:
    async with connected() as (stub, client):
        stub.faults[route].append(answer)
        with pytest.raises(BadAnswer) as caught:
            await CALLS[route](client)
        assert "REST address" in str(caught.value.hint)


@pytest.mark.parametrize("route", CALLS)
@pytest.mark.parametrize("fault", [Answer(500, "internal"), Cut()], ids=["500", "cut"])
async def test_every_call_raises_client_errors_only(route: str, fault: Answer | Cut) -> None:
    async with connected() as (stub, client):
        # aiohttp repeats a GET by itself when the connection breaks.
        stub.faults[route].extend([fault] * 10)
        with pytest.raises(ClientError):
            await CALLS[route](client)


async def serve_bytes(answer: bytes, call: Call) -> None:
    """Make `call` on a server that sends exactly these bytes and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with Client(f"http://{host}:{port}", retries=0) as client:
            await call(client)


async def test_a_server_that_speaks_no_http_is_no_node() -> None:
    with pytest.raises(BadAnswer, match=r"what answers at http://127\.0\.0\.1:\d+ does not speak HTTP \(hint: is this"):
        await serve_bytes(b"\x00\x00\x00\x05\x93\x01\x02\x03\x04", CALLS["/status"])


async def test_a_stream_that_only_a_close_ends_is_not_trusted() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
    with pytest.raises(BadAnswer, match="no marked end"):
        await serve_bytes(head + b'{"key":"a","value":1}\n', CALLS["/readrange"])


async def test_redirects_are_not_followed_but_shown() -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(BadAnswer, match=r"answered HTTP 302 and points to http://127\.0\.0\.1:1/"):
        await serve_bytes(head, CALLS["/status"])


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_proxy_that_reaches_no_node_is_named(status: int) -> None:
    with pytest.raises(BadAnswer) as caught:
        await serve_bytes(b"HTTP/1.1 %d Bad\r\nContent-Length: 6\r\n\r\n<html>" % status, CALLS["/put"])
    assert "a proxy seems to answer in place of a node" in str(caught.value.hint)
    assert caught.value.maybe_written
    with pytest.raises(BadAnswer) as caught:
        await serve_bytes(b"HTTP/1.1 400 Bad\r\nContent-Length: 6\r\n\r\n<html>", CALLS["/put"])
    assert "proxy" not in str(caught.value.hint)


@pytest.mark.parametrize("route", [route for route in CALLS if route not in {"/read", "/readrange", "/status"}])
@pytest.mark.parametrize(
    "fault", [Cut(), STRANGE["html"], STRANGE["cut"], Answer(500, "internal")], ids=["cut", "html", "torn", "500"]
)
async def test_whoever_may_have_written_is_told_so(route: str, fault: Cut | Say | Answer) -> None:
    async with connected() as (stub, client):
        stub.faults[route].append(fault)
        with pytest.raises(ClientError) as caught:
            await CALLS[route](client)
        assert caught.value.maybe_written
        assert str(caught.value.hint).count("may have happened") == 1


@pytest.mark.parametrize("code", ["replication_timeout", "outcome_unknown"])
async def test_a_node_that_says_what_became_of_a_write_is_left_to_say_it(code: str) -> None:
    async with connected() as (stub, client):
        stub.faults["/put"].append(Answer(504, code, fields={"seq": 1, "epoch": EPOCH}))
        with pytest.raises(ServerError) as caught:
            await client.put("a", 1)
        assert "may have happened" not in str(caught.value.hint)


@pytest.mark.parametrize("route", ["/read", "/status"])
async def test_a_read_says_nothing_of_writes(route: str) -> None:
    async with connected() as (stub, client):
        stub.faults[route].append(STRANGE["html"])
        with pytest.raises(BadAnswer) as caught:
            await CALLS[route](client)
        assert "happened" not in str(caught.value.hint)


async def test_a_wrong_path_in_the_url_is_asked_about() -> None:
    async with StubServer() as stub, Client(f"{stub.url}/kv", retries=0) as client:
        with pytest.raises(ServerError) as caught:
            await client.get("a")
        assert (caught.value.code, caught.value.status) == ("route_not_found", 404)
        assert "is the path of the URL right" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:5001", "http://127.0.0.1:5001"),
        ("127.0.0.1:5001", "http://127.0.0.1:5001"),
        ("http://[::1]:5001/", "http://[::1]:5001"),
        ("https://kv.example/node1/", "https://kv.example/node1"),
    ],
)
def test_url_has_one_form(text: str, url: str) -> None:
    assert parse_url(text) == url
    assert parse_url(url) == url


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "http://x:port", "http://x/?a=1", "http://x:99999"])
def test_no_url(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://user:s3cret@x:1",
        "user:s3cret@x",
        "http://:s3cret@x",
        "http://s3cret@x",
        "http://user:s3cret@x:port",
        "http://u:s3cret@x:99999",
        "ftp://user:s3cret@x",
        "http://user:s3cret@x/?a=1",
    ],
)
def test_a_url_with_a_password_is_refused_and_not_printed(text: str) -> None:
    with pytest.raises(ValueError, match="without a user name or password") as caught:
        parse_url(text)
    with pytest.raises(ValueError, match="without a user name or password"):
        Client(text)
    assert "s3cret" not in str(caught.value)
    # An @ elsewhere is none.
    assert parse_url("http://x/a@b") == "http://x/a@b"


def test_several_urls_are_separated_by_commas() -> None:
    assert parse_urls("a:1, http://b:2/,http://a:1") == ("http://a:1", "http://b:2")
    for wrong in ("a:1,", ",", "a:1,ftp://b"):
        with pytest.raises(ValueError, match="expected http"):
            parse_urls(wrong)


def test_urls_can_be_given_one_by_one_or_as_a_sequence() -> None:
    assert Client().urls == (DEFAULT_URL,)
    assert Client("a:1", "b:2", "http://a:1").urls == ("http://a:1", "http://b:2")
    assert Client(["a:1", "b:2"]).urls == ("http://a:1", "http://b:2")
    with pytest.raises(ValueError, match="expected http"):
        Client("a:1", "ftp://b")


def test_a_position_is_read_as_it_prints() -> None:
    assert parse_position(str(at(42))) == at(42)
    for wrong in ("", "42", "1.0badcafe", "1.0badcafe-", "1.0badcafe-x", "x-1", "1.0badcafe--1", "1.0badcafe-\u0664"):
        with pytest.raises(ValueError, match="expected"):
            parse_position(wrong)
