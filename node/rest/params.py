"""What a request's target says: its path, its percent-encoded key, and its query parameters with their ranges.

Everything works on the target as it was sent. Paths are never normalised, so that any key can stand in one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from kvnode.node.api import Acks, KeyRange, ReadToken
from kvnode.node.errors import InvalidRequest, TooLarge
from kvnode.protocol.types import Epoch

#: Decoded parameters by name.
Query: TypeAlias = Mapping[str, str]

#: The parameters of each kind of request.
WRITE_PARAMETERS = frozenset({"acks", "ack_timeout"})
READ_PARAMETERS = frozenset({"min_seq", "epoch", "wait"})
RANGE_PARAMETERS = READ_PARAMETERS | {"start_key", "end_key", "prefix", "limit", "reverse"}
LAG_PARAMETERS = frozenset({"max_lag"})
NO_PARAMETERS: frozenset[str] = frozenset()

#: The longest that a client may ask to wait, in seconds.
MAX_WAIT_S = 3600.0

#: The most replicas that a write may ask for: a frame of the peer protocol can say no more.
MAX_ACKS = 0xFFFF_FFFF

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_COUNT = re.compile(r"[0-9]{1,20}")
#: Whatever programs print for a number of a sensible size: 2.5, 0.30000000000000004, 1e-07.
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,25})?([eE][+-]?[0-9]{1,3})?")
_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
#: How much of a client's text an error message repeats.
_SHOWN_CHARS = 100


def origin_form(target: str) -> str:
    """The path and query of a request target, which may be a whole URL (RFC 9112, section 3.2.2).

    Raises:
        InvalidRequest: it has a fragment, which belongs to clients alone.
    """
    if not target.startswith("/"):
        match = _ABSOLUTE.match(target)
        if match is not None:
            rest = target[match.end() :]
            target = rest if rest.startswith("/") else f"/{rest}"
    if "#" in target:
        raise InvalidRequest(None, "a '#' in the request target must be sent as %23")
    return target


def decode_key(text: str, name: str, max_key_bytes: int) -> bytes:
    """The key that stands percent-encoded in a path; the encoding is taken off exactly once.

    Args:
        text: the rest of the path as it was sent. A `/` or a `+` is a character like any other.
        name: what an error calls it.

    Raises:
        InvalidRequest: it is empty, no UTF-8, or has a `%` that begins no escape.
        TooLarge: it is longer than any key.
    """
    return _check_key(_percent_decode(text, name).encode(), name, max_key_bytes)


def parse_query(text: str, known: frozenset[str]) -> Query:
    """The parameters of a query string, in which a `+` means a space, as in a form.

    Raises:
        InvalidRequest: a parameter is unknown, stands there twice, or cannot be decoded.
    """
    query: dict[str, str] = {}
    for part in text.split("&"):
        if not part:
            continue
        sent_name, _, sent_value = part.partition("=")
        name = _percent_decode(sent_name.replace("+", " "), "query")
        if name not in known:
            shown = name[:_SHOWN_CHARS]
            takes = f"takes {', '.join(sorted(known))}" if known else "takes no parameters"
            raise InvalidRequest(shown, f"unknown query parameter {shown!a}; this route {takes}")
        if name in query:
            raise InvalidRequest(name, f"query parameter {name} is given more than once")
        query[name] = _percent_decode(sent_value.replace("+", " "), name)
    return query


def parse_acks(query: Query) -> Acks | None:
    """What a write asks of replicas; None when it says nothing.

    Raises:
        InvalidRequest: `acks` or `ack_timeout` is out of range.
    """
    if not query:
        return None
    timeout_s = _seconds(query, "ack_timeout", Acks().timeout_s)
    if query.get("acks") == "majority":
        return Acks(None, timeout_s)
    count = _count(query, "acks", "a number of replicas, or majority", MAX_ACKS)
    return Acks(count or 0, timeout_s)


def parse_read_token(query: Query) -> ReadToken | None:
    """What a read wants to see at least; None when it says nothing.

    Raises:
        InvalidRequest: `min_seq`, `epoch` or `wait` is malformed, or one of the latter stands alone.
    """
    seq = _count(query, "min_seq", "a seq")
    if seq is None:
        for name in ("epoch", "wait"):
            if name in query:
                raise InvalidRequest(name, f"{name} needs min_seq beside it")
        return None
    epoch = None
    if "epoch" in query:
        try:
            epoch = Epoch.parse(query["epoch"])
        except ValueError:
            raise InvalidRequest("epoch", "epoch must be an epoch as Kv-Epoch shows it, such as 3.9f2c1a7b") from None
    return ReadToken(seq, epoch, _seconds(query, "wait", ReadToken(0).wait_s))


def parse_range(query: Query, max_key_bytes: int) -> KeyRange:
    """The keys that a range read wants.

    Raises:
        InvalidRequest: a parameter is malformed, or two contradict each other.
        TooLarge: a bound is longer than any key.
    """
    first, last, prefix = (
        _check_key(query[name].encode(), name, max_key_bytes) if name in query else None
        for name in ("start_key", "end_key", "prefix")
    )
    limit = _count(query, "limit", "a number of items, at least 1")
    if limit == 0:
        raise InvalidRequest("limit", "limit must be at least 1")
    reverse = query.get("reverse", "false")
    if reverse not in ("true", "false"):
        raise InvalidRequest("reverse", "reverse must be true or false")
    is_reverse = reverse == "true"
    if first is not None and last is not None and first > last:
        raise InvalidRequest("start_key", "start_key is past end_key")
    if prefix is not None:
        paging, other = ("end_key", "start_key") if is_reverse else ("start_key", "end_key")
        if other in query:
            raise InvalidRequest(other, f"prefix can be combined with {paging} only (reverse={reverse})")
        bound = last if is_reverse else first
        if bound is not None and not bound.startswith(prefix):
            raise InvalidRequest(paging, f"{paging} must begin with prefix")
    return KeyRange(first, last, prefix or b"", limit, is_reverse)


def parse_max_lag(query: Query) -> int | None:
    """The largest lag in entries that a probe puts up with; None for any.

    Raises:
        InvalidRequest: `max_lag` is no whole number.
    """
    return _count(query, "max_lag", "a number of entries")


def _percent_decode(text: str, name: str) -> str:
    if "%" not in text and text.isascii():
        return text
    # The parser hands bytes that are no ASCII over as surrogates, where it lets them pass at all.
    sent = text.encode("utf-8", "surrogateescape")
    if _BAD_ESCAPE.search(sent):
        raise InvalidRequest(name, f"{name}: a '%' must be followed by two hexadecimal digits (send %25 for itself)")
    try:
        return unquote_to_bytes(sent).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(name, f"{name}: the percent-decoded bytes are not UTF-8") from None


def _check_key(key: bytes, name: str, max_key_bytes: int) -> bytes:
    if not key:
        raise InvalidRequest(name, f"{name} must not be empty")
    if len(key) > max_key_bytes:
        raise TooLarge("max_key_bytes", max_key_bytes, len(key))
    return key


def _count(query: Query, name: str, what: str, maximum: int = _U64_MAX) -> int | None:
    if name not in query:
        return None
    text = query[name]
    if _COUNT.fullmatch(text) is None or int(text) > maximum:
        raise InvalidRequest(name, f"{name} must be {what}, got {text[:_SHOWN_CHARS]!a}")
    return int(text)


def _seconds(query: Query, name: str, default: float) -> float:
    if name not in query:
        return default
    text = query[name]
    if _SECONDS.fullmatch(text) is None or float(text) > MAX_WAIT_S:
        raise InvalidRequest(
            name, f"{name} must be seconds from 0 to {MAX_WAIT_S:g}, such as 2.5; got {text[:_SHOWN_CHARS]!a}"
        )
    return float(text)
