"""How one operation is described: its parameters and body, and an answer for every status that it can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from kvnode.node.rest.errors import STATUS_OF_CODE
from kvnode.node.rest.openapi.failures import FAILURES, schema_name
from kvnode.node.rest.openapi.shapes import ref

#: A JSON object.
Json: TypeAlias = dict[str, Any]

JSON = "application/json"

#: What any handler can end with.
_ALWAYS = ("invalid_request", "internal")

#: What can happen to any request that changes something.
BODY_ERRORS = ("invalid_json", "cross_origin", "too_large", "overloaded")


def operation(
    name: str,
    tag: str,
    summary: str,
    description: str,
    *,
    answers: Json,
    errors: Sequence[str] = (),
    parameters: Sequence[str] = (),
    body: Json | None = None,
) -> Json:
    """Describe an operation.

    Args:
        name: the operationId.
        answers: what is no error, by status.
        errors: codes of errors, besides those that every operation has.
        parameters: names of components.
        body: of the request.
    """
    described: Json = {"operationId": name, "tags": [tag], "summary": summary, "description": description}
    if parameters:
        described["parameters"] = [ref("parameters", each) for each in parameters]
    if body is not None:
        described["requestBody"] = body
    described["responses"] = answers | _error_answers((*_ALWAYS, *errors))
    return described


def answer(
    description: str,
    content: Json | None = None,
    *,
    headers: Sequence[str] = (),
    links: Json | None = None,
) -> Json:
    """Describe an answer.

    Args:
        content: by media type.
        headers: names of components.
        links: what can be asked with what it says.
    """
    described: Json = {"description": description}
    if headers:
        described["headers"] = {each: ref("headers", each) for each in headers}
    if content is not None:
        described["content"] = content
    if links is not None:
        described["links"] = links
    return described


def json_content(schema: str, examples: Mapping[str, tuple[str, Any]]) -> Json:
    """JSON content.

    Args:
        schema: name of a component.
        examples: (summary, value) by name.
    """
    return {JSON: {"schema": ref("schemas", schema), "examples": as_examples(examples)}}


def as_examples(examples: Mapping[str, tuple[str, Any]]) -> Json:
    """(summary, value) by name, as an `examples` object."""
    return {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}


def with_head(get: Json) -> Json:
    """The path item of a GET: that, and the HEAD which comes with it."""
    name = get["operationId"]
    head = get | {
        "operationId": f"head{name[0].upper()}{name[1:]}",
        "summary": f"{get['summary']}: the head only",
        "description": f"Answers like `{name}`, without a body.",
        "responses": {
            status: {member: value for member, value in each.items() if member in ("description", "headers")}
            for status, each in get["responses"].items()
        },
    }
    return {"get": get, "head": head}


def _error_answers(codes: Sequence[str]) -> Json:
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS_OF_CODE[code], []).append(code)
    return {str(status): _error_answer(by_status[status]) for status in sorted(by_status)}


def _error_answer(codes: Sequence[str]) -> Json:
    """One answer for all errors of a status."""
    schemas = [ref("schemas", schema_name(code)) for code in codes]
    shared = set.intersection(*(set(FAILURES[code].headers) for code in codes))
    meanings = [f"`{code}`: {FAILURES[code].meaning}" for code in codes]
    return answer(
        meanings[0] if len(meanings) == 1 else "\n".join(f"- {meaning}" for meaning in meanings),
        {
            JSON: {
                "schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas},
                "examples": {code: ref("examples", code) for code in codes},
            }
        },
        headers=sorted(shared),
    )
