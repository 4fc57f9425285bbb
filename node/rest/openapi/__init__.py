"""The OpenAPI 3.1 document of a node: what its REST interface takes and answers, with that node's own limits in it.

It is data, put together when it is first asked for. Nothing here decides what the handlers do; tests hold it against
the routes, the parameters, the table of errors, and the answers of live nodes.
"""

from __future__ import annotations

import functools

from kvnode.node.config import Config
from kvnode.node.rest.assets import REVALIDATED, Source

__all__ = ["document_source"]


def document_source(config: Config) -> Source:
    """The document as a file of the node."""
    return Source("application/json", REVALIDATED, functools.partial(_encode, config))


def _encode(config: Config) -> bytes:
    # All that the document is made of; few nodes are asked for it, and none has to wait for it to start.
    from kvnode.node.rest.openapi.document import encode_document

    return encode_document(config)
