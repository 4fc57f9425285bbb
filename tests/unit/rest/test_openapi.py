"""The OpenAPI document against the code that it describes: routes, parameters, errors, limits; and its examples."""

import ast
import gzip
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from kvnode.node import errors
from kvnode.node.config import Config
from kvnode.node.errors import InvalidRequest
from kvnode.node.rest.errors import STATUS_OF_CODE, Internal, error_body
from kvnode.node.rest.openapi.data import WALKTHROUGH, Step
from kvnode.node.rest.openapi.document import build_document
from kvnode.node.rest.openapi.failures import FAILURES, schema_name
from kvnode.protocol.errors import KvError
from support.openapi import METHODS, Operation, objects, operations, problems, references, resolve, strict
from support.project import modules
from support.rest_rig import MakeRig, RestRig

DOCUMENT = build_document(Config())
STRICT = strict(DOCUMENT)
OPERATIONS = list(operations(DOCUMENT))

#: Headers that every answer may have, by HTTP itself.
_GENERAL_HEADERS = {"server", "date", "content-type", "content-length", "transfer-encoding", "trailer", "connection"}
#: Those that keep a browser from doing harm with what it gets.
_PROTECTING_HEADERS = {"content-security-policy", "x-content-type-options", "referrer-policy"}
#: Proxies of one kind ask for it.
_PROXY_HEADERS = {"x-accel-buffering"}


class Example(NamedTuple):
    """A value in the document, and the schema that it has to follow."""

    place: str
    schema: dict[str, Any]
    value: Any


def examples(document: dict[str, Any]) -> Iterator[Example]:
    """All examples of bodies, parameters, headers and errors."""
    for operation in operations(document):
        bodies = {"request": operation.described.get("requestBody", {}), **operation.described["responses"]}
        for place, body in bodies.items():
            for media_type, content in body.get("content", {}).items():
                for name, example in content.get("examples", {}).items():
                    value = resolve(document, example)["value"]
                    yield Example(f"{operation.name} {place} {media_type} {name}", content["schema"], value)
    for kind in ("parameters", "headers"):
        for name, described in document["components"][kind].items():
            if "example" in described:
                yield Example(f"{kind} {name}", described["schema"], described["example"])
    for code, example in document["components"]["examples"].items():
        schema = {"$ref": f"#/components/schemas/{schema_name(code)}"}
        yield Example(f"error {code}", schema, example["value"])


# ---- the document in itself --------------------------------------------------------------------------------------


def test_it_is_valid() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_the_validator_finds_faults() -> None:
    broken = {**DOCUMENT, "paths": {"/x": {"get": {"responses": {"200": {}}}}}}
    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


def test_every_component_is_there_and_is_used() -> None:
    # What an event holds is named in a text: a stream has no schema of its own.
    used = {*references(DOCUMENT), "#/components/schemas/StatusEvent", "#/components/schemas/EntriesEvent"}
    there = {
        f"#/components/{kind}/{name}"
        for kind, components in DOCUMENT["components"].items()
        if kind != "responses"
        for name in components
    }
    assert used == there


def test_every_operation_says_what_it_is() -> None:
    tags = [tag["name"] for tag in DOCUMENT["tags"]]
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    for operation in OPERATIONS:
        assert operation.described["tags"][0] in tags
        assert operation.described["summary"]
        assert operation.described["description"].endswith(".")
        assert all(resolve(DOCUMENT, each)["description"] for each in operation.described.get("parameters", ()))
        assert all(answer["description"] for answer in operation.described["responses"].values())


def test_every_body_has_an_example() -> None:
    """But for those of pages and their files."""
    bare = [
        (operation.name, place)
        for operation in OPERATIONS
        for place, body in (("request", operation.described.get("requestBody", {})), *_answers(operation))
        for content in body.get("content", {}).values()
        if not content.get("examples")
    ]
    assert bare == [(name, "200") for name in ("dashboard", "docs", "openapi", "asset")]


@pytest.mark.parametrize("example", list(examples(STRICT)), ids=lambda example: example.place)
def test_every_example_follows_its_schema(example: Example) -> None:
    assert problems(STRICT, example.schema, example.value) == []


def test_the_check_of_examples_finds_faults() -> None:
    written = {"$ref": "#/components/schemas/Written"}
    assert problems(STRICT, written, {"status": "OK", "key": "k"})
    assert problems(STRICT, written, {"status": "OK", "key": "k", "seq": 1, "more": 1})
    assert problems(DOCUMENT, written, {"status": "OK", "key": "k", "seq": 1, "more": 1}) == []


# ---- against the code --------------------------------------------------------------------------------------------


async def test_it_has_every_route_and_method(rig: RestRig) -> None:
    routes = rig.front._routes
    served = {
        (path, method.lower())
        for table in (routes._exact, routes._below)
        for path, methods in table.items()
        for method in methods
    }
    assert {(_prefix(operation.path), operation.method) for operation in OPERATIONS} == served


async def test_it_has_every_parameter(rig: RestRig) -> None:
    """What a route does not know it refuses, and says what it knows."""
    for operation in OPERATIONS:
        method = "GET" if operation.method == "head" else operation.method.upper()
        answer = await rig.ask(method, f"{_target(operation)}?nonsense=1")
        assert (answer.status, answer.error["code"], answer.error["field"]) == (400, "invalid_request", "nonsense")
        known = re.search(r"takes (no parameters|.*)$", answer.error["message"])
        assert known
        described = [resolve(DOCUMENT, each) for each in operation.described.get("parameters", ())]
        names = sorted(each["name"] for each in described if each["in"] == "query")
        assert (operation.name, known[1]) == (operation.name, ", ".join(names) or "no parameters")


async def test_it_has_the_methods_that_a_path_allows(rig: RestRig) -> None:
    for operation in OPERATIONS:
        answer = await rig.ask("PATCH", _target(operation))
        allowed = sorted(method.upper() for method in METHODS if method in DOCUMENT["paths"][operation.path])
        assert (answer.status, answer.headers["allow"]) == (405, ", ".join(allowed))
        assert problems(STRICT, {"$ref": "#/components/schemas/MethodNotAllowedError"}, answer.json) == []


def test_it_has_every_error() -> None:
    assert list(FAILURES) == list(STATUS_OF_CODE)
    documented = {
        (name, int(status))
        for operation in OPERATIONS
        for status, answer in operation.described["responses"].items()
        for content in answer.get("content", {}).values()
        for name in content.get("examples", {})
        if name in STATUS_OF_CODE
    }
    # Of a path and of a method that are not there, no operation can say it.
    general = {(code, STATUS_OF_CODE[code]) for code in ("method_not_allowed", "route_not_found")}
    assert {*documented, *general} == set(STATUS_OF_CODE.items())


def test_it_has_every_member_that_errors_are_raised_with() -> None:
    raised = set(_raised_members())
    assert {("not_enough_replicas", "asked"), ("replication_timeout", "acks")} <= raised
    unknown = {(code, member) for code, member in raised if member not in {*FAILURES[code].members, "hint"}}
    assert unknown == set()


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest(None, "why"),
        InvalidRequest("field", "why"),
        errors.InvalidJson("why"),
        errors.KeyNotFound("k"),
        errors.RouteNotFound("why"),
        errors.MemberNotFound("web4", ["web1"]),
        errors.MemberConnected("web2"),
        errors.MethodNotAllowed("GET", ("POST",)),
        errors.TooLarge("max_key_bytes", 1, 2),
        errors.history_lost(errors.Epoch.of(1, 2), 3),
        Internal("why", hint="what to do", cause="record_damaged"),
        errors.StorageFull("why", hint="what to do"),
    ],
    ids=lambda error: error.code,
)
def test_errors_are_as_described(error: KvError) -> None:
    schema = {"$ref": f"#/components/schemas/{schema_name(error.code)}"}
    assert problems(STRICT, schema, json.loads(error_body(error))) == []


def test_it_has_the_limits_of_its_node() -> None:
    limits = {
        "max_key_bytes": 11,
        "max_value_bytes": 2222,
        "max_batch_bytes": 33333,
        "max_batch_items": 44,
        "max_body_bytes": 5555555,
        "max_queued_bytes": 6666666,
    }
    document = build_document(Config(**limits))
    for name, value in limits.items():
        assert f"| `{name}` | {value} |" in document["info"]["description"]
    schemas = document["components"]["schemas"]
    assert schemas["Key"]["maxLength"] == 11
    assert schemas["BatchBody"]["maxItems"] == 44
    assert "2222" in schemas["Value"]["description"]
    assert "33333" in document["paths"]["/batchput"]["post"]["description"]
    assert "5555555" in document["paths"]["/put"]["post"]["description"]


# ---- as it is served ---------------------------------------------------------------------------------------------


async def test_a_node_serves_its_own(make_rig: MakeRig) -> None:
    rig = await make_rig(max_key_bytes=77)
    answer = await rig.ask("GET", "/openapi.json")
    assert answer.json == json.loads(json.dumps(build_document(rig.config)))
    assert answer.json["components"]["schemas"]["Key"]["maxLength"] == 77
    packed = await rig.ask("GET", "/openapi.json", accept_encoding="gzip")
    assert gzip.decompress(packed.body) == answer.body


async def test_it_is_not_sent_twice(rig: RestRig) -> None:
    etag = (await rig.ask("GET", "/openapi.json")).headers["etag"]
    again = await rig.ask("GET", "/openapi.json", if_none_match=etag)
    assert (again.status, again.body) == (304, b"")


# ---- its examples, played ----------------------------------------------------------------------------------------


def test_the_walkthrough_has_all_examples_of_data_routes() -> None:
    played = {(step.operation, step.example) for step in WALKTHROUGH}
    shown = {
        (operation.name, name)
        for operation in OPERATIONS
        if operation.described["tags"] == ["data"]
        for place in (operation.described.get("requestBody", {}), operation.described["responses"]["200"])
        for content in place.get("content", {}).values()
        for name in content["examples"]
    }
    assert played == shown


async def test_the_examples_of_data_routes_are_what_a_node_answers(rig: RestRig) -> None:
    by_id = {operation.name: operation for operation in OPERATIONS}
    for step in WALKTHROUGH:
        operation = by_id[step.operation]
        body = _request_body(operation, step)
        answer = await rig.ask(operation.method.upper(), step.target, body, accept=step.accept)
        described = operation.described["responses"]["200"]
        expected = described["content"][step.accept]["examples"][step.example]["value"]
        assert answer.status == 200
        assert answer.headers["content-type"] == step.accept
        assert (answer.body.decode() if isinstance(expected, str) else answer.json) == expected
        _check_headers(described, answer.headers, is_whole=False)
        if step.operation == "read":
            assert answer.headers["etag"] == DOCUMENT["components"]["headers"]["ETag"]["example"]
            known = await rig.ask("GET", step.target, if_none_match=answer.headers["etag"])
            assert known.status == 304
            _check_headers(operation.described["responses"]["304"], known.headers)
        if step.example == "lines":
            assert answer.headers["kv-next-key"] == DOCUMENT["components"]["headers"]["Kv-Next-Key"]["example"]


async def test_answers_have_the_headers_that_are_described(rig: RestRig) -> None:
    await rig.put("k", b'"red"')
    for operation in OPERATIONS:
        if operation.method != "get":
            continue
        rig.node.role = "replica" if operation.name == "replica" else "primary"
        async with rig.connect() as wire:
            wire.request("GET", _target(operation), accept_encoding="gzip")
            # The body of one of them has no end.
            head = (await wire.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        assert head[0] == "HTTP/1.1 200 OK"
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        _check_headers(operation.described["responses"]["200"], headers)
        types = list(operation.described["responses"]["200"]["content"])
        assert headers["content-type"].partition(";")[0] in types or types == ["*/*"]


def _check_headers(described: dict[str, Any], headers: dict[str, str], *, is_whole: bool = True) -> None:
    """Check that an answer has the headers that are described, and no other that is worth it."""
    known = {name.lower(): resolve(DOCUMENT, each) for name, each in described.get("headers", {}).items()}
    assert {name for name, each in known.items() if each["required"]} <= headers.keys()
    more = headers.keys() - known.keys() - _GENERAL_HEADERS
    if is_whole:
        more -= _PROTECTING_HEADERS | _PROXY_HEADERS
    assert more == set()


def _request_body(operation: Operation, step: Step) -> bytes | None:
    if "requestBody" not in operation.described:
        return None
    examples = operation.described["requestBody"]["content"]["application/json"]["examples"]
    # What is shown as lines has no spaces either, and values come back as they were sent.
    return json.dumps(examples[step.example]["value"], separators=(",", ":")).encode()


def _answers(operation: Operation) -> list[tuple[str, dict[str, Any]]]:
    return list(operation.described["responses"].items())


def _target(operation: Operation) -> str:
    return operation.path.replace("{key}", "k").replace("{name}", "docs.css")


def _prefix(path: str) -> str:
    """A path as the routes have it: that of a parameter ends with a slash."""
    return path.partition("{")[0]


def _raised_members() -> Iterator[tuple[str, str]]:
    """(code, member) of every error of the node that is made with members in its call."""
    classes = {cls.__name__: cls.code for cls in vars(errors).values() if isinstance(cls, type)
               and issubclass(cls, KvError) and cls.code in STATUS_OF_CODE}  # fmt: skip
    for name, path in modules():
        if not name.startswith("kvnode.node"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes:
                for keyword in node.keywords:
                    if keyword.arg is not None:
                        yield classes[node.func.id], keyword.arg


def test_objects_walks_everywhere() -> None:
    assert [each.get("a") for each in objects([{"a": 1, "b": [{"a": 2}]}])] == [1, 2]
