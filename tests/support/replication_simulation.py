"""Three nodes through half a minute of mishaps, drawn from a seed; then all is well, and they must agree.

While it runs: no node puts an entry where another belongs, serves data that its log does not lead to, or loses a write
that it acked, unless an operator began a reign without that write or put another disk in. At the end all nodes hold the
same log and the same data, soon, and without syncing over and over, and know where each of them is reached.
"""

from __future__ import annotations

from collections.abc import Callable

from support.replication_primary import PrimaryProcess
from support.replication_replica import ReplicaProcess
from support.replication_truth import Disk
from support.replication_world import Node, Process, World

#: Simulated seconds of mishaps, and how long the nodes may take to agree afterwards.
MISHAPS_S = 18.0
AGREE_S = 60.0


def make_process(node: Node, ask_members: bool) -> Process:
    """What runs on a node in its role."""
    if node.follows is None:
        return PrimaryProcess(node, ask_members=ask_members)
    return ReplicaProcess(node, node.follows)


class Simulation:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, make_process)
        self.rng = self.world.rng
        self.time = self.world.time
        self.nodes = self.world.nodes
        #: whom the operator takes for the primary
        self.primary = self.nodes[0]
        self.backups: list[tuple[int, Disk]] = []
        self.writing = self.rng.choice([1.0, 5.0, 15.0])
        #: whether full syncs have a hard time in this run
        self.hard_on_syncs = self.rng.random() < 0.3
        self.forked_at = 0.0
        for node in self.nodes:
            node.keeps = self.rng.choice([4, 12, 40, 1000])

    def run(self) -> World:
        """Live through everything.

        Raises:
            AssertionError: a node or the cluster went wrong; a note tells the story.
        """
        try:
            self._begin()
            self.time.run_until(MISHAPS_S)
            self._heal()
            self._agree()
        except BaseException as error:
            error.add_note(self.world.story)
            raise
        return self.world

    def _begin(self) -> None:
        for node in self.nodes:
            if node is not self.primary:
                node.follows = self.primary.number
            node.start()
        self.time.after(0.1, self._write)
        self.time.after(1.0, self._mishap)
        if self.hard_on_syncs:
            self.time.after(1.0, self._upset_syncs)

    # ---- clients -------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        for node in self.nodes:
            process = node.process
            # Clients find every node that takes writes, also the one that should not.
            if isinstance(process, PrimaryProcess) and (node is self.primary or self.rng.random() < 0.3):
                for _ in range(self.rng.choice([1, 1, 1, 3])):
                    process.write(self.rng.choice([0, 1, 1, 2]))
        if self.time.now < MISHAPS_S + 3.0:
            self.time.after(self.rng.expovariate(self.writing), self._write)

    # ---- mishaps -------------------------------------------------------------------------------------------------

    def _mishap(self) -> None:
        if self.world.healed:
            return
        mishaps: list[tuple[int, Callable[[], None]]] = [
            (6, self._crash),
            (5, self._cut),
            (3, self._stall),
            (4, self._promote),
            (2, self._demote),
            (2, self._misdirect),
            (2, self._restore),
            (1, self._copy_directory),
            (1, self._lose_tail),
            (1, self._damage),
            (2, self._change_pace),
            (2, self._back_up),
        ]
        weights = [weight for weight, _ in mishaps]
        mishap = self.rng.choices(mishaps, weights)[0][1]
        self.world.counts[mishap.__name__] += 1
        mishap()
        self.time.after(self.rng.expovariate(1.6), self._mishap)

    def _any(self) -> Node:
        return self.rng.choice(self.nodes)

    def _crash(self) -> None:
        node = self._any()
        if node.process is not None:
            node.crash()
            self.time.after(self.rng.choice([0.05, 0.5, 3.0, 8.0]) * self.rng.random(), self._start, node)

    def _start(self, node: Node) -> None:
        if node.process is None:
            node.start(ask_members=self.rng.random() < 0.5)

    def _restart(self, node: Node) -> None:
        if node.process is not None:
            node.crash()
        self.time.after(self.rng.random() * 0.1, self._start, node)

    def _cut(self) -> None:
        if self.world.connections and self.rng.random() < 0.6:
            self.world.connections[-self.rng.randrange(1, min(3, len(self.world.connections)) + 1)].cut(
                silent=self.rng.random() < 0.4
            )
        low, high = sorted(self.rng.sample(range(3), 2))
        if self.rng.random() < 0.5:
            self.world.cut.add((low, high))
            self.time.after(self.rng.random() * 5.0, self.world.cut.discard, (low, high))

    def _stall(self) -> None:
        for connection in self.world.connections[-2:]:
            for direction in (connection.to_client, connection.to_server):
                if self.rng.random() < 0.4:
                    direction.stalled_until = self.time.now + self.rng.random() * 4.0

    def _change_pace(self) -> None:
        node = self._any()
        node.slow = not node.slow
        pair = tuple(sorted(self.rng.sample(range(3), 2)))
        self.world.slow ^= {(pair[0], pair[1])}
        self.writing = self.rng.choice([1.0, 5.0, 15.0, 25.0])
        self._any().keeps = self.rng.choice([4, 12, 40, 1000])

    def _damage(self) -> None:
        disk = self.primary.disk
        if disk.log:
            disk.damaged.add(self.rng.randint(disk.first_seq, disk.last_seq))

    def _upset_syncs(self) -> None:
        """Make full syncs necessary, cut them, and fork the primary's log between their snapshots."""
        if self.world.healed:
            return
        for node in self.nodes:
            if self.time.now > self.forked_at + 1.0:
                node.keeps = 4
            disk, process = node.disk, node.process
            if not isinstance(process, ReplicaProcess):
                continue
            if disk.incoming is not None and process.connection is not None and self.rng.random() < 0.3:
                process.connection.cut(silent=False)
            first, latest = disk.position, disk.serve_from
            if disk.incoming is not None:
                first, latest = disk.incoming.first, disk.incoming.latest
            last_seq = self.primary.disk.last_seq
            begun = disk.incoming is None or disk.incoming.last_key > b"c"
            if latest is not None and begun and first.seq < latest.seq <= last_seq and self.rng.random() < 0.5:
                self.forked_at = self.time.now
                self.primary.keeps = 1000
                self._lose_tail_of(self.primary, last_seq - self.rng.randint(first.seq, latest.seq - 1))
        if self.rng.random() < 0.03:
            self._any().slow ^= True
        if self.rng.random() < 0.02:
            self.time.after(self.rng.random(), self._restart, self._any())
        self.time.after(0.03, self._upset_syncs)

    # ---- operators -----------------------------------------------------------------------------------------------

    def _settle(self, node: Node) -> bool:
        """Whether a node's role may change now: its shell waits until no work is under way."""
        process = node.process
        return isinstance(process, ReplicaProcess) and process.working is None and node.serving

    def _promote(self) -> None:
        node = self._any()
        if not self._settle(node):
            return
        if self.rng.random() < 0.5 and self.primary.process is not None:
            self.primary.crash()
            self.time.after(self.rng.random() * 6.0, self._start, self.primary)
        node.crash()
        node.follows = None
        self.primary = node
        node.start(ask_members=self.rng.random() < 0.5)
        for other in self.nodes:
            if other is not node and self.rng.random() < 0.8:
                self.time.after(self.rng.random() * 4.0, self._follow, other, node)

    def _follow(self, node: Node, primary: Node) -> None:
        """`kvnode join`, run again."""
        if primary is self.primary and node is not primary and node.follows != primary.number:
            node.follows = primary.number
            self._restart(node)

    def _demote(self) -> None:
        for node in self.nodes:
            self._follow(node, self.primary)

    def _misdirect(self) -> None:
        node, other = self.rng.sample(self.nodes, 2)
        if node is not self.primary and node.follows is not None:
            node.follows = other.number
            self._restart(node)

    def _back_up(self) -> None:
        node = self._any()
        self.backups.append((node.number, node.disk.copy()))

    def _restore(self) -> None:
        if self.backups:
            number, disk = self.rng.choice(self.backups)
            self._put_in(self.nodes[number], disk)

    def _copy_directory(self) -> None:
        node, other = self.rng.sample(self.nodes, 2)
        if node is not self.primary:
            node.follows = self.primary.number
            self._put_in(node, other.disk)

    def _lose_tail(self) -> None:
        self._lose_tail_of(self._any(), self.rng.randint(1, 3))

    def _lose_tail_of(self, node: Node, count: int) -> None:
        """`kvnode wal repair`."""
        disk = node.disk.copy()
        if len(disk.log) >= count and node.serving and disk.incoming is None:
            disk.apply(disk.last_seq)
            self.world.truth.lose_tail(disk, disk.last_seq - count)
            self.world.counts["lost tails"] += 1
            self._put_in(node, disk)

    def _put_in(self, node: Node, disk: Disk) -> None:
        """Stop a node, replace its disk, and start it."""
        if node.process is not None:
            node.crash()
        node.disk = disk.copy()
        node.disks += 1
        self.world.trace(node, "gets another disk", node.disk.position)
        self.world.truth.replace_disk(node.number, node.disk.position)
        if node.follows is None and not node.serving:
            # A primary cannot start from this; `kvnode join` can.
            other = self.nodes[(node.number + 1) % 3]
            node.follows = other.number if node is not self.primary else None
            if node.follows is None:
                node.disk = Disk()
                self.world.truth.replace_disk(node.number, node.disk.position)
        self._restart(node)

    # ---- the end -------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        world = self.world
        world.healed = True
        world.cut.clear()
        world.slow.clear()
        for connection in world.connections:
            connection.to_client.stalled_until = connection.to_server.stalled_until = 0.0
        for node in self.nodes:
            node.slow = False
            node.disk.damaged.clear()
        # The operator sees that one primary reigns, with a term above all others, and that all others follow it.
        primary = self.primary
        if primary.process is not None:
            primary.crash()
        primary.follows = None
        for node in self.nodes:
            node.follows = None if node is primary else primary.number
        primary.start(ask_members=True)
        for node in self.nodes:
            process = node.process
            if node is not primary and not (isinstance(process, ReplicaProcess) and process.primary is primary):
                self._restart(node)

    def _agree(self) -> None:
        until = self.time.now + AGREE_S
        # Until then, restarts that were on their way may cost a full sync each.
        self.time.run_until(self.time.now + 1.2)
        for node in self.nodes:
            node.full_syncs = 0
        while not self._agreed():
            assert self.time.now < until, "the nodes do not agree"
            self.time.run_until(self.time.now + 0.5)
        for node in self.nodes:
            assert node.full_syncs <= 2, f"{node.full_syncs} full syncs of node {node.number} after all was well"
            assert node.serving
            assert node.disk.data == self.primary.disk.data
            self.world.truth.check_data(node.disk)
            self.world.truth.check_holder(node.number, node.disk.position)
        ours, theirs = self.nodes[0].disk, self.nodes[1].disk
        shared = max(ours.first_seq, theirs.first_seq)
        assert ours.after(shared - 1) == theirs.after(shared - 1)

    def _agreed(self) -> bool:
        process = self.primary.process
        if self.time.now < MISHAPS_S + 4.0 or not isinstance(process, PrimaryProcess):
            return False
        states = process.states
        others = [node for node in self.nodes if node is not self.primary]
        members = {node.member for node in self.nodes}
        return set(self.primary.disk.members) == members and all(
            states.get(node.member.node_id) == "streaming"
            and node.disk.position == self.primary.disk.position
            and node.disk.applied_seq == self.primary.disk.applied_seq
            and node.disk.history == self.primary.disk.history
            and set(node.disk.members) == members
            for node in others
        )
