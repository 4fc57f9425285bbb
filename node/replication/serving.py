"""Sessions of purposes `client` and `probe`, and of whoever asks a node for what it cannot do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from kvnode.node.api import Acks, StoreApi, WriteResult
from kvnode.node.errors import InvalidRequest, NotPrimary
from kvnode.node.replication.alarm import Alarm
from kvnode.node.replication.errorfields import encode_error_fields
from kvnode.node.replication.link import HIGH_WATER_BYTES, PeerLink
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.reading import SessionReads
from kvnode.node.rest.body import check_value
from kvnode.protocol.codec import encode_trusted
from kvnode.protocol.errors import KvError
from kvnode.protocol.messages import FrameType, Message, Ping, Read, Status, Subscribe, Write
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.session import Heartbeat, Timing
from kvnode.protocol.types import Epoch, Op, Put

#: It may be silent for ever, and is dropped when it takes none of its answers for a while.
_TIMING = Timing(ping_s=float("inf"), silence_s=float("inf"))


class ClientSession:
    """A client or a probe. Implements `LinkOwner`."""

    def __init__(
        self,
        shared: Shared,
        link: PeerLink,
        store: StoreApi,
        write: Callable[[Sequence[Op], Acks], asyncio.Future[WriteResult]],
        answer_status: Callable[[PeerLink, Status], None],
        why_not_primary: Callable[[], str | None],
    ) -> None:
        """Its HELLO was answered with WELCOME.

        Args:
            store: what is read.
            write: orders a write here, for a node that is the primary.
            why_not_primary: why this node takes no WRITE and no SUBSCRIBE; None = it does.
        """
        self.link = link
        self._shared = shared
        self._write = write
        self._answer_status = answer_status
        self._why_not_primary = why_not_primary
        #: writes that were taken and are not answered
        self._unanswered = 0
        self._reads = SessionReads(shared, link, store, self._read_answered)
        self._finished = False
        self._heartbeat = Heartbeat(_TIMING, shared.loop.time())
        self._alarm = Alarm(shared.loop, self._tick)

    def link_made(self, link: PeerLink) -> None:
        raise AssertionError("a session begins on a link that is there")

    def frame_received(self, link: PeerLink, message: Message) -> None:
        match message:
            case Read():
                self._reads.take(message)
            case Write():
                self._take_write(message)
            case Ping():
                link.send(Ping(self._shared.store.applied.seq, self._shared.clock.now_ms()))
            case Status():
                self._answer_status(link, message)
            case Subscribe():
                why = self._why_not_primary()
                if why is None:
                    link.refuse("protocol_error", "SUBSCRIBE is for the purposes replica and observe")
                else:
                    link.refuse("not_primary", why)
            case _:
                link.refuse("protocol_error", f"{message.TYPE.name} is not what such a session sends")
        if link.held_bytes >= HIGH_WATER_BYTES:
            # It asks for more than it takes.
            link.pause_reading()
            self._tick()
        elif self._reads.is_crowded:
            link.pause_reading()

    def link_drained(self, link: PeerLink) -> None:
        self._reads.go_on()
        if not self._reads.is_crowded:
            link.resume_reading()

    def peer_finished(self, link: PeerLink) -> bool:
        self._finished = True
        return not self._is_done

    def link_lost(self, link: PeerLink, reason: str) -> None:
        """Writes that were taken go on; nobody is told of them."""
        self._alarm.cancel()
        self._reads.stop()

    def _tick(self) -> None:
        """While answers wait to be taken, see whether any is."""
        now = self._shared.loop.time()
        self._heartbeat.progressed(self.link.progress, now)
        dead = self._heartbeat.dead(now)
        if dead is not None:
            self.link.abort(dead.message)
        elif self._heartbeat.pending_bytes:
            self._alarm.set(self._heartbeat.wake_at)

    def _take_write(self, frame: Write) -> None:
        try:
            why = self._why_not_primary()
            if why is not None:
                raise NotPrimary(why)
            _check_ops(frame.ops)
            acks = Acks(frame.acks, frame.ack_timeout_ms / 1000)
            future = self._write(frame.ops, acks)
        except KvError as error:
            self.link.send(_refusal(frame.request_id, error))
            return
        self._unanswered += 1
        future.add_done_callback(lambda done: self._answer(frame.request_id, done))

    def _answer(self, request_id: int, done: asyncio.Future[WriteResult]) -> None:
        self._unanswered -= 1
        if not done.cancelled():
            self._send_outcome(request_id, done)
        self._close_if_done()

    def _read_answered(self) -> None:
        if self.link.held_bytes >= HIGH_WATER_BYTES:
            # It may have sent its last frame, and take none of its answers.
            self._tick()
        elif not self._reads.is_crowded:
            self.link.resume_reading()
        self._close_if_done()

    @property
    def _is_done(self) -> bool:
        """Whether the other side has all its answers."""
        return not self._unanswered and not self._reads.unanswered

    def _close_if_done(self) -> None:
        if self._finished and self._is_done:
            self.link.close("the other side has its answers")

    def _send_outcome(self, request_id: int, done: asyncio.Future[WriteResult]) -> None:
        error = done.exception()
        if error is None:
            (epoch, seq), deleted = done.result()
            self.link.send_bytes(
                encode_trusted(FrameType.WRITE_RESULT, request_id, epoch, seq, deleted, None, None, None)
            )
        elif isinstance(error, KvError):
            self.link.send(_refusal(request_id, error))
        else:
            self._shared.log.error("forwarded_write_failed", error=error, address=self.link.peer)
            self.link.send(WriteResultFrame(request_id, Epoch(0), 0, 0, "internal", "the primary failed", None))


def _check_ops(ops: tuple[Op, ...]) -> None:
    """Whoever speaks this protocol may send any bytes; what is stored must be what REST can give back.

    Raises:
        InvalidRequest: a key is not UTF-8, a value is not JSON, or something of a later version is in it.
    """
    for op in ops:
        try:
            op.key.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest("key", "a key is not UTF-8") from None
        if isinstance(op, Put):
            if op.expires_ms:
                raise InvalidRequest("expires_ms", "this version stores nothing that expires")
            check_value(op.value)


def _refusal(request_id: int, error: KvError) -> WriteResultFrame:
    fields = error.fields
    seq = fields.get("seq", 0)
    epoch = Epoch.parse(fields["epoch"]) if seq and "epoch" in fields else Epoch(0)
    return WriteResultFrame(
        request_id,
        epoch,
        seq if epoch else 0,
        0,
        error.code,
        error.message,
        encode_error_fields(error),
    )
