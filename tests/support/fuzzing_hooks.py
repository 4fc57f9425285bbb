"""What Schemathesis cannot know from a schema. Loaded by its process; see `support.fuzzing`."""

from typing import Any

import schemathesis

#: Nobody wants to wait for an hour for what will not happen.
_LONGEST_WAIT_S = 0.05


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    query = case.query
    if "min_seq" in query:
        query.setdefault("wait", _LONGEST_WAIT_S)
    for name in ("wait", "ack_timeout"):
        if _is_long(query.get(name)):
            query[name] = _LONGEST_WAIT_S
    if case.meta is not None and case.meta.generation.mode.is_positive:
        _make_consistent(query)


def _is_long(value: Any) -> bool:
    """Whether it is a wait that the node would take, and too long for a test."""
    try:
        return _LONGEST_WAIT_S < float(value) <= 3600
    except (TypeError, ValueError):
        return False


def _make_consistent(query: dict[str, Any]) -> None:
    """Take away what contradicts: each parameter is right by its schema, but the description has more to say."""
    if "epoch" in query or "wait" in query:
        query.setdefault("min_seq", 1)
        query.setdefault("wait", _LONGEST_WAIT_S)
    if isinstance(epoch := query.get("epoch"), str):
        term, _, rest = epoch.partition(".")
        query["epoch"] = f"{int(term) % 2**32}.{rest}"
    if "prefix" in query:
        query.pop("start_key", None)
        query.pop("end_key", None)
    start, end = query.get("start_key"), query.get("end_key")
    if isinstance(start, str) and isinstance(end, str) and start.encode() > end.encode():
        query["start_key"], query["end_key"] = end, start
