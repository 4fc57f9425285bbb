"""The simulation's machines: nodes with a disk each, on which a process may run, and what they share."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any

from kvnode.protocol.fields import Member
from kvnode.protocol.primary import ReplicaFeed
from kvnode.protocol.replica import Follower
from kvnode.protocol.session import Timing
from kvnode.protocol.types import Epoch
from support.replication_links import Connection, Timeline
from support.replication_truth import Disk, Truth

CLUSTER = b"c" * 16
TIMING = Timing(ping_s=0.5, silence_s=2.0, stall_s=3.0)


class World:
    """What all nodes of one simulation share.

    Attributes:
        healed: whether network and disks are well from now on.
        cut: pairs of nodes that cannot connect; the lower number first.
        slow: pairs of nodes between which frames take long.
        trace: the last of (time, node, what, detail) that happened, for people.
    """

    def __init__(self, seed: int, make_process: Callable[[Node, bool], Process]) -> None:
        """Three machines that are off.

        Args:
            make_process: starts what runs on a node, in its role; told whether a primary asks the others' terms.
        """
        self.make_process = make_process
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
        self.process: Process | None = None
        self.keeps = 1000
        self.slow = False
        self.full_syncs = 0
        #: counts the disks that were put into it
        self.disks = 0

    def start(self, *, ask_members: bool = False) -> None:
        """Start the process. It finds what is durable, and applies all of the log."""
        assert self.process is None
        if self.world.rng.random() < 0.2:
            self.member = self.member._replace(address=f"web{self.number}:{self.world.rng.randint(7001, 7003)}")
        self.disk.apply(self.disk.last_seq)
        self.world.trace(self, "start", (self.disk.position, self.disk.history))
        self.process = self.world.make_process(self, ask_members)

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
        if self.process is not None and self.process.serving is not None:
            return self.process.serving
        disk = self.disk
        return disk.serve_from is None or disk.applied_seq >= disk.serve_from.seq


class Process:
    """What runs on a node until it dies."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.world = node.world
        self.disk = node.disk
        self.alive = True
        #: what it says of `Node.serving`, if it has a say in it
        self.serving: bool | None = None
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
