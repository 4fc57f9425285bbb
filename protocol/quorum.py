"""Writes that wait until a number of replicas hold them durably.

A wait is registered when its entry is durable on the primary and before the entry is streamed, so no ack can come too
early to be seen. It ends once, in one of three ways: enough replicas have acked; its time is up, while the write **is**
durable on the primary; or the history that it belongs to may not go on, and nobody knows. Every call returns the waits
that it ended.

An ack counts for as long as it stands: a replica that comes back with less than it had acked (from a backup, say)
counts with what it has, for the waits that have not ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush
from typing import NamedTuple

from kvnode.protocol.types import Seq


class Outcome(Enum):
    """How a wait ended; the values are codes of the REST interface, but the first."""

    ACKED = "acked"
    TIMED_OUT = "replication_timeout"
    UNKNOWN = "outcome_unknown"


class Ended(NamedTuple):
    """A wait that ended.

    Attributes:
        key: as it was registered.
        seq: of the write.
        wanted: how many replicas it waited for.
        held_by: the node ids of the replicas that are known to hold it durably.
    """

    key: Hashable
    outcome: Outcome
    seq: Seq
    wanted: int
    held_by: tuple[bytes, ...]


@dataclass(slots=True, eq=False)
class _Wait:
    key: Hashable
    seq: Seq
    wanted: int
    ended: bool = False


def majority_acks(members: int) -> int:
    """How many replicas make a majority of the members together with the primary, which is one of them."""
    return members // 2


class AckWaits:
    """The waits of one reign of one primary.

    Invariant: among the waits for the same number of replicas, seqs do not fall in the order of registration; no open
    wait is already fulfilled.
    """

    def __init__(self) -> None:
        """No waits, and no replica that holds anything."""
        self._acked: dict[bytes, Seq] = {}
        self._waits: dict[int, deque[_Wait]] = {}
        self._deadlines: list[tuple[float, int, _Wait]] = []
        self._registered = 0

    def __len__(self) -> int:
        """How many waits are open."""
        return sum(1 for waits in self._waits.values() for wait in waits if not wait.ended)

    @property
    def wake_at(self) -> float | None:
        """When the next open wait's time is up; None = there is none."""
        while self._deadlines and self._deadlines[0][2].ended:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def acked_seq(self, node_id: bytes) -> Seq:
        """What a replica is known to hold durably; 0 = nothing."""
        return self._acked.get(node_id, 0)

    def register(self, key: Hashable, seq: Seq, wanted: int, deadline: float) -> list[Ended]:
        """Wait until `wanted` replicas hold `seq`. To be called before the feeds are told of `seq`.

        Args:
            key: names the wait to the caller.
            seq: not below that of an earlier call.
            wanted: how many replicas, the primary not counted; 0 or more.
            deadline: on the clock that `expire` is asked with.
        """
        waits = self._waits.setdefault(wanted, deque())
        assert not waits or waits[-1].seq <= seq, "waits are registered in the order of their seqs"
        wait = _Wait(key, seq, wanted)
        self._registered += 1
        waits.append(wait)
        heappush(self._deadlines, (deadline, self._registered, wait))
        return self._fulfil()

    def progressed(self, node_id: bytes, durable_seq: Seq) -> list[Ended]:
        """Execute `ReportProgress` of a replica."""
        self._acked[node_id] = durable_seq
        return self._fulfil()

    def forget(self, node_id: bytes) -> None:
        """A node is no member any more: what it holds does not count."""
        self._acked.pop(node_id, None)

    def expire(self, now: float) -> list[Ended]:
        """End the waits whose time is up. To be asked at `wake_at`."""
        ended = []
        while self._deadlines and self._deadlines[0][0] <= now:
            wait = heappop(self._deadlines)[2]
            if not wait.ended:
                ended.append(self._end(wait, Outcome.TIMED_OUT))
        for waits in self._waits.values():
            while waits and waits[0].ended:
                waits.popleft()
        return ended

    def abandon(self) -> list[Ended]:
        """The role changes, or the history is abandoned: end all waits."""
        open_waits = sorted((wait for waits in self._waits.values() for wait in waits if not wait.ended), key=_seq_of)
        self._waits.clear()
        self._deadlines.clear()
        return [self._end(wait, Outcome.UNKNOWN) for wait in open_waits]

    def _fulfil(self) -> list[Ended]:
        ended = []
        held = sorted(self._acked.values(), reverse=True)
        for wanted, waits in self._waits.items():
            if wanted > len(held):
                continue
            while waits and (wanted == 0 or waits[0].seq <= held[wanted - 1]):
                wait = waits.popleft()
                if not wait.ended:
                    ended.append(self._end(wait, Outcome.ACKED))
        ended.sort(key=_seq_of)
        return ended

    def _end(self, wait: _Wait, outcome: Outcome) -> Ended:
        wait.ended = True
        held_by = tuple([node_id for node_id, seq in self._acked.items() if seq >= wait.seq])
        return Ended(wait.key, outcome, wait.seq, wait.wanted, held_by)

    def validate(self) -> None:
        """Check the invariants."""
        for wanted, waits in self._waits.items():
            for wait in waits:
                holders = sum(seq >= wait.seq for seq in self._acked.values())
                assert wait.ended or holders < wanted, "a wait is open that is fulfilled"
            assert _rises(wait.seq for wait in waits)
        timed = {id(wait) for _, _, wait in self._deadlines}
        assert all(wait.ended or id(wait) in timed for waits in self._waits.values() for wait in waits)


def _seq_of(ended: Ended | _Wait) -> Seq:
    return ended.seq


def _rises(seqs: Iterable[Seq]) -> bool:
    listed = list(seqs)
    return listed == sorted(listed)
