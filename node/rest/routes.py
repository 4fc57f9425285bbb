"""From method and path to handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from aiohttp import hdrs

from kvnode.node.errors import MethodNotAllowed, RouteNotFound
from kvnode.node.rest.params import origin_form
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import Response, StreamedResponse

Answer: TypeAlias = Response | StreamedResponse
Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]
#: Handlers by method, by path. A path that ends with a slash stands for all that begin with it; but `/` for itself.
Table: TypeAlias = Mapping[str, Mapping[str, Handler]]


#: What stands behind the path of a route that is for all that begin with it.
_PLACEHOLDERS = {"/read/": "{key}", "/assets/": "{name}"}


def template_of(path: str) -> str:
    """How a table's path is written where people read it; of the empty path, which is of no route, "none"."""
    if not path:
        return "none"
    return path + _PLACEHOLDERS.get(path, "{rest}") if path.endswith("/") and path != "/" else path


class Routes:
    """Finds the handler of a request."""

    def __init__(self, *tables: Table) -> None:
        """Know some routes. HEAD works wherever GET does: handlers need not know, the answer leaves its body out."""
        self._exact: dict[str, Mapping[str, Handler]] = {}
        self._below: dict[str, Mapping[str, Handler]] = {}
        for table in tables:
            for path, methods in table.items():
                known = dict(methods)
                if hdrs.METH_GET in known:
                    known[hdrs.METH_HEAD] = known[hdrs.METH_GET]
                (self._below if path.endswith("/") and path != "/" else self._exact)[path] = known

    @property
    def paths(self) -> frozenset[str]:
        """All paths."""
        return frozenset((*self._exact, *self._below))

    def route_of(self, path: str) -> str:
        """The path of the route, as in the tables, that this path is of; empty where there is none."""
        route, methods = self._look_up(path)
        return route if methods is not None else ""

    def find(self, request: Request) -> Handler:
        """The handler for a request, whose `path`, `query` and `route` are set on the way.

        Raises:
            RouteNotFound, MethodNotAllowed, InvalidRequest.
        """
        target = request.message.path
        if not target.startswith("/") or "#" in target:
            target = origin_form(target)
        path, _, request.query = target.partition("?")
        request.path = path
        route, methods = self._look_up(path)
        if methods is None:
            raise RouteNotFound(f"no route {path[:100]!a}")
        request.route = route
        handler = methods.get(request.message.method)
        if handler is None:
            raise MethodNotAllowed(request.message.method, tuple(sorted(methods)))
        return handler

    def _look_up(self, path: str) -> tuple[str, Mapping[str, Handler] | None]:
        """The route of a path, as in the tables, and its handlers by method, which are None where there is no route."""
        methods = self._exact.get(path)
        if methods is not None:
            return path, methods
        # The part up to the second slash, that included.
        route = path[: path.find("/", 1) + 1]
        return route, self._below.get(route)
