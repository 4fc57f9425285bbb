"""Header lines that aiohttp's parser has seen before, by their bytes: what they said then, they say again.

The clients of a node send the same few header lines with every request. This is not a second parser of HTTP: it learns
from what the first one made of the same bytes, and knows nothing else. It remembers only lines that mean nothing to the
routes it is for; with any other header, one that is not known yet included, a request goes the long way.
"""

from __future__ import annotations

from typing import TypeVar

from aiohttp import hdrs
from aiohttp.http import HttpVersion11, RawRequestMessage

T = TypeVar("T")

#: Headers that are of no consequence to a small read or write; Connection, unless it ends the connection.
_INERT = frozenset(
    {
        name.lower()
        for name in (
            hdrs.HOST,
            hdrs.USER_AGENT,
            hdrs.ACCEPT,
            hdrs.ACCEPT_ENCODING,
            hdrs.ACCEPT_LANGUAGE,
            hdrs.CONNECTION,
            hdrs.CONTENT_LENGTH,
            hdrs.CONTENT_TYPE,
        )
    }
)

#: How many different heads are remembered for each method, and the longest that is.
_MOST_HEADS = 1024
_LONGEST_HEAD_BYTES = 1024


class KnownHeads:
    """Remembers heads: what follows the request line, from that line's end to the empty line, both included.

    Attributes:
        gets: heads of GET requests of HTTP/1.1 that have no body, keep the connection, and say nothing else.
        posts: likewise those of POST requests, with the length of the body in bytes.
    """

    __slots__ = ("gets", "posts")

    def __init__(self) -> None:
        self.gets: dict[bytes, None] = {}
        self.posts: dict[bytes, int] = {}

    def learn(self, data: bytes, end: int, message: RawRequestMessage) -> None:
        """Remember the head of a request if it may be.

        Args:
            data: begins with the request, as it was sent.
            end: where the body begins.
            message: what the parser made of it.
        """
        start = data.find(b"\r\n")
        head = data[start:end]
        # One that is known comes this way with every request that is not plain for another reason.
        if head in self.gets or head in self.posts or len(head) > _LONGEST_HEAD_BYTES:
            return
        line = f"{message.method} {message.path} HTTP/1.1".encode("utf-8", "surrogateescape")
        if data[:start] != line or not _is_inert(message):
            return
        length = message.headers.get(hdrs.CONTENT_LENGTH)
        if message.method == hdrs.METH_GET and length is None:
            _remember(self.gets, head, None)
        elif message.method == hdrs.METH_POST and length is not None:
            _remember(self.posts, head, int(length))


def _is_inert(message: RawRequestMessage) -> bool:
    headers = message.headers
    return (
        message.version == HttpVersion11
        and not (message.should_close or message.chunked or message.upgrade)
        and all(name.lower() in _INERT for name in headers)
        and all(value.lower() == "keep-alive" for value in headers.getall(hdrs.CONNECTION, ()))
    )


def _remember(heads: dict[bytes, T], head: bytes, meaning: T) -> None:
    if len(heads) >= _MOST_HEADS:
        # The oldest: clients that are still there bring theirs back.
        del heads[next(iter(heads))]
    heads[head] = meaning
