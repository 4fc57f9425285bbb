"""The shell of a simulated primary: it executes what its feeds ask for on a model disk, and decides nothing.

Each piece of work takes a while. Its effect on the disk comes at one time and the answer at a later one, so a crash
finds work not begun, done in part, or done and not answered.
"""

from __future__ import annotations

from kvnode.protocol import primary_events as p
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.follow import LogExtent, position_of, reigns_until
from kvnode.protocol.messages import Hello, Message, Ping, Role, Welcome
from kvnode.protocol.primary import FeedLimits, ReplicaFeed, ReplicaState
from kvnode.protocol.quorum import AckWaits, Ended, Outcome
from kvnode.protocol.session import CloseSession, FrameReceived, SendFrame, SendPing, Ticked, TransportProgressed
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import SyncPins
from kvnode.protocol.types import Entry, Epoch, Position, Seq, delete, put
from support.replication_links import Connection
from support.replication_truth import LogEntry
from support.replication_world import CLUSTER, TIMING, Node, Process

LIMITS = FeedLimits(
    window_bytes=300, window_frames=4, frame_bytes=150, chunk_bytes=12, unsent_bytes=400, lag_s=1.5, tail_s=0.5
)
#: How long a pin outlives its session, and the bytes it may keep (an entry counts 40).
PIN_HOLD_S = 6.0
PIN_BYTES = 40 * 120

ENCODER = EntryEncoder()


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
        disk.save_member(node.member)
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

    def receive(self, connection: Connection, message: Message) -> None:
        if isinstance(message, Hello):
            self._welcome(connection, message)
            return
        session = self._session(connection)
        if session is not None:
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
            Member(hello.node_id, hello.name, hello.address),
            disk.history,
            LogExtent(disk.first_seq, seq),
            disk.members,
            self.world.time.now,
            pinned_seq=self.pins.pinned_seq(hello.node_id),
            limits=LIMITS,
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
        """What a replica acked is on its disk, unless that was replaced or follows another primary meanwhile.

        Two primaries that the operator had at a time may reign with the same term.
        """
        replica = self.world.nodes[session.feed.member.node_id[0]]
        own, theirs = self.disk.history.current, replica.disk.history.current
        is_rivals = theirs.term == own.term and theirs != own
        if session.disks == replica.disks and replica.known_term <= own.term and not is_rivals:
            acked = position_of(self.disk.history, durable_seq)
            holds = self.world.truth.holds(replica.disk.position, acked)
            assert holds, f"{acked} counts as durable on {replica.disk.position}"

    # ---- what feeds ask for --------------------------------------------------------------------------------------

    def _save_member(self, session: Session, member: Member) -> None:
        if session not in self._sessions:
            # A later session of the node may have been asked for first, and knows better.
            return
        self.disk.save_member(member)
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
