"""Errors as HTTP answers: the one table from code to status, and the JSON object of every error."""

from __future__ import annotations

from typing import Any

import msgspec

from kvnode.node.errors import CallerError, StorageFull, Unavailable, Unresolved
from kvnode.protocol.errors import KvError

#: The HTTP status of every code that REST answers with. Codes are for ever; DESIGN.md, section 7, explains them.
STATUS_OF_CODE = {
    "invalid_json": 400,
    "invalid_request": 400,
    "cross_origin": 403,
    "key_not_found": 404,
    "route_not_found": 404,
    "member_not_found": 404,
    "method_not_allowed": 405,
    "history_lost": 409,
    "member_connected": 409,
    "already_primary": 409,
    "promotion_refused": 409,
    "too_large": 413,
    "internal": 500,
    "overloaded": 503,
    "no_primary": 503,
    "not_enough_replicas": 503,
    "not_caught_up": 503,
    "syncing": 503,
    "not_primary": 503,
    "not_replica": 503,
    "draining": 503,
    "replication_timeout": 504,
    "outcome_unknown": 504,
    "storage_full": 507,
}

#: What REST tells a client by its own code. Every other error is the node's own trouble: `internal`.
ANSWERABLE = (CallerError, Unavailable, Unresolved, StorageFull)


class Internal(KvError):
    """The node failed at something that is not the client's fault; what went wrong is in the node's log."""

    code = "internal"


def answerable(error: Exception) -> KvError:
    """The error as a client may see it: itself, or an `Internal` in its place.

    An `Internal` made of an expected error (a damaged record, say) repeats its message and names its code as `cause`;
    one made of a bug says nothing of it.
    """
    if isinstance(error, ANSWERABLE) and error.code in STATUS_OF_CODE:
        return error
    if isinstance(error, KvError):
        return Internal(error.message, hint=error.hint, cause=error.code)
    return Internal("the node failed to answer this request; its log says why")


def error_body(error: KvError) -> bytes:
    """``{"error": {"code", "message", ...the error's fields, "hint" if it has one}}``."""
    members: dict[str, Any] = {"code": error.code, "message": error.message, **error.fields}
    if error.hint is not None:
        members["hint"] = error.hint
    try:
        return msgspec.json.encode({"error": members}, enc_hook=str)
    except UnicodeEncodeError:
        # A text that came from elsewhere holds a lone surrogate.
        shown = {name: ascii(value) if isinstance(value, str) else value for name, value in members.items()}
        return msgspec.json.encode({"error": shown}, enc_hook=str)
