"""GET /, /docs, /assets/... and what is made at run time: the pages, and their files; nothing from elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import hdrs

from kvnode.node.errors import RouteNotFound
from kvnode.node.rest.assets import FILES, PAGES, Asset, Source, load
from kvnode.node.rest.params import NO_PARAMETERS, parse_query
from kvnode.node.rest.reads import names_etag
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import Response
from kvnode.node.rest.routes import Table

_ASSETS = "/assets/"

#: Of every page and file. Nothing is loaded from, sent to, or framed by anybody else. Styles may stand in the page,
#: and pictures in a style, because Swagger UI has them there.
_POLICY = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Vary: Accept-Encoding\r\n"
)


class PageRoutes:
    """The handlers of what browsers show. A file is read or made, and compressed, when it is first asked for."""

    def __init__(self, made: Mapping[str, Source]) -> None:
        """Serve the pages and their files.

        Args:
            made: by path, what is no file of a package.
        """
        self._pages = {**PAGES, **made}
        self._loading: dict[str, asyncio.Future[Asset]] = {}

    @property
    def table(self) -> Table:
        """The routes."""
        return {path: {hdrs.METH_GET: self.page} for path in self._pages} | {_ASSETS: {hdrs.METH_GET: self.asset}}

    async def page(self, request: Request) -> Response:
        """A page."""
        parse_query(request.query, NO_PARAMETERS)
        return await self._answer(request)

    async def asset(self, request: Request) -> Response:
        """A file that a page refers to."""
        parse_query(request.query, NO_PARAMETERS)
        if request.path.removeprefix(_ASSETS) not in FILES:
            raise RouteNotFound(f"no file {request.path[:100]!a}")
        return await self._answer(request)

    async def _answer(self, request: Request) -> Response:
        asset = await self._load(request.path)
        is_gzipped = _takes_gzip(",".join(request.message.headers.getall(hdrs.ACCEPT_ENCODING, ())))
        etag = asset.gzipped_etag if is_gzipped else asset.etag
        lines = b"%bCache-Control: %b\r\nETag: %b\r\n" % (_POLICY, asset.cache_control.encode(), etag.encode())
        if hdrs.IF_NONE_MATCH in request.message.headers and names_etag(request, etag):
            return Response(304, lines, None)
        lines += b"Content-Type: %b\r\n" % asset.content_type.encode()
        if not is_gzipped:
            return Response(200, lines, asset.body)
        return Response(200, lines + b"Content-Encoding: gzip\r\n", asset.gzipped)

    async def _load(self, path: str) -> Asset:
        loading = self._loading.get(path)
        if loading is None or (loading.done() and (loading.cancelled() or loading.exception() is not None)):
            source = self._pages.get(path) or FILES[path.removeprefix(_ASSETS)]
            loading = self._loading[path] = asyncio.get_running_loop().run_in_executor(None, load, source)
        # One request that is cancelled must not take the file from the others.
        return await asyncio.shield(loading)


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header names gzip, and not with a quality of 0."""
    for part in accept_encoding.split(","):
        coding, _, parameters = part.partition(";")
        if coding.strip().lower() == "gzip":
            return parameters.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
