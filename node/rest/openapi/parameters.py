"""The parameters of requests, with the limits of the node that describes them."""

from __future__ import annotations

from typing import Any

from kvnode.node.api import Acks, ReadToken
from kvnode.node.config import Config
from kvnode.node.rest.params import MAX_ACKS, MAX_WAIT_S

_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
_SEQ = {"type": "integer", "minimum": 0, "maximum": _U64_MAX}
_KEY = {"$ref": "#/components/schemas/Key"}


def _query(description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"in": "query", "description": description, "schema": schema, **more}


def parameters(config: Config) -> dict[str, Any]:
    """The components, by name; that of a query parameter is what it is called in the query."""
    described: dict[str, Any] = {
        "key": {
            "in": "path",
            "required": True,
            "description": "The key, percent-encoded once. Any character can be in it: a `/` may be sent as it is or "
            f"as `%2F`, a `+` is a plus. At most {config.max_key_bytes} bytes of UTF-8.",
            "schema": _KEY,
            "example": "fruit/apple",
        },
        "acks": _query(
            "How many replicas besides the primary must hold the write durably before it is answered; `majority`: so "
            "many that they are, with the primary, more than half of the members. If fewer follow, nothing is written, "
            "and 503 `not_enough_replicas` says so at once.",
            {
                "type": ["integer", "string"],
                "minimum": 0,
                "maximum": MAX_ACKS,
                "pattern": "^majority$",
                "default": Acks().count,
            },
        ),
        "ack_timeout": _query(
            "How long the answer may wait, in seconds, for these replicas, and on a replica until the write is applied "
            "there. Then it is 504 `replication_timeout`; the write stays.",
            {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": Acks().timeout_s},
        ),
        "min_seq": _query(
            "Wait until this node has applied this entry: with the `Kv-Seq` of a write, or of a read, the answer shows "
            "what that did, on whichever node.",
            _SEQ,
        ),
        "epoch": _query(
            "The `Kv-Epoch` that came with `min_seq`, and only beside it: if that entry was lost when another node "
            "became the primary, the answer is 409 `history_lost`. Without it, the seq of another history would do. "
            "Such as `3.9f2c1a7b`.",
            {"$ref": "#/components/schemas/Epoch"},
        ),
        "wait": _query(
            f"How long to wait for `min_seq`, in seconds, and only beside it; if left out, {ReadToken(0).wait_s:g}. "
            "Then it is 503 `not_caught_up`.",
            {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
        ),
        "start_key": _query("The first key, inclusive. Not past `end_key`.", _KEY),
        "end_key": _query("The last key, inclusive.", _KEY),
        "prefix": _query(
            "Only keys that begin with this. Beside it only the bound from which the next page goes on is taken: "
            "`start_key`, or with `reverse=true` `end_key`; it must begin with the prefix.",
            _KEY,
            example="fruit/",
        ),
        "limit": _query(
            "At most so many items. Without it, all of them: the answer is then streamed, and takes little memory here "
            "however long it is.",
            {"type": "integer", "minimum": 1, "maximum": _U64_MAX},
            example=2,
        ),
        "reverse": _query("Whether to begin with the last key.", {"type": "boolean", "default": False}),
        "max_lag": _query(
            "Of a replica: the most entries that it may lack, and it must be connected to its primary.",
            _SEQ,
        ),
    }
    for name, each in described.items():
        each["name"] = name
    described["If-None-Match"] = {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of what the client has, several with commas between them, or `*`. If it still is "
        "what would be sent, the answer is 304, without a body.",
        "schema": {"type": "string"},
    }
    described["Last-Event-ID"] = {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The id of the last event that the client has seen. Anything else is passed over.",
        "schema": {"type": "string"},
        "example": "3.9f2c1a7b-1",
    }
    described["asset"] = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "The name of the file.",
        "schema": {"type": "string"},
        "example": "favicon.svg",
    }
    return described
