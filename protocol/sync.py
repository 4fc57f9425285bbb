"""A full sync that can be resumed: what the replica has of it, and the primary's pins on the log that it needs.

A sync copies the primary's data in key order, and then replays the log from the seq of its **first** snapshot. When it
is cut, it goes on after the last key it stored, on a newer snapshot. Then the keys that it has show several states, and
only replaying the log from the first snapshot's seq to the **latest** one's makes one state of them. This is sound as
entries are absolute, and under two conditions, which `may_resume` checks:

- the primary's log still holds all entries after the first snapshot;
- the latest snapshot's position is in the primary's history. It is not enough that the first one's is: keys copied from
  a later snapshot may show writes which this primary never had, and which no entry of it would undo.

The same holds after the sync, until the log is replayed to the latest snapshot's seq. So that position is kept until
then and counts as the replica's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvnode.protocol.follow import LogExtent, is_prefix
from kvnode.protocol.types import History, Position, Seq


@dataclass(frozen=True, slots=True)
class Incoming:
    """A full sync on the replica's disk, not complete. It names the sync when the replica subscribes again.

    Invariant: `first` is not after `latest`.
    """

    #: 16 bytes
    sync_id: bytes
    #: what the sync's first snapshot showed
    first: Position
    #: what the latest of all snapshots showed that keys were, or may have been, stored from; by seq
    latest: Position
    #: last stored key; empty = none
    last_key: bytes = b""

    def __post_init__(self) -> None:
        if self.first.seq > self.latest.seq:
            raise ValueError(f"a sync's first snapshot {self.first} is after its latest {self.latest}")


def may_resume(history: History, log: LogExtent, incoming: Incoming) -> bool:
    """Whether a primary may go on with a sync that was cut."""
    return (
        is_prefix(history, log.durable_seq, incoming.latest)
        and is_prefix(history, log.durable_seq, incoming.first)
        and incoming.first.seq + 1 >= log.first_seq
    )


@dataclass(slots=True)
class _Pin:
    #: the log is kept from this seq on
    from_seq: Seq
    #: when it ends because its replica is away; None while that is connected
    lapses_at: float | None


class SyncPins:
    """Which entries the log must keep for full syncs under way, by the node that each is for.

    In memory only. A pin ends when its sync does, `hold_s` after its node was disconnected, or when it costs too much.
    """

    def __init__(self, max_bytes: int, hold_s: float = 60.0) -> None:
        """No pins.

        Args:
            max_bytes: of log from a pin's seq on; a pin that keeps more is dropped.
            hold_s: how long a pin outlives the session of its node.
        """
        self._max_bytes = max_bytes
        self._hold_s = hold_s
        self._pins: dict[bytes, _Pin] = {}

    @property
    def lowest_seq(self) -> Seq | None:
        """Entries from this seq on must stay; None = no pin."""
        return min((pin.from_seq for pin in self._pins.values()), default=None)

    @property
    def wake_at(self) -> float | None:
        """When the next pin lapses; None = none does."""
        return min((pin.lapses_at for pin in self._pins.values() if pin.lapses_at is not None), default=None)

    def pinned_seq(self, node_id: bytes) -> Seq | None:
        """From where on the log is kept for a node; None = not at all."""
        pin = self._pins.get(node_id)
        return None if pin is None else pin.from_seq

    def pin(self, node_id: bytes, from_seq: Seq) -> None:
        """Execute `PinLog` of a connected node; its earlier pin, if any, ends."""
        self._pins[node_id] = _Pin(from_seq, None)

    def unpin(self, node_id: bytes) -> None:
        """Execute `UnpinLog`; a node without a pin is fine."""
        self._pins.pop(node_id, None)

    def hold(self, node_id: bytes, now: float) -> None:
        """Execute `HoldPin`: the node's session ended; a node without a pin is fine."""
        pin = self._pins.get(node_id)
        if pin is not None:
            pin.lapses_at = now + self._hold_s

    def lapse(self, now: float, log_bytes_from: Callable[[Seq], int]) -> list[bytes]:
        """Drop pins that are too old or too expensive. To be asked at `wake_at`, and when the log has grown.

        Args:
            log_bytes_from: the bytes of log from a seq on.

        Returns:
            Nodes whose pin was dropped; the machines of those that are connected get `PinLost`.
        """
        dropped = [
            node_id
            for node_id, pin in self._pins.items()
            if (pin.lapses_at is not None and now >= pin.lapses_at) or log_bytes_from(pin.from_seq) > self._max_bytes
        ]
        for node_id in dropped:
            del self._pins[node_id]
        return dropped
