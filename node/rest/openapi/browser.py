"""The routes for browsers: the pages, the files that they load, and this document."""

from __future__ import annotations

from kvnode.node.rest.openapi.operations import JSON, Json, answer, operation, with_head

TAG = "pages"

_HEADERS = (
    "ETag",
    "Cache-Control",
    "Vary",
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "Referrer-Policy",
)


def browser_paths() -> Json:
    """The path items."""
    return {
        "/": with_head(_file("dashboard", "The dashboard", "A page that shows the cluster and its data.", "text/html")),
        "/docs": with_head(_file("docs", "The API page", "This document as a page to try it out on.", "text/html")),
        "/openapi.json": with_head(
            _file(
                "openapi",
                "This document",
                "OpenAPI 3.1, with the limits of the node that answers.",
                JSON,
                schema={"type": "object", "required": ["openapi", "info", "paths", "components"]},
            )
        ),
        "/assets/{name}": with_head(
            _file(
                "asset",
                "A file that a page loads",
                "Scripts, styles and pictures, with the type that each has.",
                "*/*",
                parameters=("asset",),
                errors=("route_not_found",),
            )
        ),
    }


def _file(
    name: str,
    summary: str,
    description: str,
    media_type: str,
    *,
    schema: Json | None = None,
    parameters: tuple[str, ...] = (),
    errors: tuple[str, ...] = (),
) -> Json:
    return operation(
        name,
        TAG,
        summary,
        description,
        parameters=(*parameters, "If-None-Match"),
        answers={
            "200": answer(
                "The file.",
                {media_type: {"schema": schema or {"type": "string"}}},
                headers=(*_HEADERS, "Content-Encoding"),
            ),
            "304": answer("The client has it.", headers=_HEADERS),
        },
        errors=errors,
    )
