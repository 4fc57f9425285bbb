"""GET /events: what happens on the node, as server-sent events, for the dashboard and for `curl -N`.

    event: status    what `NodeApi.watched` says, about once a second; also the sign of life
    event: entries   {"entries": [{"seq", "epoch", "time", "ops": [{"op", "key", "value"}], "ops_left_out"}],
                     "left_out"}

Of many new entries only the newest are told, of large ones the beginning: `left_out` and `ops_left_out` count the
others. A key or value that is cut has its whole size beside it, as `key_bytes` or `value_bytes`; a value is a text
that holds JSON, for what is left of one that was cut is none. `time` is the primary's, UTC milliseconds.

The first event of a stream tells the newest entries that are in memory, if any. The id of an event is the last entry
in the log, as an ETag shows it. Who comes back with it, as browsers do, gets what is newer, as far as it is in memory.

All watchers are served from one timer, which runs only while there are any. At each tick the status is encoded once,
and so are the entries for all who saw the same before. A watcher takes the events of the present tick when its
connection has room, so a slow one skips ticks, and none has a queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import hdrs

from kvnode.node.api import NewestEntries, NodeApi
from kvnode.node.errors import Draining, Overloaded
from kvnode.node.rest.params import NO_PARAMETERS, parse_query
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import StreamedResponse
from kvnode.node.rest.routes import Table
from kvnode.protocol.entry import EntryBeginning
from kvnode.protocol.types import Epoch, Op, Position, Put

_TICK_S = 1.0
_MAX_WATCHERS = 100

#: What is told of a key and of a value, in bytes.
KEY_BYTES = 200
VALUE_BYTES = 400

#: Without buffering, for those who put a proxy in between.
_HEAD = b"Content-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
#: How soon a browser comes back when the connection was lost.
_RETRY = b"retry: 1000\n\n"


class EventRoutes:
    """The handler of those who watch, and what it serves them from.

    Attributes:
        tick: how often the present state was taken up; 0 = nobody has watched yet.
        tick_s: how long after each tick the next one comes, while anybody watches.
        max_watchers: how many may watch at once.
    """

    def __init__(self, node: NodeApi, on_broken: Callable[[Exception], None]) -> None:
        """Serve events, once somebody asks.

        Args:
            on_broken: told why all streams had to be ended.
        """
        self._node = node
        self._on_broken = on_broken
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._watchers: set[_Watcher] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self._status = b""
        #: The entries for those who saw the same before, of this tick.
        self._entries: dict[Position | None, tuple[bytes, Position]] = {}
        self.tick = 0
        self.tick_s = _TICK_S
        self.max_watchers = _MAX_WATCHERS

    @property
    def table(self) -> Table:
        """The routes."""
        return {"/events": {hdrs.METH_GET: self.watch}}

    @property
    def watcher_count(self) -> int:
        """How many watch."""
        return len(self._watchers)

    async def watch(self, request: Request) -> StreamedResponse:
        """Events until the client leaves, or the node stops."""
        parse_query(request.query, NO_PARAMETERS)
        if self._is_over:
            raise Draining("this node is stopping")
        if len(self._watchers) >= self.max_watchers:
            raise Overloaded(
                f"{self.max_watchers} watch this node already",
                hint="close a dashboard, or ask for /status now and then instead",
                limit="max_watchers",
                max=self.max_watchers,
            )
        watcher = _Watcher(self, request, _seen_before(request))
        self._watchers.add(watcher)
        return StreamedResponse(_HEAD, watcher, self._on_broken)

    def end(self) -> None:
        """Show the last state, and end all streams: those that are not taken, by breaking them off."""
        if not self._is_over and self._watchers:
            self.turn()
        self._is_over = True
        for watcher in tuple(self._watchers):
            watcher.abort_if_stuck()
        self._end_all()

    def turn(self) -> None:
        """Take up the present state, and have all watchers take it."""
        self._stop_timer()
        self._entries.clear()
        try:
            self._status = b"event: status\ndata: %b\n\n" % self._encode(self._node.watched())
        except Exception as error:
            self._fail(error)
            return
        self.tick += 1
        self._timer = asyncio.get_running_loop().call_later(self.tick_s, self.turn)
        for watcher in self._watchers:
            watcher.wake()

    # ---- what watchers ask -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Somebody begins to watch: see to it that there is something to show."""
        if self._timer is None and not self._is_over:
            self.turn()

    def leave(self, watcher: _Watcher) -> None:
        """Somebody watches no more."""
        self._watchers.discard(watcher)
        if not self._watchers:
            self._stop_timer()

    def events_after(self, seen: Position | None) -> tuple[bytes, Position | None]:
        """The events of this tick for who saw an entry last, or nothing yet; and what was seen then."""
        try:
            if seen not in self._entries:
                self._entries[seen] = self._entries_after(seen)
        except Exception as error:
            self._fail(error)
            return b"", seen
        entries, last = self._entries[seen]
        return entries + self._status, last

    def _entries_after(self, seen: Position | None) -> tuple[bytes, Position]:
        newest = self._node.newest_entries(seen)
        if newest.last == seen:
            return b"", newest.last
        shown = self._encode(_show_entries(newest))
        return b"event: entries\nid: %b\ndata: %b\n\n" % (str(newest.last).encode(), shown), newest.last

    def _fail(self, error: Exception) -> None:
        """End all streams: who watches is to see that, and comes back."""
        self._on_broken(error)
        self._end_all()

    def _end_all(self) -> None:
        self._stop_timer()
        for watcher in self._watchers:
            watcher.end()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Watcher:
    """One who watches. Implements `kvnode.node.rest.response.Parts`."""

    def __init__(self, events: EventRoutes, request: Request, seen: Position | None) -> None:
        self._events = events
        self._seen = seen
        self._shown_tick: int | None = None
        self._is_ended = False
        self._changed = asyncio.Event()
        self._connection = request.connection

    def wake(self) -> None:
        """There is a new tick."""
        self._changed.set()

    def end(self) -> None:
        """There will be none any more."""
        self._is_ended = True
        self._changed.set()

    def abort_if_stuck(self) -> None:
        """Break the connection if the client has not taken what it was sent: it may be asleep."""
        if self._connection.writing_paused:
            self._connection.abort()

    async def next(self) -> bytes:
        is_first = self._shown_tick is None
        if is_first:
            self._events.begin()
            if self._is_ended:
                return b""
        while self._shown_tick == self._events.tick:
            if self._is_ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        self._shown_tick = self._events.tick
        events, self._seen = self._events.events_after(self._seen)
        return _RETRY + events if is_first and events else events

    def trailer_lines(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        self._events.leave(self)


def _seen_before(request: Request) -> Position | None:
    """What Last-Event-ID names; None for anything that is no id of ours."""
    epoch, _, seq = request.message.headers.get("Last-Event-ID", "").rpartition("-")
    if not (seq.isascii() and seq.isdecimal() and len(seq) <= 20):
        return None
    try:
        return Position(Epoch.parse(epoch), int(seq))
    except ValueError:
        return None


def _show_entries(newest: NewestEntries) -> dict[str, Any]:
    return {"entries": [_show_entry(beginning) for beginning in newest.entries], "left_out": newest.left_out}


def _show_entry(beginning: EntryBeginning) -> dict[str, Any]:
    entry, ops_left_out = beginning
    return {
        "seq": entry.seq,
        "epoch": str(entry.epoch),
        "time": entry.time_ms,
        "ops": [_show_op(op) for op in entry.ops],
        "ops_left_out": ops_left_out,
    }


def _show_op(op: Op) -> dict[str, Any]:
    shown: dict[str, Any] = {"op": "put" if isinstance(op, Put) else "delete", "key": _cut(op.key, KEY_BYTES)}
    if len(op.key) > KEY_BYTES:
        shown["key_bytes"] = len(op.key)
    if isinstance(op, Put):
        shown["value"] = _cut(op.value, VALUE_BYTES)
        if len(op.value) > VALUE_BYTES:
            shown["value_bytes"] = len(op.value)
    return shown


def _cut(text: bytes, size: int) -> str:
    """The beginning of a UTF-8 text, of whole characters."""
    return text[:size].decode("utf-8", "ignore")
