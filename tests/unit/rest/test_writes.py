"""POST /put, /batchput and /delete."""

import asyncio
import json

import pytest

from kvnode.node.api import Acks, WriteResult
from kvnode.node.errors import (
    Draining,
    NoPrimary,
    NotEnoughReplicas,
    OutcomeUnknown,
    Overloaded,
    ReplicationTimeout,
    StorageFull,
    Syncing,
)
from kvnode.protocol.errors import KvError
from kvnode.protocol.types import delete, put
from support.fake_store import EPOCH
from support.rest_rig import RestRig

WRITES = {
    "/put": b'{"key":"k","value":1}',
    "/batchput": b'[{"key":"k","value":1}]',
    "/delete": b'{"key":"k"}',
}


async def test_put_answers_key_and_seq(rig: RestRig) -> None:
    answer = await rig.ask("POST", "/put", b'{"key": "a/\\u00e9 \\"", "value": {"x": 1.0}}')
    assert answer.status == 200
    assert answer.json == {"status": "OK", "key": 'a/é "', "seq": 1}
    assert answer.headers["kv-seq"] == "1"
    assert answer.headers["kv-epoch"] == str(EPOCH)
    assert rig.store.writes == [((put('a/é "'.encode(), b'{"x": 1.0}'),), None)]


async def test_batch_is_one_write_and_counts_the_items_given(rig: RestRig) -> None:
    answer = await rig.ask(
        "POST", "/batchput", b'[{"key":"a","value":1},{"value": [] ,"key":"b"},{"key":"a","value":2}]'
    )
    assert answer.status == 200
    assert answer.json == {"status": "OK", "count": 3, "seq": 1}
    assert answer.headers["kv-seq"] == "1"
    assert rig.store.writes == [((put(b"a", b"1"), put(b"b", b"[]"), put(b"a", b"2")), None)]


async def test_delete_tells_whether_the_key_was_there(rig: RestRig) -> None:
    await rig.put("k", b"1")
    answer = await rig.ask("POST", "/delete", b'{"key":"k"}')
    assert (answer.status, answer.json) == (200, {"status": "OK", "key": "k", "deleted": True, "seq": 2})
    assert answer.headers["kv-seq"] == "2"
    answer = await rig.ask("POST", "/delete", b'{"key":"k"}')
    assert (answer.status, answer.json) == (200, {"status": "OK", "key": "k", "deleted": False, "seq": 2})
    assert rig.store.writes[-1] == ((delete(b"k"),), None)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
async def test_any_content_type_is_taken(rig: RestRig, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content_Type": content_type}
    assert (await rig.ask("POST", "/put", WRITES["/put"], **headers)).status == 200


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    ("query", "acks"),
    [
        ("acks=2", Acks(2)),
        ("acks=0", Acks(0)),
        ("acks=majority", Acks(None)),
        ("acks=1&ack_timeout=0.25", Acks(1, 0.25)),
        ("ack_timeout=7", Acks(0, 7.0)),
        ("", None),
    ],
)
async def test_acks_reach_the_store(rig: RestRig, path: str, query: str, acks: Acks | None) -> None:
    assert (await rig.ask("POST", f"{path}?{query}", WRITES[path])).status == 200
    assert rig.store.writes[0][1] == acks


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("acks=", "acks"),
        ("acks=-1", "acks"),
        ("acks=some", "acks"),
        ("acks=1&acks=1", "acks"),
        # A replica could not say that to its primary.
        ("acks=4294967296", "acks"),
        ("ack_timeout=soon", "ack_timeout"),
        ("ack_timeout=-1", "ack_timeout"),
        ("ack_timeout=nan", "ack_timeout"),
        ("ack_timeout=3600.1", "ack_timeout"),
        ("min_seq=1", "min_seq"),
        ("Acks=1", "Acks"),
    ],
)
async def test_a_bad_parameter_is_named_and_nothing_is_written(rig: RestRig, path: str, query: str, field: str) -> None:
    answer = await rig.ask("POST", f"{path}?{query}", WRITES[path])
    assert answer.status == 400
    assert (answer.error["code"], answer.error["field"]) == ("invalid_request", field)
    assert rig.store.writes == []


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        ("/put", b"", "invalid_json", None),
        ("/put", b" \r\n", "invalid_json", None),
        ("/put", b"{", "invalid_json", None),
        ("/put", b"null", "invalid_request", None),
        ("/put", b'{"key":"k"}', "invalid_request", "value"),
        ("/put", b'{"value":1}', "invalid_request", "key"),
        ("/put", b'{"key":1,"value":1}', "invalid_request", "key"),
        ("/put", b'{"key":"","value":1}', "invalid_request", "key"),
        ("/put", b'{"key":"k","value":1,"ttl":5}', "invalid_request", "ttl"),
        ("/put", b'{"key":"k","value":NaN}', "invalid_json", None),
        ("/put", b'{"key":"k","value":"\xff"}', "invalid_json", None),
        ("/put", b'{"key":"\\ud800","value":1}', "invalid_request", "key"),
        ("/put", b'{"key":"k","value":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
        ("/put", b'\xef\xbb\xbf{"key":"k","value":1}', "invalid_json", None),
        ("/put", b'{"key":"k","value":1}{}', "invalid_json", None),
        ("/batchput", b"[]", "invalid_request", None),
        ("/batchput", b"{}", "invalid_request", None),
        ("/batchput", b"[1]", "invalid_request", "$[0]"),
        ("/batchput", b'[{"key":"a","value":1},{"key":"b"}]', "invalid_request", "$[1].value"),
        ("/batchput", b'[{"key":"a","value":1},{"key":"b","value":1,"x":0}]', "invalid_request", "$[1].x"),
        ("/batchput", b'[{"key":"a","value":1},{"key":"","value":1}]', "invalid_request", "$[1].key"),
        ("/batchput", b'[{"key":"a","value":1},{"key":null,"value":1}]', "invalid_request", "$[1].key"),
        ("/batchput", b'[{"key":"a","value":1},]', "invalid_json", None),
        ("/delete", b'{"key":"k","value":1}', "invalid_request", "value"),
        ("/delete", b"{}", "invalid_request", "key"),
        ("/delete", b'"k"', "invalid_request", None),
        ("/delete", b'{"key":"\\udfff"}', "invalid_request", "key"),
    ],
)
async def test_a_bad_body_is_explained_and_nothing_is_written(
    rig: RestRig, path: str, body: bytes, code: str, field: str | None
) -> None:
    async with rig.connect() as wire:
        answer = await wire.ask("POST", path, body)
        assert answer.status == 400
        assert (answer.error["code"], answer.error.get("field")) == (code, field)
        assert rig.store.writes == []
        # The request was read to its end: the connection goes on.
        assert (await wire.ask("POST", path, WRITES[path])).status == 200


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    ("error", "status", "fields"),
    [
        (Overloaded("too much", limit="max_queued_bytes", max=7), 503, {"limit": "max_queued_bytes", "max": 7}),
        (NotEnoughReplicas("none", asked=2), 503, {"asked": 2}),
        (NoPrimary("none"), 503, {}),
        (Syncing("rebuilding"), 503, {}),
        (Draining("stopping"), 503, {}),
        (StorageFull("full", hint="free some space"), 507, {"hint": "free some space"}),
        (OutcomeUnknown("who knows"), 504, {}),
        (ReplicationTimeout("durable here", seq=17), 504, {"seq": 17}),
    ],
    ids=lambda value: value.code if isinstance(value, KvError) else None,
)
async def test_errors_of_the_store_keep_code_and_fields(
    rig: RestRig, path: str, error: KvError, status: int, fields: dict[str, object]
) -> None:
    rig.store.write_error = error
    at_once = await rig.ask("POST", path, WRITES[path])
    rig.store.write_error, rig.store.outcome_error = None, error
    later = await rig.ask("POST", path, WRITES[path])
    for answer in (at_once, later):
        assert answer.status == status
        assert answer.error == {"code": error.code, "message": error.message, **fields}
        assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


async def test_limits_of_the_store_name_limit_and_size(rig: RestRig) -> None:
    longest = "k" * rig.config.max_key_bytes
    assert (await rig.ask("POST", "/put", json.dumps({"key": longest, "value": 1}).encode())).status == 200
    answer = await rig.ask("POST", "/put", json.dumps({"key": longest + "k", "value": 1}).encode())
    assert answer.status == 413
    assert answer.error["code"] == "too_large"
    assert {name: answer.error[name] for name in ("limit", "max", "sent")} == {
        "limit": "max_key_bytes",
        "max": 4096,
        "sent": 4097,
    }


async def test_a_client_that_leaves_undoes_nothing(rig: RestRig) -> None:
    rig.store.hold = True
    async with rig.connect() as wire:
        wire.request("POST", "/put", WRITES["/put"])
        await rig.store.wrote.wait()
        wire.reset()
    # The next request comes after the loss of the first connection was noticed.
    answer = await rig.ask("GET", "/read/k")
    assert answer.status == 200
    (future,) = rig.store.held
    assert not future.cancelled()
    future.set_result(WriteResult(rig.store.applied, 0))


async def test_a_handler_cancelled_by_a_stop_undoes_nothing(rig: RestRig) -> None:
    rig.store.hold = True
    async with rig.connect() as wire:
        wire.request("POST", "/put", WRITES["/put"])
        await rig.store.wrote.wait()
        await rig.front.close(0.01)
        assert rig.store.records[b"k"].value == b"1"
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await wire.answer()


async def test_writes_of_pipelined_requests_are_answered_in_order(rig: RestRig) -> None:
    async with rig.connect() as wire:
        for number in range(100):
            wire.request("POST", "/put", b'{"key":"k%d","value":%d}' % (number, number))
        answers = [await wire.answer() for _ in range(100)]
    assert [answer.json["seq"] for answer in answers] == list(range(1, 101))
    assert [answer.json["key"] for answer in answers] == [f"k{number}" for number in range(100)]
