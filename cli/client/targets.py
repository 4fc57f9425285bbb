"""The targets of requests: paths with their keys, and queries, escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias
from urllib.parse import quote, urlencode

from kvnode.cli.client.results import RangeQuery
from kvnode.protocol.types import Position

#: How many replicas must hold a write durably before it is answered, besides the primary.
Acks: TypeAlias = int | Literal["majority"]


def read_target(key: str, token: Position | None) -> str:
    """Of a point read that sees at least the entry at `token`."""
    # `.` and `..` alone are steps in a path, so they need an escape too.
    segment = quote(key, safe="") if key.strip(".") else key.replace(".", "%2E")
    return _with_query(f"/read/{segment}", token, {})


def range_target(query: RangeQuery, token: Position | None) -> str:
    """Of a range read that sees at least the entry at `token`."""
    return _with_query("/readrange", token, query.parameters())


def write_target(path: str, acks: Acks | None, ack_timeout_s: float | None) -> str:
    """Of a write that so many replicas are to hold."""
    parameters = {} if acks is None else {"acks": str(acks)}
    if ack_timeout_s is not None:
        parameters["ack_timeout"] = f"{ack_timeout_s:.3f}"
    return _with_query(path, None, parameters)


def _with_query(path: str, token: Position | None, parameters: Mapping[str, str]) -> str:
    parts = [f"min_seq={token.seq}", f"epoch={token.epoch}"] if token is not None and token.seq else []
    if parameters:
        parts.append(urlencode(parameters, quote_via=quote, safe=""))
    return f"{path}?{'&'.join(parts)}" if parts else path
