"""Sessions of purpose `observe`: they read the stream of any node, for debugging, and count for nothing."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.node.errors import LogTrimmed
from kvnode.node.replication.alarm import Alarm
from kvnode.node.replication.link import HIGH_WATER_BYTES, PeerLink
from kvnode.node.replication.ports import RecordReader, Shared
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.follow import is_prefix
from kvnode.protocol.messages import Entries, HistoryFrame, Message, Ping, Status, Subscribe
from kvnode.protocol.session import Heartbeat, Timing
from kvnode.protocol.types import Seq

#: Payload bytes of one ENTRIES frame.
_FRAME_BYTES = 256 * 1024

#: It may be silent for ever, and is dropped when it takes nothing for a while. It is sent fewer PINGs than a replica:
#: people read them.
_TIMING = Timing(ping_s=5.0, silence_s=float("inf"))


class Observer:
    """One observer. Implements `LinkOwner`.

    It pins nothing: entries that are dropped from the log before it has taken them end its session.
    """

    def __init__(
        self,
        shared: Shared,
        link: PeerLink,
        members: Callable[[], tuple[Member, ...]],
        answer_status: Callable[[PeerLink, Status], None],
        on_end: Callable[[Observer], None],
    ) -> None:
        """Its HELLO was answered with WELCOME."""
        self._shared = shared
        self._link = link
        self._members = members
        self._answer_status = answer_status
        self._on_end = on_end
        self._sent_seq: Seq | None = None
        self._reading = False
        self._ended = False
        self._reader: RecordReader | None = None
        self._heartbeat = Heartbeat(_TIMING, shared.loop.time())
        self._alarm = Alarm(shared.loop, self._tick)
        self._alarm.set(self._heartbeat.wake_at)

    def published(self) -> None:
        """There are new entries."""
        self._send_on()

    def log_replaced(self) -> None:
        """The log is another one now."""
        self._link.refuse("history_changed", "this node's data were replaced by a full sync; observe it anew")

    # ---- LinkOwner -----------------------------------------------------------------------------------------------

    def link_made(self, link: PeerLink) -> None:
        raise AssertionError("an observer begins on a link that is there")

    def frame_received(self, link: PeerLink, message: Message) -> None:
        match message:
            case Subscribe():
                self._subscribe(message)
            case Status():
                self._answer_status(link, message)
            case Ping():
                pass
            case _:
                link.refuse("protocol_error", f"{message.TYPE.name} is not what an observer sends")
        if link.held_bytes >= HIGH_WATER_BYTES:
            # It asks for more than it takes.
            link.pause_reading()

    def link_drained(self, link: PeerLink) -> None:
        link.resume_reading()
        self._send_on()

    def peer_finished(self, link: PeerLink) -> bool:
        return True

    def link_lost(self, link: PeerLink, reason: str) -> None:
        self._ended = True
        self._alarm.cancel()
        if self._reader is not None:
            self._shared.log_reads.submit(self._reader.close, lambda _: None, self._failed)
        self._on_end(self)

    # ---- streaming -----------------------------------------------------------------------------------------------

    def _subscribe(self, message: Subscribe) -> None:
        link, store, position = self._link, self._shared.store, message.position
        if self._sent_seq is not None:
            link.refuse("protocol_error", "SUBSCRIBE came twice")
            return
        first_seq, last_seq = store.extent
        if position.epoch and not is_prefix(store.history, last_seq, position):
            link.refuse("history_lost", f"{position} is not in this node's history")
            return
        if position.seq + 1 < first_seq:
            link.refuse("log_trimmed", _trimmed(position.seq + 1, first_seq))
            return
        link.send(HistoryFrame(store.history, self._members()))
        self._sent_seq = position.seq
        self._send_on()

    def _send_on(self) -> None:
        """Send what is there until the transport is full; the log's files are read on a worker."""
        store = self._shared.store
        while not (self._ended or self._reading or self._sent_seq is None):
            last_seq = store.applied.seq
            if self._sent_seq >= last_seq or self._link.held_bytes >= HIGH_WATER_BYTES or not self._link.is_open:
                return
            recent = self._shared.tail.read(self._sent_seq + 1, last_seq, _FRAME_BYTES)
            if recent is None:
                self._read(self._sent_seq + 1, last_seq)
                return
            self._send(recent.records)

    def _send(self, records: tuple[LogRecord, ...]) -> None:
        assert self._sent_seq is not None
        self._sent_seq += len(records)
        self._link.send(Entries(records))

    def _read(self, first_seq: Seq, last_seq: Seq) -> None:
        reader = self._reader
        if reader is None:
            reader = self._reader = self._shared.store.read_log()
        self._reading = True
        self._shared.log_reads.submit(
            lambda: reader.read(first_seq, last_seq, _FRAME_BYTES), lambda found: self._take(found[0]), self._failed
        )

    def _take(self, records: tuple[LogRecord, ...]) -> None:
        self._reading = False
        if not self._ended:
            self._send(records)
            self._send_on()

    def _failed(self, error: BaseException) -> None:
        self._reading = False
        if isinstance(error, LogTrimmed) and self._sent_seq is not None:
            self._link.refuse("log_trimmed", _trimmed(self._sent_seq + 1, self._shared.store.extent.first_seq))
        else:
            self._link.refuse("log_damaged", str(error))

    def _tick(self) -> None:
        now = self._shared.loop.time()
        self._heartbeat.progressed(self._link.progress, now)
        if self._heartbeat.ping_due(now):
            self._link.send(Ping(self._shared.store.applied.seq, self._shared.clock.now_ms()))
        dead = self._heartbeat.dead(now)
        if dead is not None:
            self._link.abort(dead.message)
            return
        self._alarm.set(self._heartbeat.wake_at)


def _trimmed(wanted_seq: Seq, first_seq: Seq) -> str:
    return f"entry {wanted_seq} is gone from this node's log, which begins at {first_seq}"
