"""Who of the REST clients is served: at most so many connections at a time, and what becomes of the surplus.

A node that lets everybody in serves everybody late: with a thousand clients too many, each waits for a thousand others.
So only `max_connections` are served. One that comes when these are there gets a `Doorway`, which reads the line of its
first request and no more. Operators and load balancers are let in by it, for one request; every other request is
answered by 503 `overloaded`, and the connection ends.

What the surplus may cost is bounded, for it must not take from those who are served:

- Refusals go out at once as long as there are few, and at a bounded rate when there are many, in the order in which
  they were asked for. A client that comes back as soon as it is refused, and there are such, would otherwise have the
  node do nothing but refuse. New connections, the dearest part of a refusal, become rarer with the answers.
- At most `max_surplus` connections wait here. Where more come, the one that has waited longest makes room: it is
  refused out of turn. None is left to the kernel's queue, in which an operator would have to wait with the others.
- One timer serves all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from kvnode.node.errors import Overloaded
from kvnode.node.rest.response import CLOSE_LINE, DateStamp, ErrorResponse, error_response

#: Surplus connections that are there at a time. Each takes a descriptor.
MAX_SURPLUS = 4096

#: Refusals in each of the intervals, that is 500 a second.
_REFUSALS = 25
_INTERVAL_S = 0.05

#: How long a surplus connection may say nothing, and how long a refused one may take to end its side.
_SILENCE_TIMEOUT_S = 10.0
_LINGER_TIMEOUT_S = 2.0

#: The longest begin of a request line that is looked at: no path that is let in is longer.
_LONGEST_LINE_BYTES = 4096

#: What is answered whoever else is there: a node that is overloaded has to be looked at.
_ALWAYS_OPEN = frozenset({b"/health", b"/ready", b"/primary", b"/replica", b"/metrics", b"/status"})


class Admission:
    """Counts the connections of one front, and refuses those that are too many. Used on the event loop.

    Attributes:
        max_connections: that are served at a time.
        served: connections that have a place.
        surplus: connections that have none; those of operators that were let in are among them.
    """

    def __init__(
        self,
        max_connections: int,
        stamp: DateStamp,
        now_s: Callable[[], float],
        route_of: Callable[[str], str],
        count: Callable[[str, float, ErrorResponse], None],
        *,
        max_surplus: int = MAX_SURPLUS,
    ) -> None:
        """Serve so many.

        Args:
            route_of: the route of a path.
            count: told of each refusal: its route, when it was asked for, and the answer.
            max_surplus: how many may be here beside those that are served.
        """
        self.max_connections = max_connections
        self.served = 0
        self.surplus = 0
        self.stamp = stamp
        self.now_s = now_s
        self._route_of = route_of
        self._count = count
        self._max_surplus = max_surplus
        error = Overloaded(
            f"this node serves {max_connections} connections already; nothing was done",
            hint="close connections that are idle, or raise --max-connections",
            limit="max_connections",
            max=max_connections,
        )
        self._answer = error_response(error)
        #: Everybody who stands in a doorway, since when it has been waited for the client; longest first.
        self._doorways: dict[Doorway, float] = {}
        #: Those of them that have asked, in that order.
        self._asking: dict[Doorway, None] = {}
        self._refusals_left = _REFUSALS
        self._timer: asyncio.TimerHandle | None = None

    def take_place(self) -> bool:
        """Take a place for a new connection if there is one; `leave` gives it back."""
        if self.served >= self.max_connections:
            return False
        self.served += 1
        return True

    def leave(self) -> None:
        """A connection that had a place is lost."""
        self.served -= 1

    def leave_surplus(self) -> None:
        """A connection that had none is lost."""
        self.surplus -= 1

    def close(self) -> None:
        """End all that wait, those that have asked with their answer."""
        for doorway in tuple(self._doorways):
            self._turn_out(doorway)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- for doorways ----------------------------------------------------------------------------------------------

    def enter(self, doorway: Doorway) -> None:
        """Take in a surplus connection; the one that has been here longest makes room if it must."""
        self.surplus += 1
        if self.surplus > self._max_surplus:
            self._turn_out(next(iter(self._doorways), doorway))
        self._doorways[doorway] = self.now_s() + _SILENCE_TIMEOUT_S
        self._start_timer()

    def forget(self, doorway: Doorway) -> None:
        """It waits no more: its connection is lost, or was let in."""
        self._doorways.pop(doorway, None)
        self._asking.pop(doorway, None)

    def refuse_in_turn(self, doorway: Doorway) -> None:
        """Answer its request, now if not too many were refused in this interval."""
        if self._refusals_left > 0 and not self._asking:
            self._refuse(doorway)
        else:
            self._asking[doorway] = None

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _refuse(self, doorway: Doorway) -> None:
        self._refusals_left -= 1
        self._asking.pop(doorway, None)
        # From now on it is waited for the end of its side; it has to move behind those that came later.
        if self._doorways.pop(doorway, None) is not None:
            self._doorways[doorway] = self.now_s() + _LINGER_TIMEOUT_S
        self._count(self._route_of(doorway.path), doorway.asked_s, self._answer)
        doorway.refuse(self._answer)

    def _turn_out(self, doorway: Doorway) -> None:
        if doorway.is_waiting:
            self._refuse(doorway)
        self.forget(doorway)
        doorway.close()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._next_interval)

    def _next_interval(self) -> None:
        self._timer = None
        self._refusals_left = _REFUSALS
        while self._asking and self._refusals_left > 0:
            self._refuse(next(iter(self._asking)))
        now_s = self.now_s()
        for doorway, until_s in tuple(self._doorways.items()):
            if until_s <= now_s and not doorway.is_waiting:
                self._turn_out(doorway)
        if self._doorways:
            self._start_timer()


class Doorway(asyncio.Protocol):
    """A surplus connection until it is known what it wants, and, once it is refused, until the client has let go.

    Attributes:
        path: of its request, once that has come.
        asked_s: when that was.
        is_waiting: whether its request has come and has no answer.
    """

    __slots__ = ("_admission", "_begin", "_is_head", "_let_in", "_transport", "asked_s", "is_waiting", "path")

    def __init__(self, admission: Admission, let_in: Callable[[asyncio.Transport, bytes], None]) -> None:
        """Stand in for a connection.

        Args:
            let_in: has the connection served, for the one request that begins with these bytes.
        """
        self._admission = admission
        self._let_in = let_in
        self._transport: asyncio.Transport | None = None
        #: What has come; None once it needs no more looking at.
        self._begin: bytes | None = b""
        self._is_head = False
        self.path = ""
        self.asked_s = 0.0
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._admission.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self.is_waiting = False
        self._admission.forget(self)
        self._admission.leave_surplus()

    def data_received(self, data: bytes) -> None:
        # What follows a request that is refused is read, and thrown away: a connection that is closed with bytes unread
        # is reset by the kernel, which can destroy the answer on its way.
        if self._begin is None:
            return
        begin = self._begin + data
        end = begin.find(b"\r\n", 0, _LONGEST_LINE_BYTES)
        if end < 0 and len(begin) < _LONGEST_LINE_BYTES:
            self._begin = begin
            return
        self._begin = None
        method, _, rest = begin[: max(end, 0)].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path in _ALWAYS_OPEN and self._transport is not None:
            self._admission.forget(self)
            self._let_in(self._transport, begin)
            return
        self._is_head = method == b"HEAD"
        self.path = path.decode("ascii", "replace")
        self.asked_s = self._admission.now_s()
        self.is_waiting = True
        self._admission.refuse_in_turn(self)

    def eof_received(self) -> bool:
        # A client may end its side behind its request.
        return self.is_waiting

    def refuse(self, answer: ErrorResponse) -> None:
        """Send this, and nothing after it."""
        self.is_waiting = False
        transport = self._transport
        if transport is not None and not transport.is_closing():
            answer.send(transport, self._admission.stamp.lines(), CLOSE_LINE, is_head=self._is_head)
            transport.write_eof()

    def close(self) -> None:
        """End the connection; what was written is still sent."""
        self._begin = None
        if self._transport is not None:
            self._transport.close()
