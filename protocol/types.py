"""The value types that every part shares: sequence numbers, epochs, positions, operations, entries.

Operations and entries are named tuples whose field order is the format's array order, so that encoding one is
packing it. FORMAT.md, "Entry", has the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeAlias

#: An entry's sequence number: 1, 2, 3 ... without gaps; 0 means "before the first entry".
Seq: TypeAlias = int

#: Operation kinds. Persisted and sent: never renumber, never reuse.
OP_PUT = 1
OP_DELETE = 2

#: Makes a named tuple of its class and a tuple of its fields. What calling the class does besides is a call in Python,
#: which takes longer than all else: 0.11 instead of 0.27 µs. For what is made for every write or item.
new_tuple = tuple.__new__

_EPOCH_TEXT = re.compile(r"(0|[1-9][0-9]{0,9})\.([0-9a-f]{8})")
_U32_MAX = 0xFFFF_FFFF


class Epoch(int):
    """One reign of one primary: a u64 made of a 32-bit term (high) and 32 random bits (low).

    Orders by term first. Prints as ``3.9f2c1a7b``; ``Epoch(0)`` means "no epoch yet".
    """

    @classmethod
    def of(cls, term: int, random_bits: int) -> Self:
        """Build an epoch from its two halves, each 0 to 2**32 - 1.

        Raises:
            ValueError: a half is out of range.
        """
        if not 0 <= term <= _U32_MAX or not 0 <= random_bits <= _U32_MAX:
            raise ValueError(f"epoch halves out of range: {term}, {random_bits}")
        return cls(term << 32 | random_bits)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` printed.

        Raises:
            ValueError: the text is not an epoch.
        """
        match = _EPOCH_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an epoch, expected TERM.8HEXDIGITS: {text!r}")
        return cls.of(int(match[1]), int(match[2], 16))

    @property
    def term(self) -> int:
        """The reign's number, 0 to 2**32 - 1."""
        return self >> 32

    def __str__(self) -> str:
        return f"{self >> 32}.{self & _U32_MAX:08x}"

    def __repr__(self) -> str:
        return f"Epoch({self})"


class Position(NamedTuple):
    """Where an entry stands: (epoch, seq) identifies it; seq alone does not.

    Prints as ``3.9f2c1a7b-42``, which is also the record version that REST sends as an ETag.
    """

    epoch: Epoch
    seq: Seq

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


class Put(NamedTuple):
    """Set a key to a value.

    Attributes:
        kind: always `OP_PUT`.
        key: 1 to 4,096 bytes of UTF-8.
        expires_ms: the primary's UTC clock in milliseconds since 1970; 0 = never.
        value: JSON text, UTF-8, exactly as the client sent it.
    """

    kind: int
    key: bytes
    expires_ms: int
    value: bytes


class Delete(NamedTuple):
    """Remove a key; removing a missing key changes nothing.

    Attributes:
        kind: always `OP_DELETE`.
        key: 1 to 4,096 bytes of UTF-8.
    """

    kind: int
    key: bytes


Op: TypeAlias = Put | Delete


def put(key: bytes, value: bytes, expires_ms: int = 0) -> Put:
    """A `Put` with its kind filled in."""
    return new_tuple(Put, (OP_PUT, key, expires_ms, value))


def delete(key: bytes) -> Delete:
    """A `Delete` with its kind filled in."""
    return new_tuple(Delete, (OP_DELETE, key))


class Entry(NamedTuple):
    """One atomic change: all of its operations take effect together, in order.

    Attributes:
        seq: at least 1.
        epoch: the reign in which the primary ordered it.
        time_ms: the primary's UTC clock in milliseconds since 1970; never decreases from entry to entry.
        ops: at least one operation.
    """

    seq: Seq
    epoch: Epoch
    time_ms: int
    ops: Sequence[Op]

    @property
    def position(self) -> Position:
        """(epoch, seq)."""
        return Position(self.epoch, self.seq)


class Reign(NamedTuple):
    """One line of a history: the epoch, and the first seq that it ordered (or will order)."""

    epoch: Epoch
    first_seq: Seq


@dataclass(frozen=True, slots=True)
class History:
    """The reigns that a node's log went through, oldest first.

    Invariant: terms rise strictly, first_seq rises strictly, and every first_seq is at least 1.
    """

    reigns: tuple[Reign, ...] = ()

    def __post_init__(self) -> None:
        previous = Reign(Epoch(0), 0)
        for reign in self.reigns:
            if reign.epoch.term <= previous.epoch.term or reign.first_seq <= previous.first_seq:
                raise ValueError(f"history is not rising: {previous} then {reign}")
            previous = reign

    def __iter__(self) -> Iterator[Reign]:
        return iter(self.reigns)

    @property
    def current(self) -> Epoch:
        """The last reign's epoch, `Epoch(0)` when there was none."""
        return self.reigns[-1].epoch if self.reigns else Epoch(0)

    def begin(self, epoch: Epoch, first_seq: Seq) -> History:
        """The history after a new reign began.

        A last reign that ordered nothing (its first_seq is the new one's) is replaced.

        Args:
            epoch: its term is above every earlier one.
            first_seq: the next seq to be assigned, not below the last reign's first_seq.

        Raises:
            ValueError: either argument breaks the invariant.
        """
        kept = self.reigns
        if kept and kept[-1].first_seq == first_seq:
            if epoch.term <= kept[-1].epoch.term:
                raise ValueError(f"epoch {epoch} does not follow {kept[-1].epoch}")
            kept = kept[:-1]
        return History((*kept, Reign(epoch, first_seq)))

    def end(self, epoch: Epoch, durable_seq: Seq) -> Seq | None:
        """The last seq that `epoch` ordered.

        Args:
            epoch: any epoch.
            durable_seq: the last seq that is durable here; it is the answer for the current epoch.

        Returns:
            The next reign's first_seq - 1, or `durable_seq` for the last reign, or None for an epoch that is not
            part of this history.
        """
        for index, reign in enumerate(self.reigns):
            if reign.epoch == epoch:
                following = index + 1
                return self.reigns[following].first_seq - 1 if following < len(self.reigns) else durable_seq
        return None

    def epoch_of(self, seq: Seq) -> Epoch:
        """The epoch that ordered `seq` (or will order it), `Epoch(0)` when it lies before the first reign."""
        for reign in reversed(self.reigns):
            if reign.first_seq <= seq:
                return reign.epoch
        return Epoch(0)
