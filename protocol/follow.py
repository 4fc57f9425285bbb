"""May a replica go on after its last entry, or has it to begin anew? The rule of replication, as one pure function.

A history names the reigns that a log went through. An epoch is drawn at random when a reign begins, and a log only ever
takes over entries together with the history that ordered them. So two nodes whose histories share an epoch hold the
same entries up to the end of that epoch, on whichever of them it ended first, and at no seq after that. Hence:

- A replica whose last entry is (e, s) holds a prefix of the primary's log if and only if e is in the primary's history
  and s is not past the end of e there. Seq 0, the empty log, is a prefix of every log.
- Where it does not, the **fork** is the smaller end of the last epoch that both have: the last entry in common.
- A replica that has seen a higher term than the primary's proves that the primary was replaced. The replica changes
  nothing: what it has may be the only copy of writes that the other primary acknowledged.
- A prefix is not enough: the primary must still hold the entry that comes next.

Only reigns that ordered an entry of the log count here. A history also names reigns that ordered nothing in this log:
it is made durable before the first entry of a reign, and a log may lose its tail. `reigns_until` leaves those out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from kvnode.protocol.types import Epoch, History, Position, Reign, Seq


@dataclass(frozen=True, slots=True)
class Continue:
    """The replica's log is a prefix of the primary's, which still holds what follows."""

    #: the first entry to stream; one past the replica's last
    from_seq: Seq


@dataclass(frozen=True, slots=True)
class FullSync:
    """The replica's log is a prefix of the primary's, but the entry after it is no longer in the primary's log."""

    #: for people
    reason: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """The replica holds entries that the primary's log does not: they go aside, and a full sync follows."""

    #: the last entry that both hold; seq 0 = none
    fork: Position


@dataclass(frozen=True, slots=True)
class StalePrimary:
    """The replica has seen a later primary than this one, which must stop taking writes."""

    #: the highest that the replica has seen
    term: int


Verdict: TypeAlias = Continue | FullSync | Diverged | StalePrimary


class LogExtent(NamedTuple):
    """Which entries a primary has in its log.

    Attributes:
        first_seq: of the first entry in the log; where the log is empty, of the next to come.
        durable_seq: of the last durable entry; at least `first_seq` - 1.
    """

    first_seq: Seq
    durable_seq: Seq


def may_follow(history: History, log: LogExtent, position: Position, replica_history: History) -> Verdict:
    """Decide how a replica goes on with a primary.

    Both sides ask: the replica on WELCOME, knowing all but where the primary's log begins (it passes 1); the primary on
    SUBSCRIBE, knowing the replica's position only (it passes the history that `line_of` makes of that). They agree on
    everything but the fork, which only the replica can tell.

    Args:
        history: the primary's, its current reign included.
        log: the primary's.
        position: the replica's last durable entry; seq 0 = none, whatever the epoch.
        replica_history: the replica's.

    Returns:
        The verdict. `Continue` is never said of a log that is not a prefix of the primary's.
    """
    seen_term = max(position.epoch.term, replica_history.current.term)
    if seen_term > history.current.term:
        return StalePrimary(seen_term)
    if not is_prefix(history, log.durable_seq, position):
        return Diverged(_fork(history, log.durable_seq, position, replica_history))
    if position.seq + 1 < log.first_seq:
        return FullSync(f"the entry after {position.seq} is gone, the log begins at {log.first_seq}")
    return Continue(position.seq + 1)


def is_prefix(history: History, durable_seq: Seq, position: Position) -> bool:
    """Whether the log that ends with `position` is a prefix of the log with `history` and `durable_seq`."""
    # The same as: the epoch is in the history, and the seq between that reign's first and its end.
    return position.seq == 0 or (position.seq <= durable_seq and history.epoch_of(position.seq) == position.epoch)


def line_of(position: Position) -> History:
    """All that a position alone tells of its node's history."""
    return History((Reign(position.epoch, position.seq),)) if position.seq and position.epoch else History()


def position_of(history: History, seq: Seq) -> Position:
    """The position of the last entry of a log with that history that ends at `seq`; epoch 0 for the empty log."""
    return Position(history.epoch_of(seq), seq) if seq else Position(Epoch(0), 0)


def reigns_until(history: History, last_seq: Seq) -> History:
    """The history without the reigns that ordered no entry up to `last_seq`.

    A promotion begins its reign on this: `History.begin` refuses a first seq below a reign's that is only known of.
    """
    if not history.reigns or history.reigns[-1].first_seq <= last_seq:
        return history
    return History(tuple([reign for reign in history.reigns if reign.first_seq <= last_seq]))


def _fork(history: History, durable_seq: Seq, position: Position, replica_history: History) -> Position:
    """The last entry that both logs hold."""
    mine, theirs = reigns_until(history, durable_seq), reigns_until(replica_history, position.seq)
    for reign in reversed(theirs.reigns):
        end, their_end = mine.end(reign.epoch, durable_seq), theirs.end(reign.epoch, position.seq)
        if reign in mine.reigns and end is not None and their_end is not None:
            return Position(reign.epoch, min(end, their_end))
    return Position(Epoch(0), 0)
