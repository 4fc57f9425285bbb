"""Every error that REST answers with: what its code means, which members its object has, and an example of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvnode.node.rest.errors import STATUS_OF_CODE

_SEQ: dict[str, Any] = {"type": "integer", "minimum": 0}
_EPOCH: dict[str, Any] = {"$ref": "#/components/schemas/Epoch"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_NAME: dict[str, Any] = {"type": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error, as clients see it.

    Attributes:
        meaning: what happened, and what to do about it.
        message: of the example.
        members: schemas of the members beside `code`, `message` and `hint`, by name.
        optional: which of them are not always there.
        example: their values, and the `hint`, in the example.
        headers: those that its answer has.
    """

    meaning: str
    message: str
    members: dict[str, Any] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    example: dict[str, Any] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


def _unavailable(
    meaning: str,
    message: str,
    members: dict[str, Any] | None = None,
    optional: frozenset[str] = frozenset(),
    **example: Any,
) -> Failure:
    return Failure(
        meaning=meaning,
        message=message,
        members=members or {},
        optional=optional,
        example=example,
        headers=("Retry-After",),
    )


#: By code; in the order in which the table of errors has them.
FAILURES: dict[str, Failure] = {
    "invalid_json": Failure(
        meaning="the body is not JSON in UTF-8. Correct the request.",
        message="the body is empty, expected JSON",
    ),
    "invalid_request": Failure(
        meaning="a parameter, a member of the body, or the HTTP itself is at fault. Correct the request.",
        message="limit must be at least 1",
        members={"field": {"type": "string", "description": "The parameter, header, or member of the body."}},
        optional=frozenset({"field"}),
        example={"field": "limit"},
    ),
    "cross_origin": Failure(
        meaning="a page of another site made a browser send it. Nothing was changed. A proxy in front of the node has "
        "to pass `Host` on as it is.",
        message="a page of another site cannot change anything here; nothing was written",
        members={"origin": {"type": "string"}},
        example={
            "origin": "http://elsewhere.example",
            "hint": "let the site's server talk to the node; a proxy in front of the node has to pass Host on as it is",
        },
    ),
    "key_not_found": Failure(
        meaning="there is no such key.",
        message="no such key",
        members={"key": {"type": "string"}},
        example={"key": "fruit/elderberry"},
        headers=("Kv-Seq", "Kv-Epoch"),
    ),
    "route_not_found": Failure(
        meaning="there is no such path.",
        message="no file '/assets/other.js'",
    ),
    "member_not_found": Failure(
        meaning="no member has this name.",
        message="no member is called web4; there are web1, web2, web3",
        members={"name": _NAME},
        example={"name": "web4"},
    ),
    "method_not_allowed": Failure(
        meaning="the path has other methods; `Allow` names them.",
        message="GET is not allowed here, use POST",
        members={"allow": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
        example={"allow": ["POST"]},
        headers=("Allow",),
    ),
    "history_lost": Failure(
        meaning="this node's history does not have the write that `epoch` and `min_seq` name: it was lost when another "
        "node became the primary. Read without them, and write again what is missing.",
        message="2.0d5e7a10-8 is not in this node's history",
        members={"epoch": _EPOCH, "seq": _SEQ},
        example={"epoch": "2.0d5e7a10", "seq": 8},
    ),
    "member_connected": Failure(
        meaning="only a member that will not return can be forgotten.",
        message="web2 is connected",
        members={"name": _NAME},
        example={"name": "web2", "hint": "stop that node first"},
    ),
    "already_primary": Failure(
        meaning="this node is the primary.",
        message="web1 is the primary",
        members={"name": _NAME},
        example={"name": "web1"},
    ),
    "promotion_refused": Failure(
        meaning="to promote this node now would lose writes, or make two primaries. Nothing was changed; `members` "
        "says what was seen.",
        message="web1 answers as the primary; nothing was changed",
        members={
            "reason": {
                "enum": ["primary_answers", "member_ahead", "promotion_under_way"],
                "description": "What speaks against it.",
            },
            "members": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/SeenMember"},
                "description": "What was seen of the members, this node first.",
            },
        },
        example={
            "reason": "primary_answers",
            "members": [
                {
                    "name": "web2",
                    "address": "web2:7001",
                    "reachable": True,
                    "role": "replica",
                    "epoch": "3.9f2c1a7b",
                    "last_seq": 42,
                },
                {
                    "name": "web1",
                    "address": "web1:7001",
                    "reachable": True,
                    "role": "primary",
                    "epoch": "3.9f2c1a7b",
                    "last_seq": 42,
                },
            ],
            "hint": "stop the primary first, or promote the member that is furthest; --force promotes all the same",
        },
    ),
    "too_large": Failure(
        meaning="something is over a limit. Send less, or raise the setting that `limit` names on all nodes.",
        message="5000 is over the limit max_key_bytes=4096",
        members={
            "limit": {
                "enum": [
                    "max_key_bytes",
                    "max_value_bytes",
                    "max_batch_bytes",
                    "max_batch_items",
                    "max_body_bytes",
                ],
                "description": "The setting.",
            },
            "max": {**_COUNT, "description": "Its value."},
            "sent": {**_COUNT, "description": "What came; of a body that was not read to its end, at least that."},
        },
        example={"limit": "max_key_bytes", "max": 4096, "sent": 5000},
    ),
    "internal": Failure(
        meaning="the node failed. Its log says why.",
        message="LevelDB found a damaged block",
        members={"cause": {"type": "string", "description": "The code of an error that is not the client's."}},
        optional=frozenset({"cause"}),
        example={"cause": "record_damaged"},
    ),
    "overloaded": _unavailable(
        "more waits to be written than the node takes, too many watch it, or too many are connected. Nothing was "
        "written; try again later.",
        "too many bytes are queued for commit; nothing was written",
        {
            "limit": {
                "enum": ["max_queued_bytes", "max_watchers", "max_connections"],
                "description": "What it has reached.",
            },
            "max": {**_COUNT, "description": "The most that it takes of that."},
            "queued": {**_COUNT, "description": "Of a write: what is queued, in bytes."},
            "sent": {**_COUNT, "description": "Of a write: what it would add, in bytes."},
        },
        frozenset({"queued", "sent"}),
        limit="max_queued_bytes",
        max=67108864,
        queued=67050112,
        sent=120000,
    ),
    "no_primary": _unavailable(
        "this replica does not reach its primary. Nothing was written; try again later, or through another node.",
        "the primary at web1:7001 cannot be reached; nothing was written",
        {"reason": {"type": ["string", "null"], "description": "How the last attempt ended."}},
        frozenset({"reason"}),
        reason="connection refused",
    ),
    "not_enough_replicas": _unavailable(
        "fewer replicas follow than `acks` asks for. Nothing was written; try again later, or ask for fewer.",
        "2 replicas were asked for, 1 follow this node; nothing was written",
        {
            "asked": {"type": ["integer", "null"], "minimum": 0, "description": "Null where a majority was asked for."},
            "following": _COUNT,
        },
        asked=2,
        following=1,
    ),
    "not_caught_up": _unavailable(
        "this node has not come so far yet. Try again later, or ask another node.",
        "seq 12 is not applied here yet",
        {
            "min_seq": {**_SEQ, "description": "What a read asked for."},
            "applied_seq": {**_SEQ, "description": "How far this node is."},
            "lag": {**_COUNT, "description": "Of a probe: entries that this node lacks."},
        },
        frozenset({"min_seq", "applied_seq", "lag"}),
        min_seq=12,
        applied_seq=8,
    ),
    "syncing": _unavailable(
        "this node's data are being replaced or rebuilt. Try again later, or ask another node.",
        "this node is taking over its primary's data; nothing was written",
    ),
    "not_primary": _unavailable(
        "this node is not the primary, or not any more. Nothing was done; ask the primary.",
        "web2 is a replica, its primary is at web1:7001",
    ),
    "not_replica": _unavailable(
        "this node is not a replica.",
        "this node is a primary",
    ),
    "draining": _unavailable(
        "this node is stopping. Nothing was written; ask another node.",
        "this node is stopping and takes no more writes; nothing was written",
    ),
    "replication_timeout": Failure(
        meaning="the write **is** durable on the primary, as entry `seq`, but was not where it was asked for within "
        "`ack_timeout`: on so many replicas, or applied on this one. It is not undone.",
        message="the write is durable on the primary, but 0 of 1 replicas hold it so far",
        members={
            "seq": _SEQ,
            "epoch": _EPOCH,
            "acks": {**_COUNT, "description": "Replicas that held it by then."},
            "asked": {**_COUNT, "description": "Replicas that were asked for."},
        },
        optional=frozenset({"acks", "asked"}),
        example={"seq": 13, "epoch": "3.9f2c1a7b", "acks": 0, "asked": 1},
    ),
    "outcome_unknown": Failure(
        meaning="the write may be durable or not. Read it back before you write again.",
        message="the write was sent to the primary, and no answer came: connection lost; read it back to be sure",
        members={"seq": _SEQ, "epoch": _EPOCH},
        optional=frozenset({"seq", "epoch"}),
    ),
    "storage_full": Failure(
        meaning="the disk is full. Nothing was written; reads go on, and writes resume when there is room.",
        message="the disk is full; nothing was written",
        example={"hint": "free some space; writes resume"},
    ),
}


def schema_name(code: str) -> str:
    """The name of the component that describes an error's answer."""
    return "".join(part.capitalize() for part in code.split("_")) + "Error"


def error_schemas() -> dict[str, Any]:
    """The components of all errors."""
    return {schema_name(code): _schema(code, failure) for code, failure in FAILURES.items()}


def error_examples() -> dict[str, Any]:
    """An example of each error, by its code."""
    return {
        code: {
            "summary": f"{STATUS_OF_CODE[code]}: {failure.message}",
            "value": {"error": {"code": code, "message": failure.message, **failure.example}},
        }
        for code, failure in FAILURES.items()
    }


def error_table() -> str:
    """All errors as a table, in Markdown."""
    rows = [f"| `{code}` | {STATUS_OF_CODE[code]} | {failure.meaning} |" for code, failure in FAILURES.items()]
    return "\n".join(["| code | status | meaning |", "|---|---|---|", *rows])


def _schema(code: str, failure: Failure) -> dict[str, Any]:
    members = {
        "code": {"const": code},
        "message": {"type": "string", "description": "For people. It may change; `code` does not."},
        **failure.members,
        "hint": {"type": "string", "description": "What to do about it."},
    }
    always = [name for name in members if name != "hint" and name not in failure.optional]
    return {
        "type": "object",
        "title": code,
        "description": failure.meaning,
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": always, "properties": members}},
    }
