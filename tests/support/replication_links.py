"""The simulation's time and network: events in order of their time, and connections that delay, stall and are cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any, Protocol

from kvnode.protocol.messages import Entries, Message, SnapshotChunk


class Timeline:
    """Callbacks in order of their time; in the order of scheduling where that is equal."""

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call back at a time, or now if that has passed."""
        self._count += 1
        heappush(self._due, (max(time, self.now), self._count, callback, arguments))

    def after(self, delay: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call back in a while."""
        self.at(self.now + delay, callback, *arguments)

    def run_until(self, time: float) -> None:
        """Let time pass."""
        while self._due and self._due[0][0] <= time:
            self.now, _, callback, arguments = heappop(self._due)
            callback(*arguments)
        self.now = time


class Endpoint(Protocol):
    """One side of a connection."""

    def receive(self, connection: Connection, message: Message) -> None:
        """A frame arrived."""

    def lose(self, connection: Connection) -> None:
        """The connection ended."""

    def drained(self, connection: Connection) -> None:
        """Bytes that this side sent have left."""


def frame_size(message: Message) -> int:
    """Bytes on the wire, roughly."""
    match message:
        case Entries(records):
            return 10 + sum(len(record.payload) for record in records)
        case SnapshotChunk(_, data):
            return 10 + len(data)
        case _:
            return 30


class Direction:
    """Frames from one side to the other: in order, none twice, each with its delay."""

    def __init__(self, connection: Connection, sender: Endpoint, receiver: Endpoint) -> None:
        self.connection = connection
        self.sender = sender
        self.receiver = receiver
        self.written = 0
        self.flushed = 0
        self.stalled_until = 0.0
        self.paused = False
        self._last_arrival = 0.0
        self._queue: deque[Message] = deque()
        self._held: deque[Message] = deque()

    def send(self, message: Message) -> None:
        connection = self.connection
        self.written += frame_size(message)
        arrival = max(connection.time.now + connection.delay(), self._last_arrival, self.stalled_until)
        self._last_arrival = arrival
        self._queue.append(message)
        connection.time.at(arrival, self._arrive)

    def pause(self, paused: bool) -> None:
        self.paused = paused
        while self._held and not self.paused:
            self._deliver(self._held.popleft())

    def _arrive(self) -> None:
        if not self.connection.up:
            return
        if self.connection.time.now < self.stalled_until:
            self._last_arrival = max(self._last_arrival, self.stalled_until)
            self.connection.time.at(self.stalled_until, self._arrive)
        elif self.paused:
            self._held.append(self._queue.popleft())
        else:
            self._deliver(self._queue.popleft())

    def _deliver(self, message: Message) -> None:
        self.flushed += frame_size(message)
        if self.connection.is_open(self.receiver):
            self.receiver.receive(self.connection, message)
        if self.connection.is_open(self.sender):
            self.sender.drained(self.connection)


class Connection:
    """Between a replica, the client, and its primary, the server. A side may think it open longer than the other."""

    def __init__(self, time: Timeline, rng: Random, client: Endpoint, server: Endpoint, *, slow: bool) -> None:
        self.time = time
        self.rng = rng
        self.slow = slow
        #: whether frames get through
        self.up = True
        self.client = client
        self.server = server
        self._open: set[Endpoint] = {client, server}
        self.to_server = Direction(self, client, server)
        self.to_client = Direction(self, server, client)

    def delay(self) -> float:
        return 0.001 + self.rng.random() * (0.3 if self.slow else 0.01)

    def is_open(self, side: Endpoint) -> bool:
        """Whether a side still has the connection."""
        return side in self._open

    def direction_from(self, side: Endpoint) -> Direction:
        return self.to_server if side is self.client else self.to_client

    def close(self, side: Endpoint) -> None:
        """A side closes; what it sent before may still arrive, and the other side learns of it then."""
        if side in self._open:
            self._open.discard(side)
            other = self.server if side is self.client else self.client
            self.time.after(0.35, self._tell, other)

    def cut(self, *, silent: bool) -> None:
        """Nothing gets through any more; both sides are told, or neither."""
        self.up = False
        if not silent:
            for side in (self.client, self.server):
                self.time.after(self.rng.random() * 0.1, self._tell, side)

    def _tell(self, side: Endpoint) -> None:
        if side in self._open:
            self._open.discard(side)
            side.lose(self)
