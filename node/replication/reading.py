"""The reads of one session: what the cache has is answered at once, misses share trips, waits hold up nobody.

What one session can cost is bounded. At most `MOST_MISSES` reads are on their way to LevelDB, and none is begun while
the link holds answers that the other side does not take: further reads stay in a queue, and the session takes no more
frames while there is one. At most `MOST_WAITS` reads wait for an entry to be applied; more are refused, so that the
session can go on with other requests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from kvnode.node.api import ReadToken, Record, StoreApi
from kvnode.node.errors import InvalidRequest, Overloaded, TooLarge
from kvnode.node.replication.errorfields import encode_error_fields
from kvnode.node.replication.link import HIGH_WATER_BYTES, PeerLink
from kvnode.node.replication.ports import Shared
from kvnode.node.rest.errors import ANSWERABLE, answerable
from kvnode.node.rest.params import MAX_WAIT_S
from kvnode.protocol.codec import encode_trusted
from kvnode.protocol.errors import KvError
from kvnode.protocol.messages import FrameType, Read, ReadResult
from kvnode.protocol.types import Epoch, Position

#: Values that a session can make the node hold besides those that the link holds: as many as 64 clients of REST can.
MOST_MISSES = 64

#: Reads of one session that wait for an entry.
MOST_WAITS = 1024

#: What a frame has besides the value: heads and numbers.
_FRAMING_BYTES = 64

_NO_EPOCH = Epoch(0)


class SessionReads:
    """READ frames of one session, each of which gets its READ_RESULT, in the order in which they are done."""

    def __init__(self, shared: Shared, link: PeerLink, store: StoreApi, answered: Callable[[], None]) -> None:
        """Serve reads of `store`, until `stop`.

        Args:
            answered: called after a read that was not answered at once; `unanswered` and `is_crowded` may have changed.
        """
        self._shared = shared
        self._link = link
        self._store = store
        self._answered = answered
        self._most_value_bytes = shared.config.max_frame_bytes - _FRAMING_BYTES
        #: wait for an entry, or are on their way to LevelDB
        self._tasks: set[asyncio.Task[None]] = set()
        self._waits = 0
        self._misses = 0
        #: may be looked up as soon as there is room
        self._ready: deque[Read] = deque()

    @property
    def unanswered(self) -> int:
        """Reads that were taken and are not answered."""
        return len(self._tasks) + len(self._ready)

    @property
    def is_crowded(self) -> bool:
        """Whether reads wait for room, so that no more should be taken."""
        return bool(self._ready)

    def take(self, frame: Read) -> None:
        """Answer, now or later."""
        if frame.min_seq and not self._is_applied(frame):
            self._wait(frame)
        else:
            self._look_up(frame)

    def go_on(self) -> None:
        """Look up what waits, as far as there is room."""
        while self._ready and self._has_room():
            self._look_up(self._ready.popleft())

    def stop(self) -> None:
        """Forget all reads; nobody is told of them."""
        self._ready.clear()
        for task in self._tasks:
            task.cancel()

    # ---- on the way to an answer -----------------------------------------------------------------------------------

    def _is_applied(self, frame: Read) -> bool:
        """Whether what the read has to see is certainly here; `wait_applied` knows the rest."""
        epoch, seq = self._store.applied
        return frame.min_seq <= seq and (not frame.min_epoch or frame.min_epoch == epoch)

    def _wait(self, frame: Read) -> None:
        if frame.wait_ms > MAX_WAIT_S * 1000:
            self._refuse(frame, InvalidRequest("wait_ms", f"wait_ms must be at most {MAX_WAIT_S * 1000:.0f}"))
        elif self._waits >= MOST_WAITS:
            message = "too many reads of this session wait for an entry"
            self._refuse(frame, Overloaded(message, limit="waiting_reads", max=MOST_WAITS))
        else:
            self._waits += 1
            self._begin(self._finish_wait(frame))

    async def _finish_wait(self, frame: Read) -> None:
        token = ReadToken(frame.min_seq, frame.min_epoch or None, frame.wait_ms / 1000)
        try:
            await self._store.wait_applied(token)
        except Exception as error:
            self._refuse(frame, error)
        else:
            self._look_up(frame)
        finally:
            self._waits -= 1

    def _look_up(self, frame: Read) -> None:
        if self._link.held_bytes >= HIGH_WATER_BYTES:
            self._ready.append(frame)
            return
        record = self._store.cached(frame.key)
        if record is not None:
            self._send(frame, record, self._store.applied)
        elif self._misses >= MOST_MISSES:
            self._ready.append(frame)
        else:
            try:
                self._check_key(frame.key)
            except KvError as error:
                self._refuse(frame, error)
                return
            self._misses += 1
            self._begin(self._finish_miss(frame))

    async def _finish_miss(self, frame: Read) -> None:
        try:
            record, applied = await self._store.read(frame.key)
            self._send(frame, record, applied)
        except Exception as error:
            self._refuse(frame, error)
        finally:
            self._misses -= 1

    def _has_room(self) -> bool:
        return self._misses < MOST_MISSES and self._link.held_bytes < HIGH_WATER_BYTES

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self.go_on()
            self._answered()

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _send(self, frame: Read, record: Record | None, applied: Position) -> None:
        request_id, (applied_epoch, applied_seq) = frame.request_id, applied
        if record is None:
            self._link.send(ReadResult(request_id, _NO_EPOCH, 0, None, applied_epoch, applied_seq, None, None, None))
            return
        (epoch, seq), _, value = record
        if len(value) > self._most_value_bytes:
            # One of today's limits fits a frame; one of a time with other limits may not.
            self._refuse(frame, TooLarge("max_frame_bytes", self._most_value_bytes, len(value)))
            return
        self._link.send_bytes(
            encode_trusted(
                FrameType.READ_RESULT, request_id, epoch, seq, value, applied_epoch, applied_seq, None, None, None
            )
        )

    def _refuse(self, frame: Read, error: Exception) -> None:
        told = answerable(error)
        if not isinstance(error, ANSWERABLE):
            # With a traceback only if nobody raised it on purpose.
            bug = None if isinstance(error, KvError) else error
            self._shared.log.error("read_failed", error=bug, address=self._link.peer, reason=told.message)
        self._link.send(
            ReadResult(
                frame.request_id, _NO_EPOCH, 0, None, _NO_EPOCH, 0, told.code, told.message, encode_error_fields(told)
            )
        )

    def _check_key(self, key: bytes) -> None:
        """What no record can have as its key is a mistake, as it is to REST.

        Raises:
            InvalidRequest, TooLarge.
        """
        maximum = self._shared.config.max_key_bytes
        if len(key) > maximum:
            raise TooLarge("max_key_bytes", maximum, len(key))
        try:
            key.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest("key", "a key is not UTF-8") from None
