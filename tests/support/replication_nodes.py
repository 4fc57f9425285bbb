"""The simulation's nodes: shells that execute the machines' instructions on a model disk, and decide nothing.

Each piece of work takes a while. Its effect on the disk comes at one time and the answer at a later one, so a crash
finds work not begun, done in part, or done and not answered.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from kvnode.protocol import primary_events as p
from kvnode.protocol import replica_events as r
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.follow import LogExtent, position_of, reigns_until
from kvnode.protocol.messages import Hello, Message, Ping, Purpose, Role, Welcome
from kvnode.protocol.primary import FeedLimits, ReplicaFeed, ReplicaState
from kvnode.protocol.quorum import AckWaits, Ended, Outcome
from kvnode.protocol.replica import Follower, FollowerDisk, FollowerLimits
from kvnode.protocol.session import (
    CloseSession,
    FrameReceived,
    SendFrame,
    SendPing,
    Ticked,
    Timing,
    TransportProgressed,
)
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import SyncPins
from kvnode.protocol.types import Entry, Epoch, Position, Seq, delete, put
from support.replication_links import Connection, Timeline
from support.replication_truth import Disk, LogEntry, Truth

CLUSTER = b"c" * 16
TIMING = Timing(ping_s=0.5, silence_s=2.0, stall_s=3.0)
FEED_LIMITS = FeedLimits(
    window_bytes=300, window_frames=4, frame_bytes=150, chunk_bytes=12, unsent_bytes=400, lag_s=1.5, tail_s=0.5
)
FOLLOWER_LIMITS = FollowerLimits(backlog_bytes=300, group_bytes=200, connect_s=2.0, retry_last_s=1.0)
#: How long a pin outlives its session, and the bytes it may keep (an entry counts 40).
PIN_HOLD_S = 6.0
PIN_BYTES = 40 * 120

ENCODER = EntryEncoder()


class World:
    """What all nodes of one simulation share.

    Attributes:
        healed: whether network and disks are well from now on.
        cut: pairs of nodes that cannot connect; the lower number first.
        slow: pairs of nodes between which frames take long.
        trace: the last of (time, node, what, detail) that happened, for people.
    """

    def __init__(self, seed: int) -> None:
        self.time = Timeline()
        self.rng = Random(seed)
        self.truth = Truth()
        self.nodes = [Node(self, number) for number in range(3)]
        self.connections: list[Connection] = []
        self.healed = False
        self.cut: set[tuple[int, int]] = set()
        self.slow: set[tuple[int, int]] = set()
        self._trace: deque[tuple[float, int, str, Any]] = deque(maxlen=400)
        #: how often what happened
        self.counts: Counter[str] = Counter()

    def trace(self, node: Node, what: str, detail: Any) -> None:
        """Note what happened."""
        self._trace.append((self.time.now, node.number, what, detail))

    @property
    def story(self) -> str:
        """What happened last, a line each."""
        return "\n".join(f"{time:8.3f} web{number} {what}: {detail}" for time, number, what, detail in self._trace)


class Node:
    """A machine with a disk, on which a process runs or not, as primary or as replica.

    Attributes:
        follows: number of the node that it follows as a replica; None = it is a primary.
        keeps: how many entries its log keeps.
        slow: whether its disk is.
    """

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.member = Member(bytes([number]) * 16, f"web{number}")
        self.disk = Disk()
        self.follows: int | None = None
        self.process: PrimaryProcess | ReplicaProcess | None = None
        self.keeps = 1000
        self.slow = False
        self.full_syncs = 0
        #: counts the disks that were put into it
        self.disks = 0

    def start(self, *, ask_members: bool = False) -> None:
        """Start the process. It finds what is durable, and applies all of the log."""
        assert self.process is None
        self.disk.apply(self.disk.last_seq)
        self.world.trace(self, "start", (self.disk.position, self.disk.history))
        if self.follows is None:
            self.process = PrimaryProcess(self, ask_members=ask_members)
        else:
            self.process = ReplicaProcess(self, self.follows)

    def crash(self) -> None:
        """The process is gone, and what it had not made durable."""
        process, self.process = self.process, None
        self.world.trace(self, "crash", self.disk.position)
        if process is not None:
            process.die()
        self.world.truth.check_holder(self.number, self.disk.position)

    @property
    def known_term(self) -> int:
        """The highest that it has seen."""
        disk = self.disk
        seen = [disk.history.current, Epoch(0)]
        seen += [disk.serve_from.epoch] if disk.serve_from else []
        seen += [disk.incoming.latest.epoch] if disk.incoming else []
        return max(seen).term

    @property
    def serving(self) -> bool:
        """Whether its data are one state of a log that is not known to have diverged."""
        if isinstance(self.process, ReplicaProcess):
            return self.process.machine.serving
        disk = self.disk
        return disk.serve_from is None or disk.applied_seq >= disk.serve_from.seq


class Process:
    """What runs on a node until it dies."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.world = node.world
        self.disk = node.disk
        self.alive = True
        self._ticks: dict[object, float] = {}

    def later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call back, if this process is still alive then."""
        self.world.time.after(delay, self._if_alive, callback, arguments)

    def disk_delay(self) -> float:
        return (0.3 if self.node.slow else 0.004) * self.world.rng.random()

    def watch(self, machine: ReplicaFeed | Follower) -> None:
        """Tick a machine at its `wake_at`."""
        wake_at = machine.wake_at
        if wake_at < self._ticks.get(machine, float("inf")):
            self._ticks[machine] = wake_at
            self.world.time.at(wake_at, self._if_alive, self._tick, (machine, wake_at))

    def _tick(self, machine: Any, wake_at: float) -> None:
        if self._ticks.get(machine) != wake_at:
            return
        del self._ticks[machine]
        if self.world.time.now >= machine.wake_at:
            self.tick(machine)
        else:
            self.watch(machine)

    def tick(self, machine: Any) -> None:
        raise NotImplementedError

    def die(self) -> None:
        self.alive = False

    def _if_alive(self, callback: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.alive:
            callback(*arguments)


class Session:
    """A replica's session on its primary."""

    def __init__(self, connection: Connection, feed: ReplicaFeed) -> None:
        self.connection = connection
        self.feed = feed
        self.snapshot: list[tuple[bytes, Position, bytes]] | None = None
        #: whether the log is promised to reach back to where a full sync began
        self.promised = False
        #: of its node, when the session began
        self.disks = 0


class PrimaryProcess(Process):
    """The shell of a primary."""

    def __init__(self, node: Node, *, ask_members: bool) -> None:
        super().__init__(node)
        world, disk = node.world, node.disk
        term = node.known_term
        if ask_members:
            term = max(each.known_term for each in world.nodes)
        last = disk.position
        epoch = Epoch.of(term + 1, world.rng.getrandbits(32))
        world.truth.begin_reign(epoch, last)
        disk.history = reigns_until(disk.history, last.seq).begin(epoch, last.seq + 1)
        disk.incoming, disk.incoming_data, disk.serve_from = None, {}, None
        if node.member not in disk.members:
            disk.members = (*disk.members, node.member)
        self.waits = AckWaits()
        self.pins = SyncPins(PIN_BYTES, PIN_HOLD_S)
        self.fenced = False
        self._published = disk.last_seq
        self._sessions: list[Session] = []
        self._permit: Session | None = None
        self._permit_queue: list[Session] = []
        self._queued: list[int] = []
        #: of each node, its `Node.disks` when it said how far it is
        self._acked_disks: dict[bytes, int] = {}
        self._committing = False
        self.later(0.3, self._keep_house)

    # ---- writes --------------------------------------------------------------------------------------------------

    def write(self, acks: int) -> None:
        """A client writes something."""
        if self.fenced:
            return
        self._queued.append(acks)
        if not self._committing:
            self._committing = True
            self.later(self.disk_delay(), self._commit)

    def _commit(self) -> None:
        group, self._queued = self._queued, []
        for _ in group:
            self._append()
        # Durable here, and not applied; what dies now leaves writes that nobody was told of.
        self.later(self.disk_delay() / 4, self._publish, group)

    def _append(self) -> None:
        disk, rng = self.disk, self.world.rng
        parent, seq = disk.position, disk.last_seq + 1
        key = b"%c" % rng.choice(b"abcdefghijklmnop")
        op = delete(key) if rng.random() < 0.2 else put(key, b"%d" % seq)
        entry = Entry(seq, disk.history.current, 0, (op,))
        payload = ENCODER.encode(entry)
        ordered = LogEntry(LogRecord(payload_crc(payload), payload), entry)
        self.world.truth.order(parent, ordered)
        disk.log.append(ordered)

    def _publish(self, group: list[int]) -> None:
        disk = self.disk
        now = self.world.time.now
        first = disk.last_seq - len(group) + 1
        disk.apply(disk.last_seq)
        self._published = disk.last_seq
        for seq, acks in enumerate(group, first):
            if acks:
                self._end_waits(self.waits.register(seq, seq, acks, now + 1.0))
        for session in list(self._sessions):
            self.step(session, p.LogAdvanced(disk.last_seq))
        self._committing = False
        if self._queued:
            self._committing = True
            self.later(self.disk_delay(), self._commit)

    def _end_waits(self, ended: list[Ended]) -> None:
        if ended:
            self.waits.validate()
        for each in ended:
            if each.outcome is Outcome.ACKED:
                assert len(each.held_by) >= each.wanted
                holders = {self.node.number}
                # Somebody may have put another disk into a node while its ack was on its way.
                holders |= {at[0] for at in each.held_by if self._acked_disks[at] == self.world.nodes[at[0]].disks}
                position = position_of(self.disk.history, each.seq)
                self.world.truth.report_acked(position, holders)
                self.world.counts["acked writes"] += 1

    def stop_writing(self) -> None:
        """Another primary reigns."""
        self.fenced = True
        self._queued.clear()
        self._end_waits(self.waits.abandon())
        for session in list(self._sessions):
            session.connection.close(self)
            self.lose(session.connection)

    # ---- sessions ------------------------------------------------------------------------------------------------

    @property
    def states(self) -> dict[bytes, str]:
        return {session.feed.member.node_id: session.feed.state for session in self._sessions}

    def receive(self, connection: Connection, message: Message | r.SendSubscribe) -> None:
        if isinstance(message, Hello):
            self._welcome(connection, message)
            return
        session = self._session(connection)
        if session is None:
            return
        if isinstance(message, r.SendSubscribe):
            self.step(session, p.SubscribeReceived(message.position, message.incoming))
        else:
            self.step(session, FrameReceived(message))

    def lose(self, connection: Connection) -> None:
        session = self._session(connection)
        if session is not None:
            self.step(session, p.Disconnected())

    def drained(self, connection: Connection) -> None:
        session = self._session(connection)
        if session is not None and session.feed._heartbeat.pending_bytes:
            self._tell_progress(session)

    def tick(self, machine: ReplicaFeed) -> None:
        for session in self._sessions:
            if session.feed is machine:
                self._tell_progress(session)
                self.step(session, Ticked())
                return

    def die(self) -> None:
        super().die()
        for connection in self.world.connections:
            connection.close(self)
        if self._committing:
            for _ in range(self.world.rng.randrange(len(self._queued) + 1)):
                self._append()

    def _session(self, connection: Connection) -> Session | None:
        return next((each for each in self._sessions if each.connection is connection), None)

    def _welcome(self, connection: Connection, hello: Hello) -> None:
        disk, node = self.disk, self.node
        for session in [each for each in self._sessions if each.feed.member.node_id == hello.node_id]:
            session.connection.close(self)
            self.step(session, p.Disconnected())
        if self.fenced:
            connection.close(self)
            return
        seq = self._published
        connection.direction_from(self).send(
            Welcome(1, CLUSTER, node.member.node_id, node.member.name, Role.PRIMARY, disk.history, seq, ())
        )
        feed = ReplicaFeed(
            Member(hello.node_id, hello.name),
            disk.history,
            LogExtent(disk.first_seq, seq),
            disk.members,
            self.world.time.now,
            pinned_seq=self.pins.pinned_seq(hello.node_id),
            limits=FEED_LIMITS,
            timing=TIMING,
        )
        session = Session(connection, feed)
        session.disks = self.world.nodes[hello.node_id[0]].disks
        self._sessions.append(session)
        self.watch(feed)

    def step(self, session: Session, event: p.PrimaryEvent) -> None:
        """Step a feed and execute what it asks for."""
        feed = session.feed
        instructions = feed.step(event, self.world.time.now)
        feed.validate()
        sent = False
        for instruction in instructions:
            sent |= self._execute(session, instruction)
        if isinstance(event, p.Disconnected):
            self._sessions.remove(session)
        elif self.alive:
            if sent and session in self._sessions:
                self._tell_progress(session)
            self.watch(feed)

    def _tell_progress(self, session: Session) -> None:
        sending = session.connection.direction_from(self)
        self.step(session, TransportProgressed(sending.written, sending.flushed))

    def _execute(self, session: Session, instruction: p.PrimaryInstruction) -> bool:
        world, disk, feed = self.world, self.disk, session.feed
        node_id = feed.member.node_id
        match instruction:
            case SendFrame(message):
                session.connection.direction_from(self).send(message)
                return True
            case SendPing(last_seq):
                session.connection.direction_from(self).send(Ping(last_seq, 0))
                return True
            case CloseSession():
                world.trace(self.node, f"closes {feed.member.name}", instruction)
                session.connection.close(self)
                self.later(0.0, self.lose, session.connection)
            case p.SaveMember(member):
                self.later(self.disk_delay(), self._save_member, session, member)
            case p.ReadLog(first_seq, last_seq, max_bytes):
                self.later(0.001, self._read_log, session, first_seq, last_seq, max_bytes)
            case p.RequestSyncPermit():
                self._permit_queue.append(session)
                self.later(0.0, self._permit_next)
            case p.ReleaseSyncPermit():
                if session in self._permit_queue:
                    self._permit_queue.remove(session)
                if self._permit is session:
                    self._permit = None
                    self.later(0.0, self._permit_next)
            case p.OpenSnapshot(after_key):
                self.later(0.001, self._open_snapshot, session, after_key)
            case p.ReadSnapshot(max_bytes):
                self.later(0.001, self._read_snapshot, session, max_bytes)
            case p.CloseSnapshot():
                assert session.snapshot is not None, "a snapshot that is not open is closed"
                session.snapshot = None
            case p.PinLog(from_seq):
                assert from_seq >= disk.first_seq, f"a pin on {from_seq}, the log begins at {disk.first_seq}"
                self.pins.pin(node_id, from_seq)
            case p.UnpinLog():
                self.pins.unpin(node_id)
            case p.HoldPin():
                self.pins.hold(node_id, world.time.now)
            case p.ReportProgress(durable_seq, _):
                self._check_progress(session, durable_seq)
                self._acked_disks[node_id] = session.disks
                self._end_waits(self.waits.progressed(node_id, durable_seq))
            case p.StepDown(term):
                world.trace(self.node, "steps down", term)
                world.counts["stepped down"] += 1
                self.stop_writing()
            case p.ReportState() | p.RaiseAlarm():
                session.promised &= feed.state is not ReplicaState.STREAMING
                world.trace(self.node, f"{feed.member.name} is", instruction)
        return False

    def _check_progress(self, session: Session, durable_seq: Seq) -> None:
        """What a replica acked is on its disk, unless that was replaced or follows a later primary meanwhile."""
        replica = self.world.nodes[session.feed.member.node_id[0]]
        if session.disks == replica.disks and replica.known_term <= self.disk.history.current.term:
            acked = position_of(self.disk.history, durable_seq)
            holds = self.world.truth.holds(replica.disk.position, acked)
            assert holds, f"{acked} counts as durable on {replica.disk.position}"

    # ---- what feeds ask for --------------------------------------------------------------------------------------

    def _save_member(self, session: Session, member: Member) -> None:
        if member not in self.disk.members:
            self.disk.members = (*self.disk.members, member)
        if session in self._sessions:
            self.step(session, p.MemberSaved(self.disk.members))
        for other in list(self._sessions):
            if other is not session:
                self.step(other, p.MembersChanged(self.disk.members))

    def _read_log(self, session: Session, first_seq: Seq, last_seq: Seq, max_bytes: int) -> None:
        if session not in self._sessions:
            return
        disk = self.disk
        if first_seq < disk.first_seq:
            assert not session.promised, "a full sync is worthless: the log does not reach back to it"
            self.step(session, p.LogReadFailed("it was trimmed", damaged=False))
            return
        records: list[LogRecord] = []
        size = 0
        for (crc, payload), entry in disk.after(first_seq - 1):
            if entry.seq > last_seq or (records and size + len(payload) > max_bytes):
                break
            if entry.seq in disk.damaged:
                if not records:
                    self.step(session, p.LogReadFailed("it is damaged", damaged=True))
                    return
                break
            records.append(LogRecord(crc, payload))
            size += len(payload)
        self.step(session, p.EntriesRead(tuple(records), size))

    def _permit_next(self) -> None:
        if self._permit is None and self._permit_queue:
            self._permit = self._permit_queue.pop(0)
            self.step(self._permit, p.SyncPermitted(self.world.rng.randbytes(16)))

    def _open_snapshot(self, session: Session, after_key: bytes) -> None:
        data = self.disk.data
        session.snapshot = sorted((key, *data[key]) for key in data if key > after_key)
        position = position_of(self.disk.history, self.disk.applied_seq)
        self.step(session, p.SnapshotOpened(position))

    def _read_snapshot(self, session: Session, max_bytes: int) -> None:
        items = session.snapshot
        if session not in self._sessions or items is None:
            return
        count = max(1, max_bytes // 4)
        chunk, session.snapshot = items[:count], items[count:]
        if not self.world.healed and self.world.rng.random() < 0.01:
            self.step(session, p.SnapshotFailed("the disk failed"))
        elif not chunk:
            session.promised = True
            self.step(session, p.SnapshotEnded())
        else:
            records = [SnapshotRecord(key, at.seq, at.epoch, 0, value) for key, at, value in chunk]
            self.step(session, p.SnapshotRead(encode_chunk(records), len(records)))

    def _keep_house(self) -> None:
        """Retention, pins and waits, now and then."""
        now, disk = self.world.time.now, self.disk
        self._end_waits(self.waits.expire(now))
        for node_id in self.pins.lapse(now, lambda seq: (disk.last_seq + 1 - seq) * 40):
            for session in list(self._sessions):
                if session.feed.member.node_id == node_id:
                    session.promised = False
                    self.step(session, p.PinLost())
        first_seq = disk.last_seq + 1 - self.node.keeps
        if self.pins.lowest_seq is not None:
            first_seq = min(first_seq, self.pins.lowest_seq)
        if first_seq > disk.first_seq:
            for session in list(self._sessions):
                self.step(session, p.LogTrimmed(first_seq))
            disk.trim(first_seq)
        self.later(0.3, self._keep_house)


class ReplicaProcess(Process):
    """The shell of a replica."""

    def __init__(self, node: Node, follows: int) -> None:
        super().__init__(node)
        disk, now = node.disk, self.world.time.now
        self.primary = self.world.nodes[follows]
        self.connection: Connection | None = None
        hello = Hello(
            1, 1, CLUSTER, node.member.node_id, self.world.rng.randbytes(16), node.member.name, Purpose.REPLICA, (), b""
        )
        self.machine = Follower(
            hello,
            FollowerDisk(disk.history, disk.members, disk.last_seq, disk.serve_from, disk.incoming),
            now,
            limits=FOLLOWER_LIMITS,
            timing=TIMING,
        )
        #: whether work is under way
        self.working: r.Work | None = None
        self.later(0.3, self._keep_house)
        self.watch(self.machine)

    # ---- the session ---------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, message: Message | r.SendSubscribe) -> None:
        assert not isinstance(message, r.SendSubscribe)
        if connection is self.connection:
            self.step(FrameReceived(message))

    def lose(self, connection: Connection) -> None:
        if connection is self.connection:
            self.connection = None
            self.step(r.Disconnected("the connection ended", self.world.rng.getrandbits(32)))

    def drained(self, connection: Connection) -> None:
        """Nothing that it sends is held back by its own buffer."""

    def tick(self, machine: Follower) -> None:
        if self.connection is not None:
            sending = self.connection.to_server
            self.step(TransportProgressed(sending.written, sending.flushed))
        self.step(Ticked())

    def die(self) -> None:
        super().die()
        if self.connection is not None:
            self.connection.close(self)
        if isinstance(self.working, r.AppendEntries) and self.disk.last_seq + 1 == self.working.entries[0].seq:
            # Some of what was not fsynced may survive.
            self._append(self.working, self.world.rng.randrange(len(self.working.records) + 1))

    def step(self, event: r.ReplicaEvent) -> None:
        """Step the machine and execute what it asks for."""
        machine = self.machine
        instructions = machine.step(event, self.world.time.now)
        machine.validate()
        for instruction in instructions:
            self._execute(instruction)
        if machine.serving and isinstance(event, r.EntriesApplied | r.IncomingFinished):
            self.world.truth.check_data(self.disk)
        self.watch(machine)

    def _execute(self, instruction: r.ReplicaInstruction) -> None:
        connection = self.connection
        match instruction:
            case r.Connect():
                self.later(0.01 * self.world.rng.random(), self._connect)
            case SendFrame(message):
                assert connection is not None
                connection.to_server.send(message)
            case SendPing(last_seq):
                assert connection is not None
                connection.to_server.send(Ping(last_seq, 0))
            case r.SendSubscribe():
                assert connection is not None
                self.world.trace(self.node, "subscribes", instruction)
                connection.to_server.send(instruction)
            case CloseSession():
                self.world.trace(self.node, "closes", instruction)
                if connection is not None:
                    connection.close(self)
                    self.later(0.0, self.lose, connection)
            case r.PauseReading() | r.ResumeReading():
                assert connection is not None
                # Not within this step: a frame that was held would be stepped inside it.
                self.later(0.0, connection.to_client.pause, isinstance(instruction, r.PauseReading))
            case r.ReportError():
                self.world.trace(self.node, "reports", instruction)
            case _:
                self._begin_work(instruction)

    def _connect(self) -> None:
        world = self.world
        server = self.primary.process
        low, high = sorted((self.node.number, self.primary.number))
        if (low, high) not in world.cut and isinstance(server, PrimaryProcess):
            self.connection = Connection(world.time, world.rng, self, server, slow=(low, high) in world.slow)
            world.connections.append(self.connection)
            self.step(r.Connected())
        else:
            self.step(r.Disconnected("nobody answers", world.rng.getrandbits(32)))

    # ---- work ----------------------------------------------------------------------------------------------------

    def _begin_work(self, work: r.Work) -> None:
        assert self.working is None, "two pieces of work at a time"
        self.working = work
        if not self.world.healed and self.world.rng.random() < 0.01:
            self.later(self.disk_delay(), self._fail)
        else:
            self.later(self.disk_delay(), self._work, work)

    def _fail(self) -> None:
        self.working = None
        self.step(r.WorkFailed("storage_full", "the disk is full"))

    def _work(self, work: r.Work) -> None:
        """The work takes effect; the answer comes later."""
        disk, world = self.disk, self.world
        answer: r.ReplicaEvent
        match work:
            case r.AppendEntries():
                self._append(work, len(work.records))
                self.later(self.disk_delay() / 2, self._answer_durable)
                return
            case r.SaveHistory(history, members):
                disk.history, disk.members = history, members
                answer = r.HistorySaved()
            case r.MoveAside(fork):
                self._move_aside(fork)
                answer = r.MovedAside()
            case r.BeginIncoming(incoming, resumed):
                world.trace(self.node, "begins", work)
                world.counts["resumed"] += resumed
                if not resumed:
                    disk.incoming_data = {}
                disk.incoming = incoming
                answer = r.IncomingBegun()
            case r.StoreChunk(records):
                assert disk.incoming is not None
                for record in records:
                    disk.incoming_data[record.key] = (Position(record.epoch, record.seq), record.value)
                disk.incoming = replace(disk.incoming, last_key=records[-1].key)
                answer = r.ChunkStored()
            case r.FinishIncoming(first, latest, history, members):
                world.trace(self.node, "finishes", work)
                disk.data, disk.incoming_data, disk.incoming = disk.incoming_data, {}, None
                disk.log, disk.damaged = [], set()
                disk.first_seq, disk.applied_seq = first.seq + 1, first.seq
                disk.history, disk.members, disk.serve_from = history, members, latest
                world.truth.check_holder(self.node.number, disk.position)
                world.counts["full syncs"] += 1
                self.node.full_syncs += 1
                answer = r.IncomingFinished()
            case r.DropIncoming():
                disk.incoming, disk.incoming_data = None, {}
                answer = r.IncomingDropped()
            case _:
                raise AssertionError(f"unexpected: {work}")
        self.later(self.disk_delay() / 2, self._answer, answer)

    def _append(self, work: r.AppendEntries, count: int) -> None:
        disk = self.disk
        for record, entry in list(zip(work.records, work.entries, strict=True))[:count]:
            added = LogEntry(record, entry)
            assert entry.seq == disk.last_seq + 1, f"entry {entry.seq} is put after {disk.last_seq}"
            self.world.truth.check_append(disk.position, added)
            assert disk.history.epoch_of(entry.seq) == entry.epoch, "an entry before its history"
            disk.log.append(added)

    def _answer_durable(self) -> None:
        self.step(r.EntriesDurable())
        self.later(self.disk_delay() / 2, self._apply)

    def _apply(self) -> None:
        assert isinstance(self.working, r.AppendEntries)
        self.disk.apply(self.working.entries[-1].seq)
        self._answer(r.EntriesApplied())

    def _answer(self, answer: r.ReplicaEvent) -> None:
        self.working = None
        self.step(answer)

    def _move_aside(self, fork: Position) -> None:
        disk, world = self.disk, self.world
        world.trace(self.node, "moves aside after", fork)
        world.counts["moved aside"] += 1
        disk.diverged.append((fork, disk.after(fork.seq)))
        welcome, primary = self.machine._welcome, self.primary.disk
        reigns = isinstance(self.primary.process, PrimaryProcess)
        if reigns and welcome is not None and welcome.history == primary.history:
            world.truth.check_fork(primary.position, disk.position, fork)

    def _keep_house(self) -> None:
        self.disk.trim(self.disk.last_seq + 1 - self.node.keeps)
        self.later(0.3, self._keep_house)
