"""What the client and the commands can fail with, and the exit codes of `kvnode`.

KvError
├── ClientError
│   ├── ServerError     the node answered with an error; `code` is the one it gave
│   ├── Unreachable     no connection: the request was not sent, so nothing was written
│   ├── Unanswered      sent, but no whole answer came back: a write may or may not have happened
│   ├── BadAnswer       the answer is not one that a kvnode gives
│   ├── Refused         a node's peer port said ERROR; `code` is the one it gave
│   ├── ConnectionLost  the connection to a peer port ended before all that was wanted had come
│   └── PeerSilent      nothing comes over the connection to a peer port any more
└── CommandFailed       a command could not do its work for a reason of its own, a file for example
"""

from __future__ import annotations

from typing import Any

from kvnode.protocol.errors import KvError

#: Everything that was asked for was done.
EXIT_OK = 0
#: Not found, or failed.
EXIT_FAILED = 1
#: The command line or a setting is wrong; nothing was tried.
EXIT_USAGE = 2
#: Stopped by Ctrl-C; 128 + SIGINT, as shells have it.
EXIT_INTERRUPTED = 130
#: Whoever read the output has left; 128 + SIGPIPE.
EXIT_PIPE_CLOSED = 141


class ClientError(KvError):
    """A request to a node did not succeed."""


class ServerError(ClientError):
    """The node answered with an error.

    Attributes:
        status: the HTTP status.
        code: the stable code of the answer.
        fields: the other members of the answer's error object, but for its hint.
        retry_after_s: what the answer's Retry-After asks to wait, or None.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        fields: dict[str, Any] | None = None,
        *,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        # `fields` may hold any name, so it cannot travel as keyword arguments.
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.fields = fields or {}
        self.retry_after_s = retry_after_s


class Unreachable(ClientError):
    """No connection could be made; the request was not sent."""

    code = "unreachable"


class Unanswered(ClientError):
    """The request was sent and no whole answer came back; a write may or may not have happened."""

    code = "unanswered"


class BadAnswer(ClientError):
    """What answered does not speak kvnode's REST interface."""

    code = "bad_answer"


class Refused(ClientError):
    """A node closed a session of the peer protocol, or did not do what it was asked to, and said why.

    Attributes:
        code: the stable code of its ERROR frame.
    """

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ConnectionLost(ClientError):
    """A connection of the peer protocol ended too early."""

    code = "connection_lost"


class PeerSilent(ClientError):
    """Not even a sign of life comes over a connection of the peer protocol."""

    code = "peer_silent"


class CommandFailed(KvError):
    """A command could not do its work."""

    code = "failed"


class DumpIncomplete(CommandFailed):
    """A dump broke off; what was written of it is not all."""

    code = "dump_incomplete"
