"""Frames as bytes: an encoder, and an incremental decoder for any chunking of a stream that nobody vouches for.

A frame is a length and a msgpack array. The length is checked before anything is kept for it, and msgpack sees exactly
one whole frame at a time. Whatever the bytes are, the decoder yields messages or raises `RemoteProtocolError`.

Source: FORMAT.md, "Frames".
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, NoReturn

import msgpack

from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.fields import mismatch
from kvnode.protocol.messages import LAYOUTS, FrameType, Message

#: Bytes of the length before each frame.
LENGTH_BYTES = 4
#: The limit for a frame unless a setting says otherwise, the length's own bytes not counted.
MAX_FRAME_BYTES = 64 * 1024 * 1024

_LENGTH = Struct(">I")

#: How HTTP begins: as a length it is over a gigabyte, which alone would tell nobody what is wrong.
_HTTP_STARTS = (b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"HTTP")


def encode(message: Message, max_frame_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The frame of `message`, its length included; `FrameDecoder` is the inverse.

    Raises:
        LocalProtocolError: a field is not what the format allows (the error names frame and field), or the frame is
            larger than `max_frame_bytes`.
    """
    try:
        # Most frames are small: with msgpack's default buffer, allocating it would cost more than packing.
        body: bytes = msgpack.Packer(use_bin_type=True, buf_size=1024).pack(to_wire(message))
    except (ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{message.TYPE.name}: cannot be packed: {error}") from error
    if len(body) > max_frame_bytes:
        raise LocalProtocolError(
            f"{message.TYPE.name}: the frame has {len(body)} bytes, over the limit of {max_frame_bytes}"
        )
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def encode_trusted(number: FrameType, *values: object) -> bytes:
    """The frame that `encode` makes of a message with these fields, without the message and without the checks.

    For the answers that a node gives by the hundred thousand a second, of values that it knows to be in their ranges:
    `encode` takes six times as long. The frame must be within the limit.
    """
    body: bytes = msgpack.Packer(use_bin_type=True, buf_size=1024).pack((number, *values))
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def to_wire(message: Message) -> tuple[Any, ...]:
    """The array to pack for `message`.

    Raises:
        LocalProtocolError: `from_wire` would not take it; the error names frame and field.
    """
    layout = LAYOUTS[message.TYPE]
    wire: list[Any] = [message.TYPE]
    try:
        for write, value in zip(layout.writers, layout.values(message), strict=True):
            wire.append(write(value))
    except ValueError as error:
        raise LocalProtocolError(f"{message.TYPE.name}.{layout.fields[len(wire) - 1].name}: {error}") from error
    try:
        message.check()
    except ValueError as error:
        raise LocalProtocolError(f"{message.TYPE.name}.{error}") from error
    return tuple(wire)


def from_wire(wire: Any) -> Message:
    """The message that an unpacked frame stands for.

    Args:
        wire: what msgpack made of the frame, arrays as tuples.

    Raises:
        RemoteProtocolError: it is not a frame of a known type with all of its fields in range; the error names frame
            and field.
    """
    if type(wire) is not tuple or not wire:
        raise RemoteProtocolError(f"frame: {mismatch('an array that begins with a type number', wire)}")
    number = wire[0]
    layout = LAYOUTS.get(number) if type(number) is int else None
    if layout is None:
        raise RemoteProtocolError(f"frame of unknown type: {mismatch(f'1 to {max(LAYOUTS)}', number)}")
    readers = layout.readers
    if len(wire) <= len(readers):
        raise RemoteProtocolError(f"{FrameType(number).name}.{layout.fields[len(wire) - 1].name}: missing")
    values: list[Any] = []
    try:
        for read, value in zip(readers, wire[1:], strict=False):
            values.append(read(value))
    except ValueError as error:
        raise RemoteProtocolError(f"{FrameType(number).name}.{layout.fields[len(values)].name}: {error}") from error
    message = layout.frame(*values)
    try:
        message.check()
    except ValueError as error:
        raise RemoteProtocolError(f"{FrameType(number).name}.{error}") from error
    return message


class FrameDecoder:
    """Turns a stream of bytes, in whatever chunks they come, into messages.

    Feed it, then iterate over it to the end; repeat. It holds at most one unfinished frame and the last chunk. The work
    is linear in the bytes fed, however small the chunks are. After the first error it is dead: what follows in the
    stream cannot be trusted, so everything but `pending_bytes` raises that error again.

    Attributes:
        max_frame_bytes: the largest frame that is taken, the length's own bytes not counted. May be changed at any
            time: a session can be strict until it knows its peer. It bounds the buffer; the values that msgpack makes
            of a frame can take many times its size.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        # Deleting from the front of a bytearray moves its start; it copies only after at least half was deleted.
        self._buffer = bytearray()
        self._error: RemoteProtocolError | None = None

    @property
    def pending_bytes(self) -> int:
        """How many bytes were fed and have not become messages."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream.

        Raises:
            RemoteProtocolError: the decoder is dead.
        """
        self._raise_if_dead()
        self._buffer += data

    def __iter__(self) -> Iterator[Message]:
        """The messages that are complete, in order; the iteration may be left and begun anew at any point.

        Raises:
            RemoteProtocolError: the next frame is not one.
        """
        self._raise_if_dead()
        while (size := self._next_size()) is not None and len(self._buffer) >= LENGTH_BYTES + size:
            yield self._take(LENGTH_BYTES + size)
            if self._error is not None:
                self._raise_if_dead()

    def end(self) -> None:
        """Say that the stream has ended.

        Raises:
            RemoteProtocolError: it has ended inside a frame, or the decoder is dead.
        """
        self._raise_if_dead()
        if self._buffer:
            size = self._next_size()
            whole = "length" if size is None else f"{LENGTH_BYTES + size} bytes"
            self._fail(RemoteProtocolError(f"the stream ends {len(self._buffer)} bytes into a frame's {whole}"))

    def _next_size(self) -> int | None:
        """The size of the frame that the buffer begins with, None while that is not known."""
        if len(self._buffer) < LENGTH_BYTES:
            return None
        (size,) = _LENGTH.unpack_from(self._buffer)
        if not 0 < size <= self.max_frame_bytes:
            self._refuse_size(size)
        return int(size)

    def _refuse_size(self, size: int) -> NoReturn:
        if size == 0:
            self._fail(RemoteProtocolError("frame of length 0"))
        else:
            is_http = self._buffer.startswith(_HTTP_STARTS)
            hint = "these bytes look like HTTP, which has a port of its own" if is_http else None
            message = f"a frame announces {size} bytes, over the limit of {self.max_frame_bytes}"
            self._fail(RemoteProtocolError(message, hint=hint))

    def _take(self, end: int) -> Message:
        """Remove the frame that the buffer begins with, up to `end`, and decode it."""
        try:
            # The view is gone before the buffer changes. After an error its traceback may hold it; then the buffer is
            # another one.
            message = from_wire(_unpack(memoryview(self._buffer)[LENGTH_BYTES:end]))
        except RemoteProtocolError as error:
            self._fail(error)
        del self._buffer[:end]
        return message

    def _raise_if_dead(self) -> None:
        if self._error is not None:
            # Without its traceback, which would grow with every raise.
            raise self._error.with_traceback(None)

    def _fail(self, error: RemoteProtocolError) -> NoReturn:
        self._error = error
        self._buffer = bytearray()
        raise error


def _unpack(body: memoryview) -> Any:
    try:
        return msgpack.unpackb(body, use_list=False, strict_map_key=False, object_pairs_hook=_refuse_map)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"frame is not msgpack: {error}") from error


def _refuse_map(pairs: Any) -> NoReturn:
    raise ValueError("a map, and there are only arrays")
