"""What is in the bodies of requests, with the limits of the node that describes them, and of answers about data.

An object in a request has no members but these, a typo should not pass silently. One in an answer may get further
members in later versions: clients have to pass over those that they do not know.
"""

from __future__ import annotations

from typing import Any

from kvnode.node.config import Config
from kvnode.node.rest.openapi.shapes import COUNT, OK, ROLE, SEQ, TEXT, closed_object, list_of, object_of, ref, told


def schemas(config: Config) -> dict[str, Any]:
    """The components, by name: of data, and of the cluster's changes."""
    return _data_schemas(config) | _cluster_schemas()


def _data_schemas(config: Config) -> dict[str, Any]:
    put = closed_object({"key": ref("schemas", "Key"), "value": ref("schemas", "Value")})
    return {
        "Key": {
            "type": "string",
            "minLength": 1,
            "maxLength": config.max_key_bytes,
            "description": f"Any text but the empty one, of at most {config.max_key_bytes} bytes in UTF-8. Keys are "
            "ordered by these bytes.",
        },
        "Value": {
            "description": "Any JSON value. It comes back as it was sent, digit by digit. At most "
            f"{config.max_value_bytes} bytes as JSON, as it is sent.",
        },
        "Epoch": {
            "type": "string",
            # A term is 32 bits.
            "pattern": r"^(0|[1-9][0-9]{0,9})\.[0-9a-f]{8}$",
            "description": "One reign of one primary: its number, and a random part.",
            "examples": ["3.9f2c1a7b"],
        },
        "PutBody": put,
        "BatchBody": {
            "type": "array",
            "items": ref("schemas", "PutBody"),
            "minItems": 1,
            "maxItems": config.max_batch_items,
        },
        "DeleteBody": closed_object({"key": ref("schemas", "Key")}),
        "Item": object_of({"key": ref("schemas", "Key"), "value": ref("schemas", "Value")}),
        "Written": object_of({"status": OK, "key": ref("schemas", "Key"), "seq": told(SEQ, "Of the write's entry.")}),
        "BatchWritten": object_of(
            {
                "status": OK,
                "count": told({"type": "integer", "minimum": 1}, "Items that were sent."),
                "seq": told(SEQ, "Of the one entry of the whole batch."),
            }
        ),
        "Deleted": object_of(
            {
                "status": OK,
                "key": ref("schemas", "Key"),
                "deleted": told({"type": "boolean"}, "Whether the key was there."),
                "seq": told(SEQ, "Of the entry; of the last one applied where there was nothing to delete."),
            }
        ),
        "Range": object_of(
            {
                "items": list_of("Item", "In the order of their keys."),
                "count": told(COUNT, "Of these items."),
                "next_key": {
                    "type": ["string", "null"],
                    "description": "The first key that `limit` left out: the next page's `start_key`, or with "
                    "`reverse=true` its `end_key`. Null when nothing was left out.",
                },
            }
        ),
    }


def _cluster_schemas() -> dict[str, Any]:
    return {
        "PromoteBody": closed_object(
            {
                "force": {
                    "type": "boolean",
                    "default": False,
                    "description": "Also when the primary answers or a member is ahead, which loses writes.",
                }
            },
            optional=("force",),
        ),
        "ForgetBody": closed_object({"name": told(TEXT, "The member's name.")}),
        "SeenMember": object_of(
            {
                "name": told({"type": ["string", "null"]}, "Null where it is not known."),
                "address": told(TEXT, "Of its peer port."),
                "reachable": {"type": "boolean"},
                "role": told(ROLE, "If it is reachable."),
                "epoch": ref("schemas", "Epoch"),
                "last_seq": told(SEQ, "Of its last entry, if it is reachable."),
                "reason": told(TEXT, "Why it is not reachable."),
            },
            optional=("role", "epoch", "last_seq", "reason"),
            description="A member of the cluster as this node saw it just now.",
        ),
        "Promoted": object_of(
            {
                "status": OK,
                "name": told(TEXT, "Of this node."),
                "epoch": ref("schemas", "Epoch"),
                "last_seq": told(SEQ, "Of the last entry from before the new reign."),
                "members": list_of("SeenMember", "What was seen of the members, this node first."),
            }
        ),
        "Forgotten": object_of({"status": OK, "name": told(TEXT, "Of the member that was.")}),
    }
