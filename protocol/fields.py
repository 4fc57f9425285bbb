"""The kinds of fields that frames are made of: what each accepts from the wire, sends, and shows in a log.

A frame's dataclass names a kind by annotation (`last_seq: U64`), so that its type for the type checker and its check
at run time stand in one place. Both directions use the same check: what `read` refuses is never sent either.

Source: FORMAT.md, "Messages".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Generic, NamedTuple, TypeAlias, TypeVar

from kvnode.protocol.entry import decode_op
from kvnode.protocol.errors import EntryDamaged
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Op, Position, Reign

U32_MAX = 0xFFFF_FFFF
U64_MAX = 0xFFFF_FFFF_FFFF_FFFF

#: Bytes of a cluster, node, boot or sync id.
ID_BYTES = 16

#: Longest address, in characters: a host name has up to 253.
ADDRESS_CHARACTERS = 300

#: Longest text that a log line shows whole.
_SHOWN_CHARACTERS = 120
#: Most items of a list that a log line shows.
_SHOWN_ITEMS = 4

T = TypeVar("T")
ChoiceT = TypeVar("ChoiceT", bound=StrEnum)


class LogRecord(NamedTuple):
    """One entry as the log holds it, untouched on its way from log to log.

    Attributes:
        crc: of the payload, as the log has it; who stores or applies the entry checks it, the codec does not.
        payload: an encoded entry, at least one byte. FORMAT.md, "Entry".
    """

    crc: int
    payload: bytes


class Member(NamedTuple):
    """A node of the cluster, as it travels with the history.

    Attributes:
        node_id: 16 bytes.
        name: 1 to 63 characters.
        address: HOST:PORT of its peer port, where others reach it; empty = not known.
    """

    node_id: bytes
    name: str
    address: str = ""


class Kind(Generic[T]):
    """What a field may hold, and its three forms: in Python, on the wire, in a log line."""

    def read(self, wire: Any) -> T:
        """The value of what msgpack unpacked, arrays being tuples.

        Raises:
            ValueError: it is not of this kind; the message says what was expected and holds no payload.
        """
        raise NotImplementedError

    def write(self, value: T) -> Any:
        """What to pack for `value`; the inverse of `read`.

        Raises:
            ValueError: as `read` would.
        """
        return self.read(value)

    def show(self, value: T) -> str:
        """`value` on one line, without control characters, bounded in length, without payload or secrets."""
        return str(value)


class Integer(Kind[int]):
    """A whole number from `first` to `last`."""

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._last = last

    def read(self, wire: Any) -> int:
        if type(wire) is int and self._first <= wire <= self._last:
            # What all integers from the wire are; the rest is for others, such as an epoch, and for what is refused.
            return wire
        if not isinstance(wire, int) or isinstance(wire, bool) or not self._first <= wire <= self._last:
            raise _unlike(f"a whole number from {self._first} to {self._last}", wire)
        return wire


class Flag(Kind[bool]):
    """True or false."""

    def read(self, wire: Any) -> bool:
        if not isinstance(wire, bool):
            raise _unlike("true or false", wire)
        return wire

    def show(self, value: bool) -> str:
        return "true" if value else "false"


class Text(Kind[str]):
    """Unicode text: any, or only what matches `pattern`, which lets nothing through that could spoil a log line."""

    def __init__(self, expected: str = "text", pattern: str | None = None) -> None:
        self._expected = expected
        self._pattern = None if pattern is None else re.compile(pattern)

    def read(self, wire: Any) -> str:
        if not isinstance(wire, str) or not (self._pattern is None or self._pattern.fullmatch(wire)):
            raise _unlike(self._expected, wire)
        return wire

    def show(self, value: str) -> str:
        if self._pattern is not None:
            return value or "-"
        return ascii(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "...")


class AddressText(Text):
    """HOST:PORT, or no text where it is not known.

    The host is visible ASCII: a name, an IPv4 address, or an IPv6 address in brackets. The port is 1 to 65535, without
    leading zeros: 0, which lets a kernel choose, is no place to connect to.
    """

    def __init__(self) -> None:
        host = r"(?:(?![:\[\]])[!-~])+|\[(?:(?![\[\]])[!-~])+\]"
        super().__init__(
            f"HOST:PORT of up to {ADDRESS_CHARACTERS} characters, or no text", rf"(?:(?:{host}):[1-9][0-9]{{0,4}})?"
        )

    def read(self, wire: Any) -> str:
        text = super().read(wire)
        if len(text) > ADDRESS_CHARACTERS or (text and int(text.rpartition(":")[2]) > 65535):
            raise _unlike(self._expected, wire)
        return text


class Choice(Kind[ChoiceT]):
    """One of an enum's texts; a text that is not among them is refused."""

    def __init__(self, choices: type[ChoiceT]) -> None:
        self._choices = choices

    def read(self, wire: Any) -> ChoiceT:
        if not isinstance(wire, str) or wire not in list(self._choices):
            raise _unlike(f"one of {', '.join(self._choices)}", wire)
        return self._choices(wire)


class Octets(Kind[bytes]):
    """A short byte string of one of the given sizes, shown in hex."""

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes

    def read(self, wire: Any) -> bytes:
        if not isinstance(wire, bytes) or len(wire) not in self._sizes:
            raise _unlike(f"{' or '.join(map(str, self._sizes))} bytes", wire)
        return wire

    def show(self, value: bytes) -> str:
        return value.hex() or "-"


class Blob(Kind[bytes]):
    """Bytes whose content the protocol does not look at, or must not show; at least `min_bytes` of them."""

    def __init__(self, min_bytes: int = 0) -> None:
        self._min_bytes = min_bytes

    def read(self, wire: Any) -> bytes:
        if not isinstance(wire, bytes) or len(wire) < self._min_bytes:
            raise _unlike(f"at least {self._min_bytes} bytes", wire)
        return wire

    def show(self, value: bytes) -> str:
        return f"<{len(value)} bytes>"


class JsonBytes(Blob):
    """JSON text in UTF-8, at least one byte. Not checked: whoever reads it parses it anyway."""

    def __init__(self) -> None:
        super().__init__(min_bytes=1)


class KeyBytes(Blob):
    """A key, at least one byte. What else a key must be is for the node to say, in an answer."""

    def __init__(self) -> None:
        super().__init__(min_bytes=1)


class Listing(Kind[tuple[T, ...]]):
    """Any number of items of one kind."""

    def __init__(self, item: Kind[T]) -> None:
        self.item = item

    def read(self, wire: Any) -> tuple[T, ...]:
        if not isinstance(wire, tuple):
            raise _unlike("an array", wire)
        return tuple([self.item.read(each) for each in wire])

    def show(self, value: tuple[T, ...]) -> str:
        return _show_items([self.item.show(each) for each in value[:_SHOWN_ITEMS]], len(value))


class Nullable(Kind[T | None]):
    """A value of another kind, or nil."""

    def __init__(self, kind: Kind[T]) -> None:
        self.kind = kind

    def read(self, wire: Any) -> T | None:
        return None if wire is None else self.kind.read(wire)

    def write(self, value: T | None) -> Any:
        return None if value is None else self.kind.write(value)

    def show(self, value: T | None) -> str:
        return "-" if value is None else self.kind.show(value)


class EpochKind(Kind[Epoch]):
    """A u64 that is an epoch."""

    def read(self, wire: Any) -> Epoch:
        return Epoch(_u64.read(wire))

    def write(self, value: Epoch) -> Any:
        return _u64.read(value)


class PositionKind(Kind[Position]):
    """`[epoch, seq]`, each a u64."""

    def read(self, wire: Any) -> Position:
        epoch, seq = _items(wire, 2, "a position, [epoch, seq]")
        return Position(Epoch(_u64.read(epoch)), _u64.read(seq))


class HistoryKind(Kind[History]):
    """`[[epoch, first_seq], ...]` that keeps the invariant of `History`."""

    def read(self, wire: Any) -> History:
        if not isinstance(wire, tuple):
            raise _unlike("a history, [[epoch, first_seq], ...]", wire)
        reigns = []
        for each in wire:
            epoch, first_seq = _items(each, 2, "a reign, [epoch, first_seq]")
            reigns.append(Reign(Epoch(_u64.read(epoch)), _u64.read(first_seq)))
        return History(tuple(reigns))

    def write(self, value: History) -> Any:
        if not isinstance(value, History):
            raise _unlike("a history", value)
        return self.read(value.reigns).reigns

    def show(self, value: History) -> str:
        shown = [f"{reign.epoch}@{reign.first_seq}" for reign in value.reigns[-_SHOWN_ITEMS:]]
        return _show_items(shown, len(value.reigns), newest_last=True)


class MemberKind(Kind[Member]):
    """`[node_id, name, address]`."""

    def read(self, wire: Any) -> Member:
        node_id, name, address = _items(wire, 3, "a member, [node_id, name, address]")
        return Member(_id.read(node_id), _name.read(name), _address.read(address))

    def show(self, value: Member) -> str:
        return value.name


class IncomingKind(Kind[Incoming]):
    """`[sync_id, first, latest, last_key]` that keeps the invariant of `Incoming`."""

    def read(self, wire: Any) -> Incoming:
        sync_id, first, latest, last_key = _items(wire, 4, "a full sync, [sync_id, first, latest, last_key]")
        return Incoming(_id.read(sync_id), _position.read(first), _position.read(latest), _bytes.read(last_key))

    def write(self, value: Incoming) -> Any:
        if not isinstance(value, Incoming):
            raise _unlike("a full sync", value)
        wire = (value.sync_id, value.first, value.latest, value.last_key)
        self.read(wire)
        return wire

    def show(self, value: Incoming) -> str:
        return f"{value.sync_id.hex()}:{value.first}..{value.latest}"


#: A record of a pair that has the right shape. `LogRecord._make` would call Python code that checks the length again.
_checked_record: Callable[[Any], LogRecord] = partial(tuple.__new__, LogRecord)


class RecordsKind(Kind[tuple[LogRecord, ...]]):
    """`[[crc, payload], ...]`, at least one. The hot path of replication: no call for a single record."""

    def read(self, wire: Any) -> tuple[LogRecord, ...]:
        self._check(wire)
        return tuple(map(_checked_record, wire))

    def write(self, value: tuple[LogRecord, ...]) -> Any:
        self._check(value)
        return value

    def show(self, value: tuple[LogRecord, ...]) -> str:
        return f"<{len(value)} of {sum(len(record.payload) for record in value)} bytes>"

    @staticmethod
    def _check(records: Any) -> None:
        if not isinstance(records, tuple) or not records:
            raise _unlike("at least one log record", records)
        for record in records:
            if not isinstance(record, tuple) or len(record) != 2:
                raise _unlike("a log record, [crc, payload]", record)
            crc, payload = record
            if type(crc) is not int or not 0 <= crc <= U32_MAX:
                raise _unlike(f"a crc from 0 to {U32_MAX}", crc)
            if type(payload) is not bytes or not payload:
                raise _unlike("a payload of at least 1 byte", payload)


class OpsKind(Kind[tuple[Op, ...]]):
    """The operations of an entry, at least one. FORMAT.md, "Entry"."""

    def read(self, wire: Any) -> tuple[Op, ...]:
        if not isinstance(wire, tuple) or not wire:
            raise _unlike("at least one operation", wire)
        try:
            return tuple([decode_op(op) for op in wire])
        except EntryDamaged as error:
            raise ValueError(error.message) from error

    def show(self, value: tuple[Op, ...]) -> str:
        return f"<{len(value)}>"


def _items(wire: Any, count: int, expected: str) -> Sequence[Any]:
    if not isinstance(wire, tuple) or len(wire) != count:
        raise _unlike(expected, wire)
    return wire


def _show_items(shown: list[str], count: int, *, newest_last: bool = False) -> str:
    if count > len(shown):
        shown = [f"({count - len(shown)} more)", *shown] if newest_last else [*shown, f"({count - len(shown)} more)"]
    return f"[{','.join(shown)}]"


def mismatch(expected: str, got: Any) -> str:
    """``expected X, got Y``; tells of a value its type and size, and no content but numbers."""
    match got:
        case None | bool() | int() | float():
            found = str(got)
        case str():
            found = f"text of {len(got)} characters"
        case bytes():
            found = f"{len(got)} bytes"
        case tuple() | list():
            found = f"an array of {len(got)}"
        case _:
            found = type(got).__name__
    return f"expected {expected}, got {found}"


def _unlike(expected: str, got: Any) -> ValueError:
    return ValueError(mismatch(expected, got))


_u64 = Integer(0, U64_MAX)
_id = Octets(ID_BYTES)
_name = Text("a name: 1 to 63 letters, digits, '.', '_' or '-'", r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_address = AddressText()
_bytes = Blob()
_position = PositionKind()
_token = Text("1 to 64 printable ASCII characters without blanks", r"[!-~]{1,64}")

#: Annotations of the frames' fields: the type, and the kind that checks it.
Version: TypeAlias = Annotated[int, Integer(1, U32_MAX)]
U32: TypeAlias = Annotated[int, Integer(0, U32_MAX)]
U64: TypeAlias = Annotated[int, _u64]
EpochField: TypeAlias = Annotated[Epoch, EpochKind()]
Bool: TypeAlias = Annotated[bool, Flag()]
Id: TypeAlias = Annotated[bytes, _id]
IdOrEmpty: TypeAlias = Annotated[bytes, Octets(ID_BYTES, 0)]
Name: TypeAlias = Annotated[str, _name]
NameOrEmpty: TypeAlias = Annotated[str, Text("a name or no text", r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})?")]
AddressOrEmpty: TypeAlias = Annotated[str, _address]
Token: TypeAlias = Annotated[str, _token]
FreeText: TypeAlias = Annotated[str, Text()]
Bytes: TypeAlias = Annotated[bytes, _bytes]
NonEmptyBytes: TypeAlias = Annotated[bytes, Blob(1)]
JsonText: TypeAlias = Annotated[bytes, JsonBytes()]
Key: TypeAlias = Annotated[bytes, KeyBytes()]
Tokens: TypeAlias = Annotated[tuple[str, ...], Listing(_token)]
At: TypeAlias = Annotated[Position, _position]
Reigns: TypeAlias = Annotated[History, HistoryKind()]
Members: TypeAlias = Annotated[tuple[Member, ...], Listing(MemberKind())]
Records: TypeAlias = Annotated[tuple[LogRecord, ...], RecordsKind()]
Ops: TypeAlias = Annotated[tuple[Op, ...], OpsKind()]
MaybeU32: TypeAlias = Annotated[int | None, Nullable(Integer(0, U32_MAX))]
MaybeToken: TypeAlias = Annotated[str | None, Nullable(_token)]
MaybeText: TypeAlias = Annotated[str | None, Nullable(Text())]
MaybeJson: TypeAlias = Annotated[bytes | None, Nullable(JsonBytes())]
MaybeIncoming: TypeAlias = Annotated[Incoming | None, Nullable(IncomingKind())]
