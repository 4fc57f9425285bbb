"""The document as a whole."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import msgspec

from kvnode.node.config import SETTINGS, Config
from kvnode.node.rest.openapi import browser, data, operating
from kvnode.node.rest.openapi.failures import FAILURES, error_examples, error_schemas, error_table, schema_name
from kvnode.node.rest.openapi.headers import HEADERS
from kvnode.node.rest.openapi.operations import JSON
from kvnode.node.rest.openapi.parameters import parameters
from kvnode.node.rest.openapi.schemas import schemas
from kvnode.node.rest.openapi.shapes import ref
from kvnode.node.rest.openapi.status import status_schemas

_DESCRIPTION = """\
Any node of a cluster takes reads and writes.

### Requests

Bodies are JSON in UTF-8, whatever `Content-Type` says. Parameters and members of a body that are not described here
are errors, so that a typo does not pass silently. `HEAD` works wherever `GET` does.

### Consistency

A write is answered when it is durable on the primary; with `acks=N` or `acks=majority`, when replicas hold it durably
as well. A client that stays on one node reads what it wrote. One that moves to another node sends the `Kv-Seq` and
`Kv-Epoch` of its last answer along, as `min_seq` and `epoch`: then it sees no older state than it has seen before.

### Errors

An error is `{{"error": {{"code", "message", ...}}}}`. The code is for programs and never changes its meaning. With
status 503 nothing was done, and `Retry-After` says when to try again.

<details>
<summary>All codes</summary>

{errors}

</details>

A path that is described here answers any other method by 405 `method_not_allowed`, any other path is 404
`route_not_found`.

### Limits of this node

What is over one of them is answered by 413 `too_large`, which names it; what is over
`max_queued_bytes` by 503 `overloaded`; likewise, and then the connection is closed, any request on a connection over
`max_connections`, but for `/health`, `/ready`, `/primary`, `/replica`, `/status` and `/metrics`.

<details>
<summary>All limits</summary>

{limits}

</details>
"""

_TAGS = (
    (data.TAG, "Reading and writing."),
    (operating.TAG, "For operators, probes and load balancers."),
    (operating.CLUSTER_TAG, "Who is the primary, and who is a member."),
    (browser.TAG, "For browsers; they load nothing from elsewhere."),
)


def build_document(config: Config) -> dict[str, Any]:
    """The document of a node with these settings, as a JSON object."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvnode",
            "version": metadata.version("kvnode"),
            "summary": "A replicated, persistent, ordered key-value node.",
            "description": _DESCRIPTION.format(errors=error_table(), limits=_limit_table(config)),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This node"}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS],
        "paths": {
            **data.data_paths(config),
            **operating.operating_paths(),
            **operating.cluster_paths(),
            **browser.browser_paths(),
        },
        "components": {
            "schemas": schemas(config) | status_schemas() | error_schemas(),
            "parameters": parameters(config),
            "headers": HEADERS,
            "examples": error_examples(),
            "responses": {
                "MethodNotAllowed": _general("method_not_allowed"),
                "RouteNotFound": _general("route_not_found"),
            },
        },
    }


def encode_document(config: Config) -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(build_document(config))


def _general(code: str) -> dict[str, Any]:
    """An answer that belongs to no operation."""
    return {
        "description": FAILURES[code].meaning,
        "headers": {name: ref("headers", name) for name in FAILURES[code].headers},
        "content": {JSON: {"schema": ref("schemas", schema_name(code)), "examples": {code: ref("examples", code)}}},
    }


def _limit_table(config: Config) -> str:
    limits = [setting for setting in SETTINGS if setting.name.startswith("max_") and setting.name != "max_frame_bytes"]
    rows = [f"| `{each.name}` | {getattr(config, each.name)} | {each.help} |" for each in limits]
    return "\n".join(["| limit | value | meaning |", "|---|---|---|", *rows])
