"""Small pieces that descriptions of JSON are made of."""

from __future__ import annotations

from typing import Any

from kvnode.protocol.messages import Role

SEQ = {"type": "integer", "minimum": 0}
COUNT = {"type": "integer", "minimum": 0}
SECONDS = {"type": "number", "minimum": 0}
TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
OK = {"const": "OK"}
ROLE = {"enum": [str(role) for role in Role]}


def ref(kind: str, name: str) -> dict[str, Any]:
    """A reference to a component: `kind` is "schemas", "parameters", "headers" or "examples"."""
    return {"$ref": f"#/components/{kind}/{name}"}


def told(schema: dict[str, Any], description: str) -> dict[str, Any]:
    """A schema with what a reader has to know about it."""
    return {**schema, "description": description}


def object_of(members: dict[str, Any], *, optional: tuple[str, ...] = (), description: str = "") -> dict[str, Any]:
    """An object of an answer, which may get further members in later versions."""
    described: dict[str, Any] = {"type": "object"}
    if description:
        described["description"] = description
    described["required"] = [name for name in members if name not in optional]
    described["properties"] = members
    return described


def closed_object(members: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object of a request, which has no other members."""
    described = object_of(members, optional=optional) | {"additionalProperties": False}
    if not described["required"]:
        del described["required"]
    return described


def list_of(name: str, description: str) -> dict[str, Any]:
    """A list of a component's objects."""
    return {"type": "array", "items": ref("schemas", name), "description": description}
