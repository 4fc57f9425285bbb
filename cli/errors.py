"""What the client and the commands can fail with, and the exit codes of `kvnode`.

KvError
├── ClientError
│   ├── ServerError     the node answered with an error; `code` is the one it gave
│   │   └── HistoryLost     what the client wrote or read is not part of the data any more
│   ├── Unreachable     nothing was sent, so nothing was written
│   │   └── ClientClosed    the program closed the client meanwhile
│   ├── Unanswered      sent, but no whole answer came back: a write may or may not have happened
│   ├── BadAnswer       the answer is not one that a kvnode gives
│   ├── NoNodeAvailable     none of several nodes could do it; says why, node by node. Nothing was written
│   ├── Refused         a node's peer port said ERROR; `code` is the one it gave
│   ├── ConnectionLost  the connection to a peer port ended before all that was wanted had come
│   └── PeerSilent      nothing comes over the connection to a peer port any more
└── CommandFailed       a command could not do its work for a reason of its own, a file for example
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvnode.protocol.errors import KvError
from kvnode.protocol.types import Position

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
    """A request to a node did not succeed.

    Attributes:
        url: of the node that the request was for; None where that is not one node, or not said.
        maybe_written: whether a write that ended so may have happened, or will; if not, it certainly did not. Means
            nothing for a read.
        retry_after_s: how long a node asks to wait before another attempt, or None.
    """

    maybe_written: bool = False
    retry_after_s: float | None = None

    def __init__(self, message: str, *, hint: str | None = None, url: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.url = url


class ServerError(ClientError):
    """The node answered with an error.

    Attributes:
        status: the HTTP status.
        code: the stable code of the answer.
        fields: the other members of the answer's error object, but for its hint.
        position: of the write, where it is durable all the same; of a read that found no key, what it saw; else None.
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
        url: str | None = None,
        position: Position | None = None,
    ) -> None:
        # `fields` may hold any name, so it cannot travel as keyword arguments.
        super().__init__(message, hint=hint, url=url)
        self.status = status
        self.code = code
        self.fields = fields or {}
        self.retry_after_s = retry_after_s
        self.position = position
        # 503 and 507 promise that nothing was written; so does every refusal of the request itself.
        self.maybe_written = status >= 500 and status not in {503, 507}

    def __str__(self) -> str:
        origin = f"{self.url}: " if self.url else ""
        return f"{origin}{self.code} ({self.status}): {super().__str__()}"


class HistoryLost(ServerError):
    """What the client wrote or read before is not part of the data of the node that was asked now.

    A replica was promoted that did not have it yet, or a node went back to an older state of its data.
    """


class Unreachable(ClientError):
    """The request was not sent: no connection could be made, or none was free."""

    code = "unreachable"


class ClientClosed(Unreachable):
    """The client was closed while the call waited to be sent."""

    code = "client_closed"


class Unanswered(ClientError):
    """The request was sent and no whole answer came back; a write may or may not have happened."""

    code = "unanswered"
    maybe_written = True


class BadAnswer(ClientError):
    """What answered does not speak kvnode's REST interface."""

    code = "bad_answer"
    #: A proxy in between may have passed the request on.
    maybe_written = True


class NoNodeAvailable(ClientError):
    """None of several nodes could do what was asked; a write certainly did not happen.

    Args:
        count: how many nodes there are, also where the time was over before all were asked; None for those that failed.

    Attributes:
        failures: the last failure of each node that was asked, by its URL, in the order in which they were asked.
    """

    code = "no_node_available"

    def __init__(self, failures: Mapping[str, ClientError], count: int | None = None) -> None:
        reasons = "; ".join(f"{url}: {error.message} ({error.code})" for url, error in failures.items())
        hints = dict.fromkeys(error.hint for error in failures.values() if error.hint)
        asked, count = len(failures), count or len(failures)
        rest = f", with time to ask only {asked}" if asked < count else ""
        super().__init__(f"none of {count} nodes could do it{rest}: {reasons}", hint="; ".join(hints) or None)
        self.failures = dict(failures)
        self.retry_after_s = max((error.retry_after_s or 0.0 for error in failures.values()), default=0.0) or None


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
