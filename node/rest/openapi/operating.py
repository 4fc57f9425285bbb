"""The routes for operators, and those of the cluster: status, probes, metrics, events, promote, forget."""

from __future__ import annotations

from kvnode.node.rest.openapi.operations import BODY_ERRORS, Json, answer, json_content, operation, with_head

TAG = "operating"
CLUSTER_TAG = "cluster"

_OK = {"status": "OK"}

_STATUS_EXAMPLES = {
    "primary": (
        "A primary with one replica",
        {
            "name": "web1",
            "role": "primary",
            "cluster_id": "5c1f8f0f5d0a4f0f9b4c0a3f3e6b7d21",
            "epoch": "3.9f2c1a7b",
            "last_seq": 42,
            "durable_seq": 42,
            "applied_seq": 42,
            "uptime_s": 86.204,
            "version": "0.1.0",
            "wal": {"first_seq": 1, "last_seq": 42, "segments": 1, "bytes": 5120},
            "cache": {"entries": 40, "bytes": 9216, "hits": 310, "misses": 12},
            "replicas": [
                {
                    "name": "web2",
                    "address": "web2:7001",
                    "state": "streaming",
                    "sent_seq": 42,
                    "acked_seq": 42,
                    "applied_seq": 42,
                    "lag_entries": 0,
                    "lag_s": 0.0,
                    "retention": "reserved",
                }
            ],
            "primary": None,
            "full_syncs_received": 0,
            "full_syncs_sent": 0,
            "members": [{"name": "web1", "address": "web1:7001"}, {"name": "web2", "address": "web2:7001"}],
        },
    ),
    "replica": (
        "Its replica",
        {
            "name": "web2",
            "role": "replica",
            "cluster_id": "5c1f8f0f5d0a4f0f9b4c0a3f3e6b7d21",
            "epoch": "3.9f2c1a7b",
            "last_seq": 42,
            "durable_seq": 42,
            "applied_seq": 42,
            "uptime_s": 80.117,
            "version": "0.1.0",
            "wal": {"first_seq": 1, "last_seq": 42, "segments": 1, "bytes": 5120},
            "cache": {"entries": 0, "bytes": 0, "hits": 0, "misses": 3},
            "replicas": [],
            "primary": {"address": "web1:7001", "connected": True, "lag_entries": 0, "lag_s": 0.0},
            "full_syncs_received": 0,
            "full_syncs_sent": 0,
            "members": [{"name": "web1", "address": "web1:7001"}, {"name": "web2", "address": "web2:7001"}],
        },
    ),
}

_METRICS_EXAMPLE = (
    "# HELP kvnode_wal_last_seq The last entry in the log.\n"
    "# TYPE kvnode_wal_last_seq gauge\n"
    "kvnode_wal_last_seq 42.0\n"
)

_EVENTS_EXAMPLE = (
    "retry: 1000\n\n"
    "event: entries\n"
    "id: 3.9f2c1a7b-1\n"
    'data: {"entries":[{"seq":1,"epoch":"3.9f2c1a7b","time":1764100000000,"ops":[{"op":"put","key":"fruit/apple",'
    '"value":"\\"red\\""}],"ops_left_out":0}],"left_out":0}\n\n'
)

_SEEN = [
    {
        "name": "web2",
        "address": "web2:7001",
        "reachable": True,
        "role": "replica",
        "epoch": "3.9f2c1a7b",
        "last_seq": 42,
    },
    {"name": "web1", "address": "web1:7001", "reachable": False, "reason": "connection refused"},
]


def operating_paths() -> Json:
    """The path items."""
    return {
        "/status": with_head(_status()),
        "/health": with_head(
            _probe("health", "Does the node answer?", "Whether the process answers at all. For liveness probes.", ())
        ),
        "/ready": with_head(
            _probe(
                "ready",
                "May it be sent traffic?",
                "A replica whose primary is away is ready, as its reads go on, unless `max_lag` is given. For "
                "readiness probes and load balancers.",
                ("syncing", "no_primary", "not_caught_up", "draining"),
                "max_lag",
            )
        ),
        "/primary": with_head(
            _probe(
                "primary",
                "Is it the primary?",
                "Whether it is the primary, and ready. For load balancers that send writes to the primary; it is not "
                "needed, as any node takes them.",
                ("not_primary", "syncing", "draining"),
            )
        ),
        "/replica": with_head(
            _probe(
                "replica",
                "Is it a replica?",
                "Whether it is a replica, and ready. For load balancers that keep reads away from the primary.",
                ("not_replica", "syncing", "no_primary", "not_caught_up", "draining"),
                "max_lag",
            )
        ),
        "/metrics": with_head(_metrics()),
        "/events": with_head(_events()),
    }


def cluster_paths() -> Json:
    """The path items."""
    return {"/cluster/promote": {"post": _promote()}, "/cluster/forget": {"post": _forget()}}


def _status() -> Json:
    return operation(
        "status",
        TAG,
        "How the node is",
        "Its role, how far its log, its data and its replicas are, and what it has seen go wrong.",
        answers={"200": answer("The node's account of itself.", json_content("Status", _STATUS_EXAMPLES))},
    )


def _probe(name: str, summary: str, description: str, errors: tuple[str, ...], *parameters: str) -> Json:
    return operation(
        name,
        TAG,
        summary,
        description,
        parameters=parameters,
        answers={"200": answer("Yes.", json_content("Ok", {"yes": ("Yes", _OK)}))},
        errors=errors,
    )


def _metrics() -> Json:
    return operation(
        "metrics",
        TAG,
        "Metrics for Prometheus",
        "Counters, gauges and histograms in Prometheus' text format, or as OpenMetrics where `Accept` asks for that.",
        answers={
            "200": answer(
                "The metrics.",
                {
                    media_type: {
                        "schema": {"type": "string"},
                        "examples": {"metrics": {"summary": "An excerpt", "value": _METRICS_EXAMPLE + end}},
                    }
                    for media_type, end in (("text/plain", ""), ("application/openmetrics-text", "# EOF\n"))
                },
                headers=("Vary",),
            )
        },
    )


def _events() -> Json:
    return operation(
        "events",
        TAG,
        "What happens, as it happens",
        "Server-sent events, for as long as the client stays: `entries` with what was written, and about once a second "
        "`status`. Their data are one line of JSON each, of the schemas `EntriesEvent` and `StatusEvent`. The id of an "
        "event is the last entry that was told of; a browser that comes back sends it as `Last-Event-ID`, and gets "
        "what came meanwhile, as far as it is still in memory. It is for showing: of many entries only the newest are "
        "told, of large ones the beginning. `curl -N` shows them as they come.",
        parameters=("Last-Event-ID",),
        answers={
            "200": answer(
                "The events.",
                {
                    "text/event-stream": {
                        "schema": {"type": "string"},
                        "examples": {"put": {"summary": "One put, and no status yet", "value": _EVENTS_EXAMPLE}},
                    }
                },
                headers=("Cache-Control",),
            )
        },
        errors=("overloaded", "draining"),
    )


def _promote() -> Json:
    return operation(
        "promote",
        CLUSTER_TAG,
        "Make this node the primary",
        "For when the primary will not return. A new epoch begins; writes that this node does not have are given up. "
        "It is refused while the primary answers, or while a member that answers is ahead, unless `force` is true. The "
        "body may be left out.",
        body={
            "required": False,
            "content": json_content(
                "PromoteBody",
                {"safe": ("Only if nothing is lost", {}), "force": ("In any case", {"force": True})},
            ),
        },
        answers={
            "200": answer(
                "It is the primary.",
                json_content(
                    "Promoted",
                    {
                        "promoted": (
                            "The old primary does not answer",
                            {
                                "status": "OK",
                                "name": "web2",
                                "epoch": "4.c0a81e55",
                                "last_seq": 42,
                                "members": _SEEN,
                            },
                        )
                    },
                ),
            )
        },
        errors=(*BODY_ERRORS, "already_primary", "promotion_refused", "syncing"),
    )


def _forget() -> Json:
    return operation(
        "forget",
        CLUSTER_TAG,
        "Let a member go",
        "For a replica that will not return: it does not count for majorities any more. Only the primary can do it, "
        "and only while that member is not connected.",
        body={"required": True, "content": json_content("ForgetBody", {"web3": ("A replica", {"name": "web3"})})},
        answers={
            "200": answer(
                "It is no member any more.",
                json_content("Forgotten", {"web3": ("A replica", {"status": "OK", "name": "web3"})}),
            )
        },
        errors=(*BODY_ERRORS, "member_not_found", "member_connected", "not_primary"),
    )
