"""GET and HEAD /read/{key}."""

import json
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import pytest

from kvnode.node.api import ReadToken
from kvnode.node.errors import EngineClosed, NotCaughtUp, RecordDamaged, Syncing, history_lost
from kvnode.protocol.types import Epoch
from support.fake_store import EPOCH
from support.rest_rig import MakeRig, RestRig

ETAG = f'"{EPOCH}-1"'


@pytest.mark.parametrize("is_caching", [True, False])
async def test_read_gives_the_value_as_it_was_sent(rig: RestRig, is_caching: bool) -> None:
    rig.store.is_caching = is_caching
    await rig.put("k", b'[1.0, 12345678901234567890123,\n"\\ud800\\/"]')
    await rig.put("other", b"0")
    answer = await rig.ask("GET", "/read/k")
    assert answer.status == 200
    assert answer.body == b'{"key":"k","value":[1.0, 12345678901234567890123,\n"\\ud800\\/"]}'
    assert answer.headers["etag"] == ETAG
    assert answer.headers["kv-seq"] == "2"
    assert answer.headers["kv-epoch"] == str(EPOCH)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["server"] == "kvnode"
    parsedate_to_datetime(answer.headers["date"])


@pytest.mark.parametrize(
    "key",
    [
        "a/b",
        "/",
        "//",
        "..",
        "a/../b",
        ".",
        "a?b#c&d=e",
        "a b+c",
        "%2F",
        "100%",
        "é😀\uffff",
        '"\\',
        "\x00\n\r\t",
        "k" * 4096,
    ],
)
async def test_any_key_can_be_read(rig: RestRig, key: str) -> None:
    await rig.put(key, b"1")
    for target in (f"/read/{quote(key, safe='')}", f"/read/{quote(key, safe='/')}"):
        answer = await rig.ask("GET", target)
        assert answer.status == 200
        assert answer.json == {"key": key, "value": 1}


async def test_the_longest_key_fits_with_every_byte_escaped(rig: RestRig) -> None:
    key = "é" * 2048
    await rig.put(key, b"1")
    assert (await rig.ask("GET", f"/read/{quote(key)}")).json["key"] == key
    answer = await rig.ask("GET", f"/read/{quote(key)}a")
    assert answer.status == 413
    assert {name: answer.error[name] for name in ("code", "limit", "max", "sent")} == {
        "code": "too_large",
        "limit": "max_key_bytes",
        "max": 4096,
        "sent": 4097,
    }


@pytest.mark.parametrize(
    "target", ["http://x/read/a%2Fb", "HTTPS://u@[::1]:5001/read/a/b", "http://x/read/a/b?min_seq=1"]
)
async def test_absolute_targets(rig: RestRig, target: str) -> None:
    await rig.put("a/b", b"1")
    assert (await rig.ask("GET", target)).json == {"key": "a/b", "value": 1}


@pytest.mark.parametrize("is_caching", [True, False])
async def test_missing_key_tells_what_the_read_saw(rig: RestRig, is_caching: bool) -> None:
    rig.store.is_caching = is_caching
    await rig.put("k", b"1")
    answer = await rig.ask("GET", "/read/a%22%C3%A9")
    assert answer.status == 404
    assert answer.error == {"code": "key_not_found", "message": "no such key", "key": 'a"é'}
    assert (answer.headers["kv-seq"], answer.headers["kv-epoch"]) == ("1", str(EPOCH))
    assert "etag" not in answer.headers


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("/read/", "key"),
        ("/read/%", "key"),
        ("/read/%zz", "key"),
        ("/read/%ff", "key"),
        ("/read/%ED%A0%80", "key"),
        ("/read/k?min_seq=x", "min_seq"),
        ("/read/k?min_seq=1&min_seq=1", "min_seq"),
        ("/read/k?limit=1", "limit"),
        ("/read/k?acks=1", "acks"),
        ("/read/k?epoch=1", "epoch"),
        ("/read/k?wait=1", "wait"),
        ("/read/k#x", None),
    ],
)
async def test_bad_requests_are_named(rig: RestRig, target: str, field: str | None) -> None:
    answer = await rig.ask("GET", target)
    assert answer.status == 400
    assert (answer.error["code"], answer.error.get("field")) == ("invalid_request", field)


@pytest.mark.parametrize(
    "condition",
    [
        ETAG,
        f"W/{ETAG}",
        "*",
        " * ",
        f'"x", {ETAG}',
        f'W/"a,b" ,W/{ETAG},"c"',
    ],
)
async def test_if_none_match_gives_304(rig: RestRig, condition: str) -> None:
    await rig.put("k", b"1")
    async with rig.connect() as wire:
        for method in ("GET", "HEAD"):
            answer = await wire.ask(method, "/read/k", If_None_Match=condition)
            assert answer.status == 304
            assert answer.headers["etag"] == ETAG
            assert (answer.headers["kv-seq"], answer.headers["kv-epoch"]) == ("1", str(EPOCH))
            assert "content-length" not in answer.headers
        # Nothing of a body was sent: the next answer follows.
        assert (await wire.ask("GET", "/read/k")).status == 200


@pytest.mark.parametrize(
    "condition", ['"x"', f'"{EPOCH}-2"', str(EPOCH), f"{EPOCH}-1", f'"{ETAG[1:-1]}x"', "", '"*"', f'"x{ETAG}']
)
async def test_other_conditions_do_not_hold_the_value_back(rig: RestRig, condition: str) -> None:
    await rig.put("k", b"1")
    assert (await rig.ask("GET", "/read/k", If_None_Match=condition)).status == 200


async def test_if_none_match_in_several_lines(rig: RestRig) -> None:
    await rig.put("k", b"1")
    async with rig.connect() as wire:
        wire.send(f'GET /read/k HTTP/1.1\r\nHost: x\r\nIf-None-Match: "a"\r\nif-none-match: {ETAG}\r\n\r\n'.encode())
        assert (await wire.answer()).status == 304


async def test_a_condition_is_about_the_version_and_never_about_a_missing_key(rig: RestRig) -> None:
    await rig.put("k", b"1")
    await rig.put("k", b"1")
    assert (await rig.ask("GET", "/read/k", If_None_Match=ETAG)).status == 200
    assert (await rig.ask("GET", "/read/missing", If_None_Match="*")).status == 404


@pytest.mark.parametrize("target", ["/read/k", "/read/missing", "/read/%", "/read/k?x=1", "/read/long"])
async def test_head_has_the_same_head_and_no_body(rig: RestRig, target: str) -> None:
    await rig.put("k", b'"value"')
    await rig.put("long", b'"%b"' % (b"x" * 200_000))
    async with rig.connect() as wire:
        got = await wire.ask("GET", target)
        head = await wire.ask("HEAD", target)
        assert head.status == got.status
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
        assert int(head.headers["content-length"]) == len(got.body) > 0
        assert (await wire.ask("GET", "/read/k")).status == 200


@pytest.mark.parametrize(
    ("query", "token"),
    [
        ("min_seq=7", ReadToken(7, None, 1.0)),
        ("min_seq=7&wait=0.5&epoch=3.9f2c1a7b", ReadToken(7, Epoch.of(3, 0x9F2C1A7B), 0.5)),
    ],
)
async def test_min_seq_is_waited_for_before_the_read(rig: RestRig, query: str, token: ReadToken) -> None:
    await rig.put("k", b"1")
    assert (await rig.ask("GET", f"/read/k?{query}")).status == 200
    assert rig.store.tokens == [token]


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NotCaughtUp("not yet", min_seq=9, applied_seq=1), 503, "1"),
        (history_lost(Epoch.of(2, 1), 9), 409, None),
    ],
    ids=["not_caught_up", "history_lost"],
)
async def test_a_wait_that_fails_is_no_read(
    rig: RestRig, error: NotCaughtUp, status: int, retry_after: str | None
) -> None:
    await rig.put("k", b"1")
    rig.store.wait_error = error
    answer = await rig.ask("GET", "/read/k?min_seq=9")
    assert answer.status == status
    assert answer.error == {"code": error.code, "message": error.message, **error.fields}
    assert answer.headers.get("retry-after") == retry_after


async def test_syncing(rig: RestRig) -> None:
    rig.store.read_error = Syncing("being rebuilt")
    answer = await rig.ask("GET", "/read/k")
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "syncing", "1")


@pytest.mark.parametrize("error", [RecordDamaged("checksum mismatch"), EngineClosed("closed")])
async def test_trouble_with_the_disk_is_internal_and_logged_in_one_line(
    make_rig: MakeRig, error: RecordDamaged | EngineClosed
) -> None:
    rig = await make_rig()
    rig.store.read_error = error
    answer = await rig.ask("GET", "/read/secret")
    assert answer.status == 500
    hint = {} if error.hint is None else {"hint": error.hint}
    assert answer.error == {"code": "internal", "message": error.message, "cause": error.code, **hint}
    fields = {"route": "/read/", "code": error.code, "reason": error.message, **hint}
    assert rig.log.events == [("request_failed", fields)]
    assert rig.log.traced == []


async def test_a_bug_is_internal_and_logged_with_its_traceback_and_without_the_key(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.store.read_error = ZeroDivisionError("secret detail")
    answer = await rig.ask("GET", "/read/secret")
    assert answer.status == 500
    assert answer.error["code"] == "internal"
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body
    assert rig.log.events == [("request_failed", {"route": "/read/"})]
    assert rig.log.traced == [rig.store.read_error]


async def test_a_large_value_is_whole(rig: RestRig) -> None:
    value = json.dumps("é" * 1_500_000, ensure_ascii=False).encode()
    await rig.put("k", value)
    async with rig.connect() as wire:
        for _ in range(3):
            assert (await wire.ask("GET", "/read/k")).body == b'{"key":"k","value":' + value + b"}"
