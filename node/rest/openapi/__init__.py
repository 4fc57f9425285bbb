"""The OpenAPI 3.1 document of a node: what its REST interface takes and answers, with that node's own limits in it.

It is data, put together when it is first asked for. Nothing here decides what the handlers do; tests hold it against
the routes, the parameters, the table of errors, and the answers of live nodes.
"""

from kvnode.node.rest.openapi.document import build_document, document_source

__all__ = ["build_document", "document_source"]
