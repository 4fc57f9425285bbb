"""What nodes answer, decoded; whatever is no node's answer is a `BadAnswer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from kvnode.cli.client.jsonvalues import JsonText
from kvnode.cli.client.results import RangeItem, Record
from kvnode.cli.errors import BadAnswer, HistoryLost, ServerError
from kvnode.cli.jsontext import parse_item
from kvnode.protocol.types import Epoch, Position, Seq

_T = TypeVar("_T")

#: What to do about an error whose answer does not say it.
_HINTS = {
    "history_lost": "an entry that this client wrote or read is gone, as after the promotion of a replica that lacked "
    "it; check what depends on it, then call forget_position() to go on",
    "key_not_found": "`kvnode range --prefix ...` shows which keys there are",
    "method_not_allowed": "is the node older than this client? `kvnode status` shows its version",
    "route_not_found": "is the path of the URL right, if it has one? is the node older than this client? `kvnode "
    "status` shows its version",
    "too_large": "split it, or raise the node's limit: `kvnode start --help` lists them",
    "draining": "the node is stopping: try another one, or wait until it is back",
    "no_primary": "is the primary running? if it will not come back, `kvnode promote` makes a replica the primary",
    "not_caught_up": "the node lags behind: wait longer, or ask another one; `kvnode status` shows its lag",
    "not_enough_replicas": "`kvnode status` on the primary shows the replicas; ask for fewer acks, or wait",
    "not_primary": "`kvnode status` shows where its primary is",
    "overloaded": "wait a little, and have fewer requests in flight",
    "syncing": "the node is taking over its primary's data: try another one, or wait",
    "replication_timeout": "do not send it again: it is written; `kvnode status` on the primary shows the replicas",
    "outcome_unknown": "read it back to find out",
    "storage_full": "free space on the disk of the primary; reads go on meanwhile",
    "internal": "the node's log says what happened",
}


class _WriteAnswer(msgspec.Struct):
    seq: int


class _DeleteAnswer(msgspec.Struct):
    seq: int
    deleted: bool


class _ErrorAnswer(msgspec.Struct):
    error: dict[str, Any]


_NOT_KVNODE_HINT = "is this a node's REST address, not its peer port or another service?"
_PROXY_HINT = "a proxy seems to answer in place of a node: is the node behind it running, and does it answer in time?"

#: What a proxy says of itself that reaches nobody behind it.
_OF_PROXIES = frozenset({502, 503, 504})


def not_kvnode(what: str, url: str | None = None, *, hint: str = _NOT_KVNODE_HINT) -> BadAnswer:
    """The error for an answer that no node gives."""
    return BadAnswer(what, hint=hint, url=url)


def read_answer(url: str, answer: bytes, decode: Callable[[bytes], _T]) -> _T:
    """What `decode` makes of an answer.

    Raises:
        BadAnswer: it raises ValueError.
    """
    try:
        return decode(answer)
    except (ValueError, RecursionError) as error:
        raise not_kvnode(f"{url}: an answer that cannot be read: {error}", url) from error


def decode_written(url: str, answer: bytes) -> Seq:
    """The seq of a put or a batch."""
    return read_answer(url, answer, lambda text: msgspec.json.decode(text, type=_WriteAnswer)).seq


def decode_deleted(url: str, answer: bytes) -> tuple[bool, Seq]:
    """Whether a delete found its key, and its seq."""
    decoded = read_answer(url, answer, lambda text: msgspec.json.decode(text, type=_DeleteAnswer))
    return decoded.deleted, decoded.seq


def decode_object(url: str, answer: bytes) -> dict[str, Any]:
    """The members of a JSON object."""
    return read_answer(url, answer, lambda text: msgspec.json.decode(text, type=dict[str, Any]))


def decode_record(url: str, answer: bytes, headers: Mapping[str, str]) -> Record:
    """The record of a point read."""
    text = read_answer(url, answer, parse_item).value
    epoch, _, seq = headers.get("ETag", "").strip('"').rpartition("-")
    try:
        version = Position(Epoch.parse(epoch), int(seq))
    except ValueError as error:
        raise not_kvnode(f"{url}: a value without the ETag of its version", url) from error
    return Record(JsonText.trusted(text), version, position_of(url, headers))


def decode_line(url: str, line: bytes) -> RangeItem:
    """An item of a range, which is one line."""
    item = read_answer(url, line, parse_item)
    return RangeItem(item.key, JsonText.trusted(item.value))


def position_of(url: str, headers: Mapping[str, str]) -> Position:
    """Where the answering node stood, of a write its own position."""
    try:
        return Position(Epoch.parse(headers["Kv-Epoch"]), int(headers["Kv-Seq"]))
    except (KeyError, ValueError) as error:
        raise not_kvnode(f"{url}: an answer without Kv-Seq and Kv-Epoch", url) from error


def error_of_answer(url: str, status: int, headers: Mapping[str, str], answer: bytes) -> ServerError | BadAnswer:
    """The error that an answer other than 200 stands for."""
    try:
        fields = msgspec.json.decode(answer, type=_ErrorAnswer).error
        code, message = str(fields.pop("code")), str(fields.pop("message"))
    except (msgspec.DecodeError, RecursionError, KeyError):
        return _foreign(url, status, headers)
    position = _position_told(code, fields, headers)
    return server_error(url, status, code, message, fields, retry_after_s=_retry_after_s(headers), position=position)


def _foreign(url: str, status: int, headers: Mapping[str, str]) -> BadAnswer:
    """The error for an error in no form of a node's."""
    if 300 <= status < 400 and "Location" in headers:
        return not_kvnode(f"{url} answered HTTP {status} and points to {headers['Location']}", url)
    hint = _PROXY_HINT if status in _OF_PROXIES else _NOT_KVNODE_HINT
    return not_kvnode(f"{url} answered HTTP {status} in a form of its own", url, hint=hint)


def server_error(
    url: str,
    status: int,
    code: str,
    message: str,
    fields: dict[str, Any],
    *,
    retry_after_s: float | None = None,
    position: Position | None = None,
) -> ServerError:
    """The error for what a node answered; without a hint of the node's, with one of this client's.

    Args:
        fields: the other members of the error object.
    """
    hint = fields.pop("hint", None)
    kind = HistoryLost if code == "history_lost" else ServerError
    return kind(
        status,
        code,
        message,
        fields,
        hint=_HINTS.get(code) if hint is None else str(hint),
        retry_after_s=retry_after_s,
        url=url,
        position=position,
    )


def _position_told(code: str, fields: Mapping[str, Any], headers: Mapping[str, str]) -> Position | None:
    match code:
        case "replication_timeout":
            epoch, seq = fields.get("epoch"), fields.get("seq")
        case "key_not_found":
            epoch, seq = headers.get("Kv-Epoch"), headers.get("Kv-Seq")
        case _:
            return None
    try:
        return Position(Epoch.parse(str(epoch)), int(str(seq)))
    except ValueError:
        return None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    # The other form that HTTP allows, a date, is none that a node sends.
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
