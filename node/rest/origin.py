"""Whose page a browser's write comes from.

A node asks nobody who they are, and takes any Content-Type. So without this, a page of any site that an operator
visits could make the browser put and delete on a node that listens on the operator's machine. Browsers say where a
request comes from; other clients say nothing, and nothing is asked of them.

This is no help against a site whose name is made to lead to the node itself (DNS rebinding): for the browser, its pages
are the node's own then. Against that it takes a proxy in front of the node that knows the names it answers to.
"""

from __future__ import annotations

from aiohttp import hdrs

from kvnode.node.errors import CrossOrigin
from kvnode.node.rest.request import Request

_SEC_FETCH_SITE = "Sec-Fetch-Site"
#: The page is the node's own; or there is no page, as when an address was typed.
_OWN = ("same-origin", "none")


def check_origin(request: Request) -> None:
    """Refuse a request that changes something if a page of another site made a browser send it.

    Raises:
        CrossOrigin: it did.
    """
    headers = request.message.headers
    # Browsers send it with every POST; it is the only look that others' requests cost.
    origin = headers.get(hdrs.ORIGIN)
    if origin is None:
        return
    site = headers.get(_SEC_FETCH_SITE)
    if site in _OWN:
        return
    # Older browsers, and those that are not sure of an address without TLS, name the origin alone.
    host = origin.partition("://")[2]
    if site is None and host and host == headers.get(hdrs.HOST):
        return
    raise CrossOrigin(origin[:200])
