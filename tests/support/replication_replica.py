"""The shell of a simulated replica: it executes what its machine asks for on a model disk, and decides nothing.

Each piece of work takes a while. Its effect on the disk comes at one time and the answer at a later one, so a crash
finds work not begun, done in part, or done and not answered.
"""

from __future__ import annotations

from dataclasses import replace

from kvnode.protocol import replica_events as r
from kvnode.protocol.messages import Hello, Message, Ping, Purpose, Subscribe
from kvnode.protocol.replica import Follower, FollowerDisk, FollowerLimits
from kvnode.protocol.session import CloseSession, FrameReceived, SendFrame, SendPing, Ticked, TransportProgressed
from kvnode.protocol.types import Epoch, Position
from support.replication_links import Connection
from support.replication_primary import PrimaryProcess
from support.replication_truth import LogEntry
from support.replication_world import CLUSTER, TIMING, Node, Process

LIMITS = FollowerLimits(backlog_bytes=300, group_bytes=200, connect_s=2.0, retry_last_s=1.0)


class ReplicaProcess(Process):
    """The shell of a replica."""

    def __init__(self, node: Node, follows: int) -> None:
        super().__init__(node)
        disk, now = node.disk, self.world.time.now
        self.primary = self.world.nodes[follows]
        self.connection: Connection | None = None
        node_id, name, address = node.member
        boot_id = self.world.rng.randbytes(16)
        hello = Hello(1, 1, CLUSTER, node_id, boot_id, name, Purpose.REPLICA, (), b"", address)
        self.machine = Follower(
            hello,
            FollowerDisk(disk.history, disk.members, disk.last_seq, disk.serve_from, disk.incoming),
            now,
            limits=LIMITS,
            timing=TIMING,
        )
        self.serving = self.machine.serving
        #: the work that is under way
        self.working: r.Work | None = None
        self.later(0.3, self._keep_house)
        self.watch(self.machine)

    # ---- the session ---------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, message: Message) -> None:
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
        self.serving = machine.serving
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
                if isinstance(message, Subscribe):
                    self.world.trace(self.node, "subscribes", message)
                connection.to_server.send(message)
            case SendPing(last_seq):
                assert connection is not None
                connection.to_server.send(Ping(last_seq, 0))
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
                for key, seq, epoch, _, value in records:
                    disk.incoming_data[key] = (Position(Epoch(epoch), seq), value)
                disk.incoming = replace(disk.incoming, last_key=records[-1][0])
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
