"""The routes of data: put, batchput, read, readrange, delete.

Their examples belong together. Played in the order of `WALKTHROUGH` against an empty node, each is answered as it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvnode.node.config import Config
from kvnode.node.rest.openapi.operations import (
    BODY_ERRORS,
    JSON,
    Json,
    answer,
    as_examples,
    json_content,
    operation,
    with_head,
)

TAG = "data"

_NDJSON = "application/x-ndjson"
_POSITION = ("Kv-Seq", "Kv-Epoch")

#: What can happen to any write.
_WRITE_ERRORS = (
    *BODY_ERRORS,
    "no_primary",
    "not_enough_replicas",
    "not_primary",
    "syncing",
    "draining",
    "replication_timeout",
    "outcome_unknown",
    "storage_full",
)
#: What can happen to any read.
_READ_ERRORS = ("history_lost", "too_large", "not_caught_up", "syncing")

_APPLE = {"key": "fruit/apple", "value": "red"}
_BANANA = {"key": "fruit/banana", "value": {"colour": "yellow", "kg": 0.12}}
_CHERRIES = [{"key": "fruit/cherry", "value": "dark red"}, {"key": "fruit/date", "value": 3}]


class Step(NamedTuple):
    """One request of the examples.

    Attributes:
        operation: its operationId.
        example: the name that the examples of its body and of its answer have.
        target: what it is sent to.
        accept: the media type that it asks for.
    """

    operation: str
    example: str
    target: str
    accept: str = JSON


#: The examples in the order in which they follow from each other.
WALKTHROUGH = (
    Step("put", "text", "/put"),
    Step("put", "object", "/put"),
    Step("putBatch", "two", "/batchput"),
    Step("read", "found", "/read/fruit%2Fapple"),
    Step("readRange", "page", "/readrange?prefix=fruit%2F&limit=2"),
    Step("readRange", "lines", "/readrange?prefix=fruit%2F&limit=2", _NDJSON),
    Step("delete", "there", "/delete"),
    Step("delete", "missing", "/delete"),
)


def data_paths(config: Config) -> Json:
    """The path items."""
    return {
        "/put": {"post": _put(config)},
        "/read/{key}": with_head(_read()),
        "/batchput": {"post": _put_batch(config)},
        "/readrange": with_head(_read_range()),
        "/delete": {"post": _delete()},
    }


def _put(config: Config) -> Json:
    return operation(
        "put",
        TAG,
        "Set one key",
        "Any node takes it; a replica hands it to its primary. It is answered when it is durable on the primary's "
        "disk, visible on this node, and held by as many replicas as `acks` says.\n\n"
        f"A body has at most {config.max_body_bytes} bytes. Its `Content-Type` does not matter.",
        parameters=("acks", "ack_timeout"),
        body=_body("PutBody", {"text": ("A text", _APPLE), "object": ("An object", _BANANA)}),
        answers={
            "200": answer(
                "It is written.",
                json_content(
                    "Written",
                    {
                        "text": ("A text", {"status": "OK", "key": "fruit/apple", "seq": 1}),
                        "object": ("An object", {"status": "OK", "key": "fruit/banana", "seq": 2}),
                    },
                ),
                headers=_POSITION,
                links=_read_back("$response.body#/key", "$response.body#/seq"),
            )
        },
        errors=_WRITE_ERRORS,
    )


def _put_batch(config: Config) -> Json:
    return operation(
        "putBatch",
        TAG,
        "Set many keys at once",
        "All of them or none. If a key is there more than once, the last counts. At most "
        f"{config.max_batch_items} items and {config.max_batch_bytes} bytes of keys and values; otherwise like `put`.",
        parameters=("acks", "ack_timeout"),
        body=_body("BatchBody", {"two": ("Two items", _CHERRIES)}),
        answers={
            "200": answer(
                "All are written.",
                json_content("BatchWritten", {"two": ("Two items", {"status": "OK", "count": 2, "seq": 3})}),
                headers=_POSITION,
                links=_read_back("$request.body#/0/key", "$response.body#/seq"),
            )
        },
        errors=_WRITE_ERRORS,
    )


def _delete() -> Json:
    there = {"status": "OK", "key": "fruit/date", "deleted": True, "seq": 4}
    missing = {"status": "OK", "key": "fruit/elderberry", "deleted": False, "seq": 4}
    return operation(
        "delete",
        TAG,
        "Remove one key",
        "A key that is not there is no error: `deleted` says whether it was. Otherwise like `put`.",
        parameters=("acks", "ack_timeout"),
        body=_body(
            "DeleteBody",
            {
                "there": ("A key that is there", {"key": "fruit/date"}),
                "missing": ("A key that is not there", {"key": "fruit/elderberry"}),
            },
        ),
        answers={
            "200": answer(
                "It is not there any more.",
                json_content(
                    "Deleted",
                    {"there": ("A key that was there", there), "missing": ("A key that was not there", missing)},
                ),
                headers=_POSITION,
            )
        },
        errors=_WRITE_ERRORS,
    )


def _read() -> Json:
    return operation(
        "read",
        TAG,
        "Read one key",
        "The value comes back as it was sent. Any node answers from its own data, which may be a little behind the "
        "primary's: `min_seq` makes it wait until they are as new as what the client saw last.\n\n"
        "With the `ETag` of an earlier answer in `If-None-Match`, a record that was not written since is answered by "
        "304.",
        parameters=("key", "min_seq", "epoch", "wait", "If-None-Match"),
        answers={
            "200": answer(
                "The record.",
                json_content("Item", {"found": ("A text", _APPLE)}),
                headers=(*_POSITION, "ETag"),
            ),
            "304": answer("The client has it.", headers=(*_POSITION, "ETag")),
        },
        errors=("key_not_found", *_READ_ERRORS),
    )


def _read_range() -> Json:
    lines = "".join(json.dumps(item, separators=(",", ":")) + "\n" for item in (_APPLE, _BANANA))
    page = {"items": [_APPLE, _BANANA], "count": 2, "next_key": "fruit/cherry"}
    return operation(
        "readRange",
        TAG,
        "Read a range of keys",
        "All keys, or those between two, or those with a prefix, in the order of their bytes; of one snapshot. For "
        "the next page, send `next_key` as `start_key` (with `reverse=true`, as `end_key`), and leave the rest as it "
        "is.\n\n"
        f"`Accept: {_NDJSON}` asks for one item a line instead of one object, which can be read as it comes; the next "
        "key is then in the header `Kv-Next-Key`. A long answer is streamed; if it cannot be brought to its end, the "
        "connection is reset, so that it never looks whole.",
        parameters=("start_key", "end_key", "prefix", "limit", "reverse", "min_seq", "epoch", "wait"),
        answers={
            "200": answer(
                "The items.",
                json_content("Range", {"page": ("A page", page)})
                | {
                    _NDJSON: {
                        "schema": {"type": "string", "description": "One `Item` a line."},
                        "examples": as_examples({"lines": ("A page", lines)}),
                    }
                },
                headers=(*_POSITION, "Vary", "Kv-Next-Key"),
            )
        },
        errors=_READ_ERRORS,
    )


def _body(schema: str, examples: Mapping[str, tuple[str, Any]]) -> Json:
    return {"required": True, "content": json_content(schema, examples)}


def _read_back(key: str, seq: str) -> Json:
    return {
        "readBack": {
            "operationId": "read",
            "parameters": {"key": key, "min_seq": seq},
            "description": "Reads what was written, on any node.",
        }
    }
