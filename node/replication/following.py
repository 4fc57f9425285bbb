"""The shell of a node that follows a primary: executes what `Follower` asks for, and decides nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable

from kvnode.node.config import Address
from kvnode.node.errors import StorageFull
from kvnode.node.metrics import PrimaryMeasures
from kvnode.node.replication.alarm import Alarm
from kvnode.node.replication.connecting import connect
from kvnode.node.replication.link import PeerLink
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.replicadisk import ReplicaDisk
from kvnode.protocol.messages import MAX_VERSION, MIN_VERSION, Hello, Message, Ping, Purpose, Welcome
from kvnode.protocol.replica import Follower, FollowerDisk, FollowerState
from kvnode.protocol.replica_events import (
    AppendEntries,
    BeginIncoming,
    ChunkStored,
    Connect,
    Connected,
    Disconnected,
    DropIncoming,
    EntriesApplied,
    EntriesDurable,
    FinishIncoming,
    HistorySaved,
    IncomingBegun,
    IncomingDropped,
    IncomingFinished,
    MoveAside,
    MovedAside,
    PauseReading,
    ReplicaEvent,
    ReplicaInstruction,
    ReportError,
    ResumeReading,
    SaveHistory,
    StoreChunk,
    Work,
    WorkFailed,
)
from kvnode.protocol.session import CloseSession, FrameReceived, SendFrame, SendPing, Ticked
from kvnode.protocol.types import Seq

#: The same trouble with the primary is logged again after this long.
_REPEAT_LOG_S = 60.0


def replica_hello(shared: Shared, purpose: Purpose) -> Hello:
    """What this node says first to its primary."""
    return Hello(
        min_version=MIN_VERSION,
        max_version=MAX_VERSION,
        cluster_id=shared.cluster_id,
        node_id=shared.node_id,
        boot_id=shared.boot_id,
        name=shared.identity.name,
        purpose=purpose,
        features=(),
        auth=b"",
        address=shared.address,
    )


class Following:
    """A node that follows one primary, over all connections to it. Implements `LinkOwner`.

    Attributes:
        machine: the state machine.
        last_error: (code, message) of what went wrong last with the primary; None once entries flow.
        was_connected: whether the primary has ever streamed to this node.
    """

    def __init__(
        self,
        shared: Shared,
        disk: ReplicaDisk,
        found: FollowerDisk,
        primary: Address,
        on_streamed: Callable[[bytes], None],
        on_error: Callable[[str, str], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Follow; the first attempt begins in the next turn of the loop.

        Args:
            found: what is on the disk.
            on_streamed: told the primary's node id in each session, once entries may flow.
            on_error: told of each failed attempt to follow, with a code and a message.
            on_failure: told once when the disk fails in a way after which the process must end.
        """
        self.last_error: tuple[str, str] | None = None
        self.was_connected = False
        self._shared = shared
        self._disk = disk
        self._primary = primary
        self._on_streamed = on_streamed
        self._on_error = on_error
        self._on_failure = on_failure
        self._loop = shared.loop
        self.machine = Follower(replica_hello(shared, Purpose.REPLICA), found, self._loop.time())
        self._events: deque[ReplicaEvent] = deque()
        self._stepping = False
        self._link: PeerLink | None = None
        #: who has answered HELLO, until it streams
        self._greeted_by: bytes | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._serving: bool | None = None
        self._stopping = False
        self._working = asyncio.Event()
        self._working.set()
        self._logged: tuple[str, float] | None = None
        #: when this node was last level with what the primary had said
        self._began_at = self._level_at = self._loop.time()
        self._task: asyncio.Task[None] | None = None
        self._alarm = Alarm(self._loop, self._tick)
        self._alarm.set(self._loop.time())
        self._show_serving()

    # ---- what others ask -----------------------------------------------------------------------------------------

    @property
    def lag_entries(self) -> int:
        """How many entries the primary is known to have that are not applied here."""
        return max(0, self.machine.primary_seq - self._shared.store.applied.seq)

    @property
    def lag_s(self) -> float:
        """For how long this node has lacked something that the primary is known to have."""
        return self._loop.time() - self._level_at if self.lag_entries else 0.0

    @property
    def age_s(self) -> float:
        """For how long this node has followed, or tried to."""
        return self._loop.time() - self._began_at

    @property
    def link_address(self) -> str:
        """Of the primary, as the operator gave it."""
        return str(self._primary)

    @property
    def measures(self) -> PrimaryMeasures:
        """What a scrape is told of the primary."""
        counters = self._shared.counters
        received_bytes = counters.received_bytes + (0 if self._link is None else self._link.received)
        return PrimaryMeasures(
            self.machine.connected, self.lag_entries, self.lag_s, counters.primary_connections, received_bytes
        )

    def published(self, seq: Seq) -> None:
        """Entries became visible here."""
        if seq >= self.machine.primary_seq:
            self._level_at = self._loop.time()

    async def stop(self) -> None:
        """Follow no more: close the connection, and let the work that is under way end."""
        self._stopping = True
        self._alarm.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.close("this node stops following")
        await self._working.wait()

    # ---- LinkOwner -----------------------------------------------------------------------------------------------

    def link_made(self, link: PeerLink) -> None:
        """The connection attempt says so itself."""

    def frame_received(self, link: PeerLink, message: Message) -> None:
        if link is self._link:
            if isinstance(message, Welcome):
                self._greeted_by = message.node_id
            self._step(FrameReceived(message))

    def link_drained(self, link: PeerLink) -> None:
        if link is self._link:
            self._step(link.progress)

    def peer_finished(self, link: PeerLink) -> bool:
        return False

    def link_lost(self, link: PeerLink, reason: str) -> None:
        if link is self._link:
            self._link = None
            self._shared.counters.received_bytes += link.received
            self._step(Disconnected(reason, secrets.randbits(32)))

    # ---- the machine ---------------------------------------------------------------------------------------------

    def _step(self, event: ReplicaEvent) -> None:
        """Tell the machine, and execute what it asks for; in order, and never from inside a step."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        machine, events, now = self.machine, self._events, self._loop.time()
        try:
            while events and not self._stopping:
                for instruction in machine.step(events.popleft(), now):
                    self._execute(instruction)
        finally:
            self._stepping = False
        self._show_serving()
        self.was_connected |= machine.connected
        if self._stopping:
            return
        self._alarm.set(machine.wake_at)
        if machine.connected and self._greeted_by is not None:
            primary_id, self._greeted_by = self._greeted_by, None
            self._on_streamed(primary_id)

    def _tick(self) -> None:
        if self._stopping:
            return
        if self._loop.time() < self.machine.wake_at:
            self._alarm.set(self.machine.wake_at)
            return
        if self._link is not None:
            self._step(self._link.progress)
        self._step(Ticked())

    def _show_serving(self) -> None:
        """Tell the store when what it may serve changes."""
        machine = self.machine
        if machine.serving is self._serving:
            return
        self._serving = machine.serving
        if machine.serving:
            self._shared.store.hold_back(None)
        elif machine.diverged:
            self._shared.store.hold_back("this node's log has diverged from its primary's; a full sync replaces it")
        else:
            self._shared.store.hold_back("this node has not replayed the log behind its last full sync yet")

    def _execute(self, instruction: ReplicaInstruction) -> None:
        link = self._link
        match instruction:
            case SendFrame(message):
                if link is not None:
                    link.send(message)
            case SendPing(last_seq):
                if link is not None:
                    link.send(Ping(last_seq, self._shared.clock.now_ms()))
            case PauseReading():
                if link is not None:
                    link.pause_reading()
            case ResumeReading():
                if link is not None:
                    link.resume_reading()
            case Connect():
                self._connecting = self._loop.create_task(self._connect())
            case CloseSession(code, message, abort):
                self._close(f"{code}: {message}", abort=abort)
            case ReportError(code, message):
                self._report(code, message)
            case _:
                self._work(instruction)

    async def _connect(self) -> None:
        shared = self._shared
        try:
            link = await connect(self._primary, lambda: PeerLink(self, shared.config.max_frame_bytes, stranger=False))
        except (OSError, UnicodeError) as error:
            # A UnicodeError is what Python says of a name that no host can have.
            self._connecting = None
            self._step(Disconnected(f"cannot connect: {error}", secrets.randbits(32)))
            return
        self._connecting = None
        self._link = link
        shared.counters.primary_connections += 1
        self._step(Connected())

    def _close(self, reason: str, *, abort: bool) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
            self._events.append(Disconnected(reason, secrets.randbits(32)))
        elif self._link is not None:
            if abort:
                self._link.abort(reason)
            else:
                self._link.close(reason)

    def _report(self, code: str, message: str) -> None:
        self.last_error = (code, message)
        now = self._loop.time()
        if self._logged is None or self._logged[0] != code or now >= self._logged[1] + _REPEAT_LOG_S:
            self._logged = (code, now)
            self._shared.log.warning("following_failed", primary=self._primary, code=code, reason=message)
        self._on_error(code, message)

    # ---- work ----------------------------------------------------------------------------------------------------

    def _work(self, work: Work) -> None:
        """Have a piece of work done; one is under way at a time."""
        self._working.clear()
        if isinstance(work, AppendEntries):
            future = self._shared.store.append(work.records, work.entries, lambda: self._step(EntriesDurable()))
            future.add_done_callback(self._appended)
            return
        self._task = self._loop.create_task(self._do(work))

    def _appended(self, future: asyncio.Future[None]) -> None:
        error = future.exception()
        if error is None:
            if self.last_error is not None and self.machine.state is FollowerState.FOLLOWING:
                self.last_error = self._logged = None
                self._shared.log.info("following", primary=self._primary, seq=self._shared.store.applied.seq)
            self._answer(EntriesApplied())
        else:
            self._work_failed(error)

    async def _do(self, work: Work) -> None:
        try:
            answer = await self._outcome(work)
        except Exception as error:
            self._work_failed(error)
            return
        self._answer(answer)

    async def _outcome(self, work: Work) -> ReplicaEvent:
        disk = self._disk
        match work:
            case SaveHistory(history, members):
                await disk.save_history(history, members)
                return HistorySaved()
            case MoveAside(fork):
                await disk.move_aside(fork, self.machine.position)
                return MovedAside()
            case BeginIncoming(incoming, resumed):
                await disk.begin_incoming(incoming, resumed=resumed)
                return IncomingBegun()
            case StoreChunk(records):
                await disk.store_chunk(records)
                return ChunkStored()
            case FinishIncoming():
                await disk.finish_incoming(work)
                return IncomingFinished()
            case DropIncoming():
                await disk.drop_incoming()
                return IncomingDropped()
            case AppendEntries():
                raise AssertionError("entries go through the store")

    def _answer(self, event: ReplicaEvent) -> None:
        self._working.set()
        self._step(event)

    def _work_failed(self, error: BaseException) -> None:
        self._working.set()
        if isinstance(error, StorageFull):
            self._step(WorkFailed(error.code, error.message))
        elif not self._stopping:
            self._on_failure(error)
