"""What the state machines of both sides share: events and instructions of any session, and its signs of life.

A machine is driven by its shell with one call, `step(event, now)`, which returns a list of instructions. The shell
executes them in order and decides nothing. The contract of all machines:

- `now` is a monotonic clock in seconds, never going back. The shell sends `Ticked` at `wake_at` at the latest;
  more often does no harm.
- Events of one machine are stepped one after another. What an instruction leads to (a frame sent, a file read) is never
  stepped from inside the call that returned the instruction, but after all instructions of that call were executed.
- An instruction that asks for something is answered by exactly one event, which its docstring names, unless the session
  ends before; an answer that comes later than that is stepped all the same.
- `CloseSession` is the last instruction about the connection. After it, or when the connection ended by itself, the
  shell steps `Disconnected` once, and then no frame of that connection any more.
- `validate()` raises AssertionError if the machine is in a state that cannot be; tests call it after every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.protocol.messages import Message
from kvnode.protocol.types import Seq


@dataclass(frozen=True, slots=True)
class Timing:
    """When a session counts as dead, in seconds."""

    #: between two PINGs
    ping_s: float = 1.0
    #: without any byte from the peer
    silence_s: float = 5.0
    #: with bytes waiting to be sent of which none leaves
    stall_s: float = 30.0


# ---- events ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A frame arrived whole. WRITE, WRITE_RESULT, STATUS and STATUS_RESULT are no business of these machines."""

    message: Message


@dataclass(frozen=True, slots=True)
class TransportProgressed:
    """How far sending and receiving are, in bytes since the session began.

    Stepped after the instructions of a step that sent anything, when the transport has room again after it had none
    (with a high-water mark of at most `FeedLimits.unsent_bytes`), and before each `Ticked`.
    """

    #: handed to the transport
    written: int
    #: of those, what has left this process; at most `written`
    flushed: int
    #: taken from the transport, frames that are not whole included: a large one on a slow link takes its time
    received: int = 0


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


# ---- instructions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Encode the frame and hand it to the transport, without waiting."""

    message: Message


@dataclass(frozen=True, slots=True)
class SendPing:
    """Send PING with this seq and the wall clock's time."""

    last_seq: Seq


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Close the connection, and log why.

    Where the peer can still be told, an ERROR frame with the same code and message was sent before.
    """

    code: str
    message: str
    #: drop what waits to be sent rather than letting it leave first: the peer takes nothing, or is not there
    abort: bool = False


# ---- signs of life ---------------------------------------------------------------------------------------------


class Heartbeat:
    """When to send a PING, and when the peer or the way to it counts as dead.

    Invariant: while bytes wait to be sent, `progressed_at` is when one last left, or when the first of them began to
    wait. While this side reads nothing on purpose, the peer's silence does not count.
    """

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._ping_at = now + timing.ping_s
        self._heard_at = now
        self._progressed_at = now
        self._flushed = 0
        self._received = 0
        self._deaf = False
        #: bytes handed to the transport that have not left
        self.pending_bytes = 0

    @property
    def wake_at(self) -> float:
        """When `ping_due` or `dead` may answer otherwise than now."""
        wake_at = self._ping_at
        if not self._deaf:
            wake_at = min(wake_at, self._heard_at + self._timing.silence_s)
        if self.pending_bytes:
            wake_at = min(wake_at, self._progressed_at + self._timing.stall_s)
        return wake_at

    def heard(self, now: float) -> None:
        """A frame came from the peer."""
        self._heard_at = now

    def set_deaf(self, deaf: bool, now: float) -> None:
        """This side stops reading, or begins again, at which the peer's silence counts from zero."""
        self._deaf = deaf
        self._heard_at = now

    def progressed(self, event: TransportProgressed, now: float) -> None:
        """Take note of what left, and of what came."""
        if event.received > self._received:
            self._received = event.received
            self._heard_at = now
        if event.flushed > self._flushed or not self.pending_bytes:
            self._progressed_at = now
        self._flushed = event.flushed
        self.pending_bytes = event.written - event.flushed

    def ping_due(self, now: float) -> bool:
        """Whether to send a PING now; says so once an interval."""
        if now < self._ping_at:
            return False
        self._ping_at = now + self._timing.ping_s
        return True

    def dead(self, now: float) -> CloseSession | None:
        """How to end the session, if the peer is silent or takes nothing."""
        if not self._deaf and now >= self._heard_at + self._timing.silence_s:
            return CloseSession("peer_silent", f"nothing came for {self._timing.silence_s:g} s", abort=True)
        if self.pending_bytes and now >= self._progressed_at + self._timing.stall_s:
            return CloseSession("send_stalled", f"nothing could be sent for {self._timing.stall_s:g} s", abort=True)
        return None

    def validate(self) -> None:
        """Check the invariants."""
        assert self.pending_bytes >= 0, "more bytes left than were handed over"
