"""GET and HEAD /readrange."""

import json
from typing import Any

import pytest

from kvnode.node.api import KeyRange, ReadToken, Record
from kvnode.node.errors import EngineClosed, NotCaughtUp, RecordDamaged, Syncing
from kvnode.node.rest.ranges import encode_json_items, encode_json_lines
from kvnode.protocol.types import Position
from support.fake_store import EPOCH
from support.rest_rig import HttpAnswer, MakeRig, RestRig, Wire

NDJSON = "application/x-ndjson"
LARGE = b'"%b"' % (b"x" * 50_000)


def fill(rig: RestRig, count: int, value: bytes = b"%d") -> None:
    for number in range(count):
        text = value % number if b"%d" in value else value
        rig.store.records[b"k%05d" % number] = Record(Position(EPOCH, number + 1), 0, text)


def lines_of(answer: HttpAnswer) -> list[Any]:
    assert answer.headers["content-type"] == NDJSON
    assert answer.body == b"" or answer.body.endswith(b"\n")
    return [json.loads(line) for line in answer.body.splitlines()]


@pytest.mark.parametrize("chunk_items", [1, 2, 3, 100])
async def test_a_short_range_is_sent_whole(rig: RestRig, chunk_items: int) -> None:
    rig.store.range_chunk_items = chunk_items
    await rig.put('b"é', b"[1.0, 2]")
    await rig.put("a", b'"\\ud800"')
    answer = await rig.ask("GET", "/readrange")
    assert answer.status == 200
    assert answer.body == (
        '{"items":[{"key":"a","value":"\\ud800"},{"key":"b\\"é","value":[1.0, 2]}],"count":2,"next_key":null}'.encode()
    )
    assert (answer.headers["kv-seq"], answer.headers["kv-epoch"]) == ("2", str(EPOCH))
    assert answer.headers["vary"] == "Accept"
    assert "transfer-encoding" not in answer.headers


async def test_an_empty_range(rig: RestRig) -> None:
    assert (await rig.ask("GET", "/readrange")).body == b'{"items":[],"count":0,"next_key":null}'
    answer = await rig.ask("GET", "/readrange", Accept=NDJSON)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize("chunk_items", [1, 7, 1000])
@pytest.mark.parametrize("accept", ["*/*", NDJSON])
async def test_a_long_range_is_streamed(rig: RestRig, accept: str, chunk_items: int) -> None:
    rig.store.range_chunk_items = chunk_items
    fill(rig, 40, LARGE)
    async with rig.connect() as wire:
        for _ in range(2):
            answer = await wire.ask("GET", "/readrange", Accept=accept)
            assert answer.headers["transfer-encoding"] == "chunked"
            items = lines_of(answer) if accept == NDJSON else answer.json["items"]
            assert [item["key"] for item in items] == [f"k{number:05}" for number in range(40)]
            assert {item["value"] for item in items} == {json.loads(LARGE)}
            if accept != NDJSON:
                assert list(answer.json) == ["items", "count", "next_key"]
                assert (answer.json["count"], answer.json["next_key"]) == (40, None)
            assert answer.trailers == {}


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", KeyRange()),
        ("?start_key=a%2Fb&end_key=c+d", KeyRange(b"a/b", b"c d")),
        ("?prefix=k&start_key=k3&limit=2", KeyRange(b"k3", None, b"k", 2)),
        ("?reverse=true&end_key=z", KeyRange(None, b"z", b"", None, True)),
    ],
)
async def test_what_is_wanted_reaches_the_store(rig: RestRig, query: str, wanted: KeyRange) -> None:
    assert (await rig.ask("GET", f"/readrange{query}")).status == 200
    assert rig.store.ranges == [wanted]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [b"%d", LARGE], ids=["whole", "streamed"])
@pytest.mark.parametrize("accept", ["*/*", NDJSON])
async def test_paging_visits_every_key_once(rig: RestRig, accept: str, value: bytes, reverse: bool) -> None:
    fill(rig, 23, value)
    bound = "end_key" if reverse else "start_key"
    seen: list[str] = []
    query = ""
    pages = 0
    async with rig.connect() as wire:
        while True:
            target = f"/readrange?limit=5&prefix=k&reverse={'true' if reverse else 'false'}{query}"
            answer = await wire.ask("GET", target, Accept=accept)
            assert answer.status == 200
            pages += 1
            if accept == NDJSON:
                seen += [item["key"] for item in lines_of(answer)]
                if "transfer-encoding" in answer.headers:
                    assert answer.headers["trailer"] == "Kv-Next-Key"
                    next_key = answer.trailers.get("kv-next-key")
                else:
                    next_key = answer.headers.get("kv-next-key")
            else:
                seen += [item["key"] for item in answer.json["items"]]
                assert answer.json["count"] == len(answer.json["items"])
                next_key = answer.json["next_key"]
            if next_key is None:
                break
            query = f"&{bound}={next_key}"
    keys = [f"k{number:05}" for number in range(23)]
    assert seen == (keys[::-1] if reverse else keys)
    assert pages == 5


async def test_next_key_in_a_header_is_percent_encoded(rig: RestRig) -> None:
    await rig.put("a", b"1")
    await rig.put("b/é\r\nX-Injected: 1", b"2")
    answer = await rig.ask("GET", "/readrange?limit=1", Accept=NDJSON)
    assert answer.headers["kv-next-key"] == "b%2F%C3%A9%0D%0AX-Injected%3A%201"
    assert "x-injected" not in answer.headers
    answer = await rig.ask("GET", f"/readrange?start_key={answer.headers['kv-next-key']}", Accept=NDJSON)
    assert lines_of(answer) == [{"key": "b/é\r\nX-Injected: 1", "value": 2}]


@pytest.mark.parametrize(
    ("accept", "is_lines"),
    [
        (NDJSON, True),
        ("Application/X-NDJSON", True),
        (f"{NDJSON};q=0.5", True),
        (f"text/html, {NDJSON}, */*", True),
        (f"{NDJSON}, application/json", True),
        (f"{NDJSON}; charset=utf-8; q=1.0, application/json;q=0.9", True),
        (f"{NDJSON};q=0.5, application/json", False),
        (f"{NDJSON};q=0", False),
        (f"{NDJSON};q=x", False),
        ("application/json", False),
        ("*/*", False),
        ("text/html", False),
        ("", False),
    ],
)
async def test_accept_chooses_the_form(rig: RestRig, accept: str, is_lines: bool) -> None:
    await rig.put("a", b"1")
    answer = await rig.ask("GET", "/readrange", Accept=accept)
    assert (answer.headers["content-type"] == NDJSON) == is_lines
    assert answer.body == (
        b'{"key":"a","value":1}\n' if is_lines else b'{"items":[{"key":"a","value":1}],"count":1,"next_key":null}'
    )


async def test_no_accept_is_json(rig: RestRig) -> None:
    assert (await rig.ask("GET", "/readrange")).json["count"] == 0


def test_an_item_takes_one_line_whatever_white_space_its_value_has() -> None:
    value = b'[\n 1.0,\r\n "a\\nb"\r]'
    items = [(b"k\n", value), (b"l", b"2")]
    assert encode_json_lines(items) == b'{"key":"k\\n","value":[  1.0,   "a\\nb" ]}\n{"key":"l","value":2}\n'
    assert encode_json_items(items) == b',{"key":"k\\n","value":' + value + b'},{"key":"l","value":2}'


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("start_key=b&end_key=a", "start_key"),
        ("limit=0", "limit"),
        ("reverse=yes", "reverse"),
        ("prefix=a&end_key=ab", "end_key"),
        ("start=a", "start"),
        ("start_key=a&start_key=b", "start_key"),
        ("start_key=%FF", "start_key"),
        ("start_key=", "start_key"),
        ("min_seq=x", "min_seq"),
    ],
)
async def test_bad_ranges_are_named(rig: RestRig, query: str, field: str) -> None:
    answer = await rig.ask("GET", f"/readrange?{query}")
    assert answer.status == 400
    assert (answer.error["code"], answer.error["field"]) == ("invalid_request", field)
    assert rig.store.ranges == []


async def test_three_of_the_longest_keys_fit_a_target(rig: RestRig) -> None:
    key = "%C3%A9" * 2048
    answer = await rig.ask("GET", f"/readrange?start_key={key}&end_key={key}&limit=1&reverse=false&min_seq=0&wait=1")
    assert answer.status == 200
    answer = await rig.ask("GET", f"/readrange?start_key={key}&prefix={key}&end_key={key}&limit=1")
    assert (answer.status, answer.error["field"]) == (400, "end_key")
    answer = await rig.ask("GET", f"/readrange?start_key={key}a")
    assert (answer.status, answer.error["limit"]) == (413, "max_key_bytes")


async def test_min_seq_is_waited_for_first(rig: RestRig) -> None:
    assert (await rig.ask("GET", "/readrange?min_seq=5&wait=2")).status == 200
    assert rig.store.tokens == [ReadToken(5, None, 2.0)]
    rig.store.wait_error = NotCaughtUp("not yet")
    answer = await rig.ask("GET", "/readrange?min_seq=5")
    assert (answer.status, answer.error["code"]) == (503, "not_caught_up")
    assert len(rig.store.ranges) == 1


@pytest.mark.parametrize("value", [b"%d", LARGE], ids=["whole", "streamed"])
@pytest.mark.parametrize("accept", ["*/*", NDJSON])
@pytest.mark.parametrize("query", ["", "?limit=7"])
async def test_head_has_the_same_head_and_reads_no_further(rig: RestRig, accept: str, value: bytes, query: str) -> None:
    fill(rig, 30, value)
    rig.store.range_chunk_items = 1
    async with rig.connect() as wire:
        got = await wire.ask("GET", f"/readrange{query}", Accept=accept)
        read = rig.store.range_chunks
        head = await wire.ask("HEAD", f"/readrange{query}", Accept=accept)
        assert head.status == 200
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
        assert ("transfer-encoding" in head.headers) == (value is LARGE)
        if value is LARGE:
            assert rig.store.range_chunks - read == 2
        await rig.store.ranges_closed.wait()
        assert (await wire.ask("GET", "/health")).status == 200


async def test_errors_before_the_first_part_are_answers(make_rig: MakeRig) -> None:
    rig = await make_rig()
    fill(rig, 10)
    rig.store.range_chunk_items = 1
    for error, after, status in (
        (Syncing("being rebuilt"), None, 503),
        (RecordDamaged("checksum"), 0, 500),
        (RecordDamaged("checksum"), 9, 500),
        (EngineClosed("closed"), 10, 500),
    ):
        rig.store.read_error = error if after is None else None
        rig.store.range_error, rig.store.range_error_after = error, after
        async with rig.connect() as wire:
            answer = await wire.ask("GET", "/readrange")
            assert answer.status == status
            assert answer.error["message"] == error.message
            # Nothing was broken: the connection goes on.
            assert (await wire.ask("GET", "/health")).status == 200
    assert [fields["code"] for _, fields in rig.log.events] == ["record_damaged", "record_damaged", "engine_closed"]
    assert rig.log.traced == []


@pytest.mark.parametrize("accept", ["*/*", NDJSON])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("after", [2, 5, 30])
@pytest.mark.parametrize("error", [RecordDamaged("checksum"), ZeroDivisionError()])
async def test_an_error_after_the_head_resets_the_connection(
    make_rig: MakeRig, accept: str, version: str, after: int, error: Exception
) -> None:
    """Also where the end of the connection would be the end of the answer (HTTP/1.0)."""
    rig = await make_rig()
    fill(rig, 30, LARGE)
    rig.store.range_chunk_items = 1
    rig.store.range_error, rig.store.range_error_after = error, after
    async with rig.connect() as wire:
        wire.request("GET", "/readrange", version=version, Accept=accept)
        with pytest.raises(ConnectionResetError):
            await wire.read_to_end()
    ((name, fields),) = rig.log.events
    assert (name, fields["route"]) == ("answer_broken_off", "/readrange")
    assert rig.log.traced == ([error] if isinstance(error, ZeroDivisionError) else [])


async def test_http_1_0_gets_the_stream_without_chunks(rig: RestRig) -> None:
    fill(rig, 30, LARGE)
    async with rig.connect() as wire:
        wire.request("GET", "/readrange", version="1.0", Connection="keep-alive")
        answer = await wire.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.json["count"] == 30


async def _read_head(wire: Wire) -> None:
    head = await wire.reader.readuntil(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head


@pytest.mark.parametrize("loss", ["reset", "half_close"])
async def test_a_client_that_leaves_lets_go_of_the_snapshot(rig: RestRig, loss: str) -> None:
    fill(rig, 2000, LARGE)
    rig.store.range_chunk_items = 1
    async with rig.connect(receive_bytes=1024) as wire:
        wire.request("GET", "/readrange")
        await _read_head(wire)
        assert rig.store.open_ranges == 1
        if loss == "half_close":
            wire.half_close()
        wire.reset()
        await rig.store.ranges_closed.wait()
    assert rig.store.range_chunks < 2000


async def test_a_client_that_stalls_loses_its_snapshot(make_rig: MakeRig) -> None:
    rig = await make_rig(stall_timeout_s=0.1)
    fill(rig, 2000, LARGE)
    rig.store.range_chunk_items = 1
    async with rig.connect(receive_bytes=1024) as wire:
        wire.request("GET", "/readrange")
        await _read_head(wire)
        await rig.store.ranges_closed.wait()
        # 100 MB were to be sent: what the kernel and the process hold is a part of it.
        assert rig.store.range_chunks < 1000
        with pytest.raises(ConnectionResetError):
            await wire.read_to_end()
    assert rig.log.events == []


async def test_a_range_does_not_run_ahead_of_its_client(rig: RestRig) -> None:
    """Memory does not grow with the range: no more is read than the kernel takes and the write buffer may hold."""
    fill(rig, 4000, LARGE)
    rig.store.range_chunk_items = 1
    async with rig.connect(receive_bytes=1024) as wire:
        wire.request("GET", "/readrange")
        await _read_head(wire)
        previous = -1
        while rig.store.range_chunks != previous:
            previous = rig.store.range_chunks
            for _ in range(50):
                assert (await rig.ask("GET", "/health")).status == 200
        # 200 MB in all.
        assert rig.store.range_chunks < 1000


async def test_reads_go_on_beside_a_stream(rig: RestRig) -> None:
    fill(rig, 200, LARGE)
    async with rig.connect() as wire:
        wire.request("GET", "/readrange", Accept=NDJSON)
        for number in range(20):
            assert (await rig.ask("GET", f"/read/k{number:05}")).status == 200
        assert len(lines_of(await wire.answer())) == 200
