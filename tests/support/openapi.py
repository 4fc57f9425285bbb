"""What tests do with an OpenAPI document: walk through it, check values against it, make it stricter."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from kvnode.node.config import Config
from kvnode.node.rest.openapi.document import build_document

METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")


class Operation(NamedTuple):
    """An operation where it stands in a document."""

    path: str
    method: str
    described: dict[str, Any]

    @property
    def name(self) -> str:
        """Its operationId."""
        return str(self.described["operationId"])


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    """All operations, in order."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield Operation(path, method, item[method])


def resolve(document: dict[str, Any], node: Any) -> Any:
    """What a reference refers to; anything else as it is."""
    while isinstance(node, dict) and "$ref" in node:
        found: Any = document
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        node = found
    return node


def references(node: Any) -> Iterator[str]:
    """The targets of all references below a node."""
    for each in objects(node):
        if isinstance(each.get("$ref"), str):
            yield each["$ref"]


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """All objects below a node, itself among them."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """The same document, by which no object of an answer has members that are not described.

    Clients have to put up with more, so the document itself does not say that.
    """
    closed = copy.deepcopy(document)
    for schema in closed["components"]["schemas"].values():
        for each in objects(schema):
            if isinstance(each.get("properties"), dict):
                each.setdefault("additionalProperties", False)
    return closed


@functools.cache
def _status_validator() -> Draft202012Validator:
    components = strict(build_document(Config()))["components"]
    return Draft202012Validator({"$ref": "#/components/schemas/Status", "components": components})


def check_status(status: dict[str, Any]) -> None:
    """Check that a node's status is as the document says, whatever the node is going through.

    Raises:
        AssertionError: it is not.
    """
    found = [f"{error.json_path}: {error.message}" for error in _status_validator().iter_errors(status)]
    assert not found, f"{found} in {status}"


def problems(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    """What is wrong with a value by a schema of the document."""
    validator = Draft202012Validator({**schema, "components": document["components"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
