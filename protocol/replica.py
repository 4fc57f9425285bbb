"""The replica's side, as a state machine: one for as long as the node follows the same primary, over all sessions.

    state       what holds in it                                                    left when
    waiting     there is no connection; the next attempt is at `retry_at`           it is time
    connecting  a connection is being made, or WELCOME is awaited                   WELCOME came
    preparing   WELCOME came; before SUBSCRIBE can be sent, work of an earlier      no work is left
                session has to end, or entries that diverged are moved aside
    following   SUBSCRIBE was sent; what comes is checked, queued, and worked off   the session ends
    closing     the shell was told to close; frames are ignored                     it says that it has
    stopped     the primary sends what this version cannot apply: for good

What is streamed is checked as it arrives, by `reception`, and becomes work for the disk, of which one piece is under
way at a time. A lost session drops what waits; the piece under way goes on, and the next SUBSCRIBE waits for it.

What the replica promises by an ACK of `durable` n: its log is a prefix of the primary's and durable up to n, and stays
so until a primary's history says otherwise. So a log that has diverged acks nothing, and a full sync that would put
less in the log's place than is known to be common is refused.

What the shell must do is said in `session` and, for each event and instruction, in `replica_events`. Besides: when the
node gets another primary or becomes one, the shell closes the connection, lets work that is under way end, and drops
the machine; a new one begins from what is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.fields import Member
from kvnode.protocol.follow import Diverged, LogExtent, StalePrimary, Verdict, is_prefix, may_follow, position_of
from kvnode.protocol.messages import Ack, Error, Hello, Message, Ping, Role, Subscribe, Welcome
from kvnode.protocol.received import UnsupportedOp
from kvnode.protocol.reception import Phase, Reception
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
from kvnode.protocol.session import (
    CloseSession,
    FrameReceived,
    Heartbeat,
    SendFrame,
    SendPing,
    Ticked,
    Timing,
    TransportProgressed,
)
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Seq
from kvnode.protocol.work import WorkQueue

Instructions: TypeAlias = list[ReplicaInstruction]


class FollowerState(StrEnum):
    """Where a replica is with its primary."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    PREPARING = "preparing"
    FOLLOWING = "following"
    CLOSING = "closing"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class FollowerLimits:
    """What following may cost, and when to try again."""

    #: received and not worked off, before reading stops; the primary's window fits
    backlog_bytes: int = 16 * 1024 * 1024
    #: payload bytes that are appended with one fsync, one frame more at most
    group_bytes: int = 4 * 1024 * 1024
    #: until a connection is made and WELCOME is there, seconds
    connect_s: float = 10.0
    #: the first and the longest pause between attempts, seconds; the half of it is random
    retry_first_s: float = 0.1
    retry_last_s: float = 5.0


@dataclass(frozen=True, slots=True)
class FollowerDisk:
    """What the node has on disk when the machine is made, all of it durable and applied."""

    history: History
    members: tuple[Member, ...]
    #: last entry of the log; also without entries, the log goes on after it
    last_seq: Seq
    #: the latest snapshot of the last full sync, until it is applied; reads and writes are refused until then
    serve_from: Position | None = None
    #: a full sync that was cut
    incoming: Incoming | None = None
    #: whether entries of this very log were moved aside, and the log has not been replaced since
    diverged: bool = False


#: Which answer ends which work.
_ANSWERS: dict[type[ReplicaEvent], type[Work]] = {
    MovedAside: MoveAside,
    HistorySaved: SaveHistory,
    EntriesDurable: AppendEntries,
    EntriesApplied: AppendEntries,
    IncomingBegun: BeginIncoming,
    ChunkStored: StoreChunk,
    IncomingFinished: FinishIncoming,
    IncomingDropped: DropIncoming,
}


class Follower:
    """A node that follows a primary. See the module's first lines for the states.

    Attributes (read only):
        state: where it is with its primary.
        history, members: durable here.
        durable_seq: last entry in the log. Invariant: at least `applied_seq`; falls only when a full sync replaces a
            log that has diverged, and then not below the fork.
        applied_seq: last entry in LevelDB.
        serve_from: until this is applied, LevelDB shows no single state. None = it does.
        incoming: what is there of a full sync.
        diverged: whether the log is known to hold entries that the primary's does not.
        primary_seq: durable at the primary, as far as it said.
        retry_at: when the next attempt is due, in `waiting`.
    """

    def __init__(
        self,
        hello: Hello,
        disk: FollowerDisk,
        now: float,
        *,
        limits: FollowerLimits | None = None,
        timing: Timing | None = None,
    ) -> None:
        """A replica that connects at its first `Ticked`.

        Args:
            hello: what to say first. It names the cluster: a node that joins asks for its id, with the purpose `probe`,
                and makes that durable before it follows anyone.
        """
        assert hello.cluster_id, "a replica follows a primary of its own cluster"
        self.state = FollowerState.WAITING
        self.history = disk.history
        self.members = disk.members
        self.durable_seq = disk.last_seq
        self.applied_seq = disk.last_seq
        self.serve_from = None
        if disk.serve_from is not None and disk.serve_from.seq > disk.last_seq:
            self.serve_from = disk.serve_from
        self.incoming = disk.incoming
        self.diverged = disk.diverged
        self.primary_seq: Seq = 0
        self.retry_at = now
        self._hello = hello
        self._limits = limits or FollowerLimits()
        self._timing = timing or Timing()
        self._attempts = 0
        self._deadline = now
        self._heartbeat = Heartbeat(self._timing, now)
        self._moved_aside: tuple[Position, Seq] | None = None
        self._work = WorkQueue(self._limits.group_bytes)
        # The session.
        self._welcome: Welcome | None = None
        self._reception: Reception | None = None
        self._following_since = now
        self._paused = False

    @property
    def position(self) -> Position:
        """The last durable entry."""
        return position_of(self.history, self.durable_seq)

    @property
    def latest_epoch(self) -> Epoch:
        """The latest that this node has seen anything of."""
        seen = [self.history.current]
        if self.serve_from is not None:
            seen.append(self.serve_from.epoch)
        if self.incoming is not None:
            seen.append(self.incoming.latest.epoch)
        return max(seen)

    @property
    def serving(self) -> bool:
        """Whether reads and writes may be taken: the data show one state of a log that has not diverged."""
        return not self.diverged and self.serve_from is None

    @property
    def connected(self) -> bool:
        """Whether the primary streams to this node."""
        return self._reception is not None and self._reception.phase in (Phase.LOG, Phase.SNAPSHOT)

    @property
    def wake_at(self) -> float:
        """When to step `Ticked`, at the latest; infinite if there is nothing to wait for."""
        match self.state:
            case FollowerState.WAITING:
                return self.retry_at
            case FollowerState.CONNECTING:
                return self._deadline
            case FollowerState.PREPARING | FollowerState.FOLLOWING:
                return self._heartbeat.wake_at
            case _:
                return float("inf")

    def step(self, event: ReplicaEvent, now: float) -> Instructions:
        """Take in what happened; see `session` for the contract."""
        match event:
            case FrameReceived(message):
                self._heartbeat.heard(now)
                return self._receive(message, now) + self._do_next() + self._watch_queue(now)
            case TransportProgressed():
                self._heartbeat.progressed(event, now)
                return []
            case Ticked():
                return self._tick(now)
            case Connected():
                return self._greet(now)
            case Disconnected(reason, random_bits):
                return self._disconnect(reason, random_bits, now)
            case WorkFailed(code, message):
                self._work.end()
                if self.state in (FollowerState.PREPARING, FollowerState.FOLLOWING):
                    return self._close(code, message)
                return self._do_next()
            case _:
                return self._take_answer(event) + self._do_next() + self._watch_queue(now)

    # ---- the session ---------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> Instructions:
        match self.state:
            case FollowerState.WAITING if now >= self.retry_at:
                self.state = FollowerState.CONNECTING
                self._deadline = now + self._limits.connect_s
                return [Connect()]
            case FollowerState.CONNECTING if now >= self._deadline:
                return self._close("connect_timeout", "no answer from the primary", tell=False)
            case FollowerState.PREPARING | FollowerState.FOLLOWING:
                dead = self._heartbeat.dead(now)
                if dead is not None:
                    return self._close(dead.code, dead.message, tell=False)
                if self.connected and now - self._following_since >= self._limits.retry_last_s:
                    self._attempts = 0
                return [SendPing(self.durable_seq)] if self._heartbeat.ping_due(now) else []
            case _:
                return []

    def _greet(self, now: float) -> Instructions:
        if self.state is not FollowerState.CONNECTING:
            return []
        self._heartbeat = Heartbeat(self._timing, now)
        return [SendFrame(self._hello)]

    def _disconnect(self, reason: str, random_bits: int, now: float) -> Instructions:
        self._welcome = self._reception = None
        self._paused = False
        self._work.clear()
        if self.state is FollowerState.STOPPED:
            return []
        report: Instructions = [] if self.state is FollowerState.CLOSING else [ReportError("disconnected", reason)]
        longest_s = min(self._limits.retry_last_s, self._limits.retry_first_s * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, 32)
        self.retry_at = now + longest_s * (0.5 + (random_bits & 0xFFFF_FFFF) / 2.0**33)
        self.state = FollowerState.WAITING
        return report

    def _close(self, code: str, message: str, *, tell: bool = True, for_good: bool = False) -> Instructions:
        self._work.clear()
        self._reception = None
        self.state = FollowerState.STOPPED if for_good else FollowerState.CLOSING
        told: Instructions = [SendFrame(Error(code, message))] if tell else []
        return [*told, CloseSession(code, message, abort=not tell), ReportError(code, message)]

    def _refuse(self, message: str) -> Instructions:
        return self._close("protocol_error", message)

    # ---- from WELCOME to SUBSCRIBE -------------------------------------------------------------------------------

    def _receive(self, message: Message, now: float) -> Instructions:
        if isinstance(message, Error) and self.state is not FollowerState.CLOSING:
            return self._close(message.code, f"the primary says: {message.message}", tell=False)
        match self.state:
            case FollowerState.CONNECTING:
                if not isinstance(message, Welcome):
                    return self._refuse(f"{message.TYPE.name} came instead of WELCOME")
                return self._take_welcome(message, now)
            case FollowerState.PREPARING | FollowerState.FOLLOWING if isinstance(message, Ping):
                self.primary_seq = max(self.primary_seq, message.last_seq)
                return []
            case FollowerState.FOLLOWING:
                return self._follow(message)
            case FollowerState.PREPARING:
                return self._refuse(f"{message.TYPE.name} came before SUBSCRIBE")
            case _:
                return []

    def _take_welcome(self, welcome: Welcome, now: float) -> Instructions:
        hello = self._hello
        if not hello.min_version <= welcome.version <= hello.max_version:
            return self._close("unsupported_version", f"the primary chose version {welcome.version}")
        if welcome.node_id == hello.node_id:
            return self._close("self_join", "this node would follow itself")
        if welcome.cluster_id != hello.cluster_id:
            return self._close("wrong_cluster", f"{welcome.name} belongs to another cluster")
        if welcome.role is not Role.PRIMARY:
            return self._close("not_primary", f"{welcome.name} is no primary")
        self.state = FollowerState.PREPARING
        self._welcome = welcome
        self._following_since = now
        self.primary_seq = welcome.last_seq
        return self._prepare()

    def _prepare(self) -> Instructions:
        """Do what has to be done before SUBSCRIBE, then send it. Asked again after each piece of work."""
        welcome = self._welcome
        assert welcome is not None
        if self._work.under_way is not None:
            return []
        position, floor_seq = self.position, self.durable_seq
        verdict = self._judge(welcome)
        if not isinstance(verdict, StalePrimary):
            # What an older primary says of this log changes nothing.
            self.diverged = isinstance(verdict, Diverged)
        match verdict:
            case StalePrimary():
                # Not the last entry's epoch but the latest that this node has seen: so the primary hears of it.
                position = Position(self.latest_epoch, position.seq)
            case Diverged(fork) if fork.seq < self.durable_seq:
                if self._moved_aside != (fork, self.durable_seq):
                    self._work.add(MoveAside(fork))
                    return []
                floor_seq = fork.seq
            case Diverged():
                # The log is fine, the data under it are not.
                assert self.serve_from is not None
                position = self.serve_from
            case _:
                pass
        incoming = self.incoming
        offered = incoming if incoming is not None and incoming.first.seq >= floor_seq else None
        self._reception = Reception(
            welcome.history,
            self.durable_seq,
            floor_seq=floor_seq,
            must_sync=self.diverged,
            refused=isinstance(verdict, StalePrimary),
            offered=offered,
            stale_incoming=incoming is not None,
        )
        self.state = FollowerState.FOLLOWING
        return [SendFrame(Subscribe(position, offered))]

    def _judge(self, welcome: Welcome) -> Verdict:
        """The verdict, but for how far the primary's log reaches back; of the data under the log, too."""
        latest = self.latest_epoch
        if latest.term > welcome.history.current.term:
            return StalePrimary(latest.term)
        log = LogExtent(1, welcome.last_seq)
        verdict = may_follow(welcome.history, log, self.position, self.history)
        if isinstance(verdict, Diverged) or self.serve_from is None:
            return verdict
        return verdict if is_prefix(welcome.history, welcome.last_seq, self.serve_from) else Diverged(self.position)

    # ---- following -----------------------------------------------------------------------------------------------

    def _follow(self, message: Message) -> Instructions:
        reception = self._reception
        assert reception is not None
        try:
            works = reception.take(message)
        except RemoteProtocolError as error:
            return self._close(error.code, error.message, for_good=isinstance(error, UnsupportedOp))
        for work in works:
            self._work.add(work)
        self.primary_seq = max(self.primary_seq, reception.received_seq)
        return []

    def _watch_queue(self, now: float) -> Instructions:
        """Stop reading when too much waits for the disk, and begin again when half of that is done."""
        if self.state is not FollowerState.FOLLOWING:
            return []
        limit = self._limits.backlog_bytes
        paused = self._work.size > (limit // 2 if self._paused else limit)
        if paused == self._paused:
            return []
        self._paused = paused
        self._heartbeat.set_deaf(paused, now)
        return [PauseReading() if paused else ResumeReading()]

    # ---- work ----------------------------------------------------------------------------------------------------

    def _do_next(self) -> Instructions:
        """Ask for the next piece of work, if none is under way."""
        while (work := self._work.begin()) is not None:
            if work != SaveHistory(self.history, self.members):
                return [work]
            self._work.end()
        return []

    def _take_answer(self, event: ReplicaEvent) -> Instructions:
        work = self._work.under_way
        if not isinstance(work, _ANSWERS[type(event)]):
            raise LocalProtocolError(f"{event} answers nothing, {type(work).__name__} is under way")
        if isinstance(event, EntriesDurable):
            assert isinstance(work, AppendEntries)
            self.durable_seq = work.entries[-1].seq
            self._attempts = 0
            return self._ack()
        match self._work.end():
            case SaveHistory(history, members):
                self.history, self.members = history, members
            case AppendEntries(_, entries):
                self.applied_seq = entries[-1].seq
                assert self.applied_seq == self.durable_seq, "EntriesApplied came before EntriesDurable"
                if self.serve_from is not None and self.applied_seq >= self.serve_from.seq:
                    self.serve_from = None
                # Where more is to be made durable, the ack of that says it soon, too.
                return [] if self._work.appends_next else self._ack()
            case BeginIncoming(incoming, _):
                self.incoming = incoming
            case StoreChunk(records):
                assert self.incoming is not None
                self.incoming = replace(self.incoming, last_key=records[-1][0])
            case FinishIncoming(first, latest, history, members):
                self.history, self.members = history, members
                self.durable_seq = self.applied_seq = first.seq
                self.serve_from = latest if latest.seq > first.seq else None
                self.incoming = None
                self.diverged = False
                return self._ack()
            case DropIncoming():
                self.incoming = None
            case MoveAside(fork):
                self._moved_aside = fork, self.durable_seq
        return self._prepare() if self.state is FollowerState.PREPARING else []

    def _ack(self) -> Instructions:
        """Tell the primary how far this node is, if there is one that may count on it."""
        if self.state is FollowerState.PREPARING:
            return self._prepare()
        if self._reception is None:
            return []
        assert not self.diverged, "a log that has diverged took entries"
        applied = self.applied_seq if self.serving else 0
        return [SendFrame(Ack(self._reception.received_seq, self.durable_seq, applied))]

    def validate(self) -> None:
        """Check the invariants."""
        self._heartbeat.validate()
        assert self.applied_seq <= self.durable_seq, "applied before it was durable"
        assert self.durable_seq == 0 or self.history.epoch_of(self.durable_seq), "entries without a history"
        session = self.state in (FollowerState.PREPARING, FollowerState.FOLLOWING)
        assert (self._reception is not None) is (self.state is FollowerState.FOLLOWING)
        assert not session or self._welcome is not None
        waiting, under_way = self._work.waiting, self._work.under_way
        assert under_way is not None or not waiting, "work waits and none is under way"
        assert session or not waiting, "work waits for a session that ended"
        assert self.serve_from is None or self.applied_seq < self.serve_from.seq
        works = [*([under_way] if under_way else []), *waiting]
        if self._reception is not None:
            self._reception.validate()
            assert self.diverged or not self._reception.must_sync
            if not any(isinstance(work, FinishIncoming) for work in works) and not self.diverged:
                assert self._reception.received_seq >= self.durable_seq, "more is durable than came"
        history = self.history
        for work in works:
            match work:
                case SaveHistory() | FinishIncoming():
                    history = work.history
                case AppendEntries(_, entries):
                    known = all(history.epoch_of(entry.seq) == entry.epoch for entry in entries)
                    assert known, "entries before their history"
                case _:
                    pass
