"""What a node says of itself: in /status, and over and over, with what is new, in /events."""

from __future__ import annotations

from typing import Any

from kvnode.node.rest.openapi.shapes import (
    COUNT,
    FLAG,
    OK,
    ROLE,
    SECONDS,
    SEQ,
    TEXT,
    list_of,
    object_of,
    ref,
    told,
)
from kvnode.protocol.primary import ReplicaState

#: Members of /status that are not always there.
_SOMETIMES = ("fenced", "diverged", "sync")


def status_schemas() -> dict[str, Any]:
    """The components, by name."""
    return {
        "Ok": object_of({"status": OK}),
        "Status": object_of(_status(), optional=_SOMETIMES, description="A node's account of itself."),
        "Replica": _replica(),
        "PrimaryLink": _primary_link(),
        "Member": object_of({"name": TEXT, "address": told(TEXT, "Of its peer port; empty where it is not known.")}),
        "StatusEvent": object_of(
            _status() | _watched(),
            optional=_SOMETIMES,
            description="The data of an event `status`: GET /status, and more.",
        ),
        "ClusterNode": _cluster_node(),
        "EntriesEvent": object_of(
            {
                "entries": list_of("ShownEntry", "The newest, in order."),
                "left_out": told(COUNT, "Entries before these that are not shown."),
            },
            description="The data of an event `entries`.",
        ),
        "ShownEntry": object_of(
            {
                "seq": SEQ,
                "epoch": ref("schemas", "Epoch"),
                "time": told(COUNT, "By the primary's clock, in milliseconds since 1970, UTC."),
                "ops": list_of("ShownOperation", "The first of its operations."),
                "ops_left_out": told(COUNT, "Operations behind these that are not shown."),
            }
        ),
        "ShownOperation": object_of(
            {
                "op": {"enum": ["put", "delete"]},
                "key": told(TEXT, "Or its beginning."),
                "key_bytes": told(COUNT, "If only its beginning is shown: its whole size."),
                "value": told(TEXT, "Of a put: its JSON as a text, or the beginning of that."),
                "value_bytes": told(COUNT, "If only its beginning is shown: its whole size."),
            },
            optional=("key_bytes", "value", "value_bytes"),
        ),
    }


def _status() -> dict[str, Any]:
    """The members of /status."""
    return {
        "name": told(TEXT, "Of this node."),
        "role": ROLE,
        "cluster_id": told(TEXT, "The same on all nodes of a cluster, and on no other."),
        "epoch": ref("schemas", "Epoch"),
        "last_seq": told(SEQ, "Of the last entry in the log."),
        "durable_seq": told(SEQ, "All entries up to this one survive a loss of power."),
        "applied_seq": told(SEQ, "Reads see all entries up to this one."),
        "uptime_s": SECONDS,
        "version": told(TEXT, "Of the program."),
        "wal": object_of(
            {
                "first_seq": told(SEQ, "Where it begins: a replica that needs older ones takes a full sync."),
                "last_seq": SEQ,
                "segments": told(COUNT, "Its files."),
                "bytes": COUNT,
            },
            description="The log.",
        ),
        "cache": object_of(
            {"entries": COUNT, "bytes": COUNT, "hits": COUNT, "misses": COUNT},
            description="The cache of records; hits and misses since the process started.",
        ),
        "replicas": list_of("Replica", "Of a primary: the other members, connected or not."),
        "primary": {
            "anyOf": [ref("schemas", "PrimaryLink"), {"type": "null"}],
            "description": "Of a replica: how it follows its primary. Null on a primary.",
        },
        "full_syncs_received": told(COUNT, "Since the process started."),
        "full_syncs_sent": told(COUNT, "Since the process started."),
        "members": list_of("Member", "All of the cluster."),
        "fenced": told(TEXT, "Only if it takes no writes though it was the primary: why, a later one reigns."),
        "diverged": {
            "type": "array",
            "items": TEXT,
            "description": "Only if there are any: copies, below `diverged/` in its directory, of entries that "
            "this node had and its primary did not.",
        },
        "sync": object_of(
            {
                "state": {"enum": ["receiving", "replaying"]},
                "keys": told(COUNT, "That have come so far."),
            },
            description="Only while its data are being replaced by the primary's.",
        ),
    }


def _watched() -> dict[str, Any]:
    """What events tell besides."""
    return {
        "time_ms": told(COUNT, "When this was so, in milliseconds since 1970, UTC."),
        "monotonic_s": told(SECONDS, "The same on a clock that nobody sets, for rates."),
        "counters": object_of(
            {
                "writes": told(COUNT, "Ordered here, those without effect included."),
                "entries": told(COUNT, "Appended to this node's log."),
                "reads": told(COUNT, "Of single keys, found or not."),
                "range_items": told(COUNT, "That range reads were given."),
                "cache_hits": COUNT,
                "cache_misses": COUNT,
            },
            description="Counts since the process started.",
        ),
        "not_ready": {
            "anyOf": [object_of({"code": TEXT, "message": TEXT}), {"type": "null"}],
            "description": "What GET /ready would say; null if it is ready.",
        },
        "cluster": object_of(
            {
                "nodes": list_of("ClusterNode", "The primary first."),
                "source": {
                    "enum": ["self", "primary", "asking"],
                    "description": "Who knows that. Asking: this node, a replica that has just asked its primary; soon "
                    "it knows more.",
                },
                "reason": told(TEXT, "Only if this node does not know better: why."),
            },
            optional=("reason",),
            description="All nodes, as far as this one can know.",
        ),
    }


def _cluster_node() -> dict[str, Any]:
    return object_of(
        {
            "name": TEXT,
            "address": told(TEXT, "Of its peer port; empty where it is not known."),
            "role": {
                "enum": ["primary", "replica", "member"],
                "description": "A member: which of the two, is unknown.",
            },
            "state": {
                "enum": [
                    *(str(state) for state in ReplicaState),
                    "reigning",
                    "superseded",
                    "following",
                    "asking",
                    "no_answer",
                    "unknown",
                ],
                "description": "Asking: the primary was asked for it, and has had no time to answer.",
            },
            "is_self": told(FLAG, "Whether it is the node that tells this."),
            "applied_seq": SEQ,
            "lag_entries": COUNT,
            "lag_s": {"type": ["number", "null"], "minimum": 0},
            "retention": {"enum": ["reserved", "extended", "lost"]},
            "synced_keys": COUNT,
        },
        optional=("applied_seq", "lag_entries", "lag_s", "retention", "synced_keys"),
    )


def _replica() -> dict[str, Any]:
    return object_of(
        {
            "name": TEXT,
            "address": told(TEXT, "Of its peer port; empty where it is not known."),
            "state": {"enum": [str(state) for state in ReplicaState]},
            "sent_seq": told(SEQ, "The last entry that was sent to it."),
            "acked_seq": told(SEQ, "It holds all entries up to this one durably."),
            "applied_seq": told(SEQ, "Its reads see all entries up to this one."),
            "lag_entries": told(COUNT, "That it does not hold durably yet."),
            "lag_s": told({"type": ["number", "null"], "minimum": 0}, "For how long. Null when disconnected."),
            "retention": {
                "enum": ["reserved", "extended", "lost"],
                "description": "Whether the log still has all that it needs: within what is kept anyway, kept for "
                "its sake, or not, so that it will take a full sync.",
            },
            "synced_keys": told(COUNT, "Only during a full sync: those that were sent so far."),
        },
        optional=("synced_keys",),
    )


def _primary_link() -> dict[str, Any]:
    return object_of(
        {
            "address": told(TEXT, "Of the primary's peer port."),
            "connected": {"type": "boolean"},
            "lag_entries": told(COUNT, "That this node has not applied yet, as far as it knows."),
            "lag_s": told(SECONDS, "For how long."),
            "error": object_of(
                {"code": TEXT, "message": TEXT},
                description="Only while disconnected: what the last attempt ended with.",
            ),
        },
        optional=("error",),
    )
