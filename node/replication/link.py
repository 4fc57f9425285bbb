"""One connection of the peer protocol: bytes to frames and back, and how far sending is."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

from kvnode.node.config import Address
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.messages import Error, Message
from kvnode.protocol.session import TransportProgressed

#: What the transport may hold back before `writable` turns False, and again where that ends. Below what a feed allows
#: itself, so that a feed that stopped for want of room is always told when there is room again.
HIGH_WATER_BYTES = 2 * 1024 * 1024
_LOW_WATER_BYTES = 512 * 1024

#: The largest frame of a peer that has not said who it is: msgpack makes many times its size of a hostile one.
STRANGER_FRAME_BYTES = 16 * 1024

#: How long the last bytes of a closed connection may take to leave.
_LINGER_S = 5.0

#: How long the rest of a frame may take to make any progress.
FRAME_STALL_S = 30.0

#: Frames of one peer that are told in one turn of the loop: a chunk can hold thousands, which would keep all others
#: waiting for as long as they take.
TURN_FRAMES = 256


class LinkOwner(Protocol):
    """Who is told of what happens on a link. Nothing is told any more after `link_lost`."""

    def link_made(self, link: PeerLink) -> None:
        """The connection is there."""

    def frame_received(self, link: PeerLink, message: Message) -> None:
        """A frame came."""

    def link_drained(self, link: PeerLink) -> None:
        """The transport has room again after it had none."""

    def peer_finished(self, link: PeerLink) -> bool:
        """The peer will send no more; returns whether it is still to be sent something, else the link closes."""

    def link_lost(self, link: PeerLink, reason: str) -> None:
        """The connection has ended, whoever ended it."""


class PeerLink(asyncio.Protocol):
    """A connection, accepted or made. Lives on one event loop.

    Attributes:
        peer: HOST:PORT of the other side, once connected.
        peer_host: its host alone.
        written: bytes handed to the transport.
        received: bytes taken from it.
    """

    def __init__(self, owner: LinkOwner, max_frame_bytes: int, *, stranger: bool) -> None:
        """A link that will be connected.

        Args:
            max_frame_bytes: of either direction, once the peer is known.
            stranger: whether the peer has to say who it is before it may send large frames.
        """
        self.owner = owner
        self.peer = "?"
        self.peer_host = "?"
        self.written = 0
        self.received = 0
        self._max_frame_bytes = max_frame_bytes
        self._decoder = FrameDecoder(min(max_frame_bytes, STRANGER_FRAME_BYTES) if stranger else max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._reason = "the other side closed the connection"
        # Frames of this turn of the loop: a transport would make a system call of each.
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        # Whether there was no room at some time of this turn, and whether the transport will say when there is.
        self._crowded = False
        self._paused = False
        self._deaf = False
        # Whether frames that are there are told in the next turn only.
        self._resting = False
        self._linger: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    # ---- sending -------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent, and those that come are told."""
        return self._transport is not None and not self._closing

    @property
    def progress(self) -> TransportProgressed:
        """How far sending and receiving are."""
        return TransportProgressed(self.written, self.written - self.held_bytes, self.received)

    @property
    def held_bytes(self) -> int:
        """What was sent and has not left this process."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size() + self._unsent_bytes

    def send(self, message: Message) -> None:
        """Send a frame, without waiting; on a link that is not open, nothing."""
        self.send_bytes(encode(message, self._max_frame_bytes))

    def send_bytes(self, frames: bytes) -> None:
        """Send frames that are encoded already."""
        if self._transport is None or self._closing:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush_turn)
        self._unsent.append(frames)
        self._unsent_bytes += len(frames)
        self.written += len(frames)
        self._crowded = self._crowded or self.held_bytes >= HIGH_WATER_BYTES

    def _flush_turn(self) -> None:
        crowded, self._crowded = self._crowded, False
        self._flush()
        if crowded and not self._paused and not self._closing:
            # The kernel has taken so much at once that the transport never was full, and has nothing to tell.
            self.owner.link_drained(self)

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if self._transport is not None and unsent and not self._transport.is_closing():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    # ---- receiving -----------------------------------------------------------------------------------------------

    def trust(self, max_frame_bytes: int) -> None:
        """The peer has said who it is: take larger frames of it, as large as it may need."""
        self._decoder.max_frame_bytes = min(max_frame_bytes, self._max_frame_bytes)

    def pause_reading(self) -> None:
        """Take no more bytes, and tell of no more frames."""
        if self._transport is not None and not self._closing:
            self._transport.pause_reading()
            self._deaf = True
            self._watch_frame()

    def resume_reading(self) -> None:
        """Take bytes again; what came before is told of first."""
        if self._transport is not None and not self._closing and self._deaf:
            self._deaf = False
            self._loop.call_soon(self._go_on_reading)

    def _rest(self, transport: asyncio.Transport) -> None:
        """Leave others their turn before the next frames."""
        transport.pause_reading()
        self._resting = True
        self._loop.call_soon(self._end_rest)

    def _end_rest(self) -> None:
        self._resting = False
        self._go_on_reading()

    def _go_on_reading(self) -> None:
        if self._is_reading:
            self._tell_frames()
        if self._transport is not None and self._is_reading:
            self._transport.resume_reading()

    @property
    def _is_reading(self) -> bool:
        return self._transport is not None and not (self._closing or self._deaf or self._resting)

    # ---- ending --------------------------------------------------------------------------------------------------

    def refuse(self, code: str, message: str) -> None:
        """Tell the peer why, and close."""
        if self.is_open:
            self.send(Error(code, message))
            self.close(f"{code}: {message}")

    def close(self, reason: str) -> None:
        """Close once what was sent has left, or after a while all the same."""
        if self._closing or self._transport is None:
            return
        self._flush()
        self._closing = True
        self._reason = reason
        self._linger = self._loop.call_later(_LINGER_S, self._transport.abort)
        self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; what has not left is dropped."""
        if self._transport is None:
            return
        if not self._closing:
            self._reason = reason
        self._closing = True
        self._transport.abort()

    # ---- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its class.
        transport = self._transport = cast(asyncio.Transport, transport)
        # It pauses above its high mark; owners stop at `HIGH_WATER_BYTES`.
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # For peers that say nothing for long, and whose host may lose its power.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES - 1, low=_LOW_WATER_BYTES)
        address = transport.get_extra_info("peername")
        if address:
            self.peer_host = str(address[0])
            self.peer = str(Address(self.peer_host, address[1]))
        self.owner.link_made(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self._closing:
            self._decoder.feed(data)
            self._tell_frames()

    def _tell_frames(self) -> None:
        """Tell the owner of the frames that are whole, as long as it reads and others can be kept waiting."""
        left = TURN_FRAMES
        try:
            for message in self._decoder:
                self.owner.frame_received(self, message)
                if self._closing or self._deaf:
                    break
                left -= 1
                if not left and self._transport is not None:
                    self._rest(self._transport)
                    break
        except RemoteProtocolError as error:
            self.refuse(error.code, str(error))
        except LocalProtocolError as error:
            # What this node would have sent cannot be: a bug here, which must not look like the peer's.
            self.refuse("internal", str(error))
            raise
        self._watch_frame()

    def eof_received(self) -> bool:
        if self._decoder.pending_bytes and not self._closing:
            self.refuse("protocol_error", "the stream ends inside a frame")
        if not self._closing and not self.owner.peer_finished(self):
            # Not left to the transport, which would drop this turn's frames, and wait for ever for the others to leave.
            self.close(self._reason)
        return True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self._closing:
            self.owner.link_drained(self)

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._linger, self._stall):
            if timer is not None:
                timer.cancel()
        if not self._closing and error is not None:
            self._reason = f"the connection was lost: {error}"
        self._closing = True
        self._transport = None
        self.owner.link_lost(self, self._reason)

    def _watch_frame(self) -> None:
        """Give the rest of a frame that has begun a while to come; each byte begins the while anew.

        While nothing is read on purpose, it may be there already.
        """
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._decoder.pending_bytes and self._is_reading:
            self._stall = self._loop.call_later(FRAME_STALL_S, self._end_stalled)

    def _end_stalled(self) -> None:
        self.refuse("protocol_error", f"the rest of a frame did not come within {FRAME_STALL_S:g} s")
