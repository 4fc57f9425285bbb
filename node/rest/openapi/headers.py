"""The headers of answers."""

from __future__ import annotations

from typing import Any

_SEQ = {"type": "integer", "minimum": 0}


def _header(description: str, schema: dict[str, Any], example: Any, *, required: bool = True) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema, "example": example}


#: By name.
HEADERS = {
    "Kv-Seq": _header(
        "Of a write, the seq of its entry. Of a read, the last entry that it saw: what a later read has to ask for, "
        "as `min_seq`, to see no less.",
        _SEQ,
        3,
    ),
    "Kv-Epoch": _header(
        "The reign in which that entry was ordered. (epoch, seq) names an entry for ever; after a promotion a seq "
        "alone does not.",
        {"$ref": "#/components/schemas/Epoch"},
        "3.9f2c1a7b",
    ),
    "ETag": _header(
        'The version of what was sent, for `If-None-Match`. Of a record it is `"<epoch>-<seq>"` of the entry that '
        "wrote it.",
        {"type": "string", "pattern": '^"[!#-~]+"$'},
        '"3.9f2c1a7b-1"',
    ),
    "Retry-After": _header("Seconds after which to try again.", {"type": "integer", "minimum": 1}, 1),
    "Allow": _header("The methods that the path has.", {"type": "string"}, "POST"),
    "Kv-Next-Key": _header(
        "With `limit`, in the form of one item a line: the first key that was left out, percent-encoded. It is not "
        "there when nothing was left out. An answer that is streamed, because it is long, has it in its trailer "
        "section.",
        {"type": "string"},
        "fruit%2Fcherry",
        required=False,
    ),
    "Vary": _header("The header of the request that the answer depends on.", {"type": "string"}, "Accept"),
    "Cache-Control": _header("What a browser may keep.", {"type": "string"}, "no-cache"),
    "Content-Security-Policy": _header(
        "What a page may load, and who may frame it: nothing from elsewhere, and nobody.",
        {"type": "string"},
        "default-src 'none'; script-src 'self'",
    ),
    "X-Content-Type-Options": _header("A browser is not to guess types.", {"const": "nosniff"}, "nosniff"),
    "Referrer-Policy": _header("A page does not say elsewhere where it is.", {"const": "no-referrer"}, "no-referrer"),
    "Content-Encoding": _header(
        "`gzip`, where the request's `Accept-Encoding` takes it.", {"const": "gzip"}, "gzip", required=False
    ),
}
