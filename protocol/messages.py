"""The frames of the peer protocol: one frozen dataclass a type, and what msgpack packs for it.

A frame's fields stand in wire order and are never reordered or removed. A new one is appended: decoders ignore trailing
fields that they do not know. All fields of protocol version 1 are required.

Source: FORMAT.md, "Handshake" and "Messages".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from operator import attrgetter
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias, get_args, get_type_hints

from kvnode.protocol.fields import (
    U32,
    U64,
    AddressOrEmpty,
    At,
    Bool,
    Bytes,
    Choice,
    EpochField,
    FreeText,
    Id,
    IdOrEmpty,
    JsonText,
    Key,
    Kind,
    MaybeIncoming,
    MaybeJson,
    MaybeText,
    MaybeToken,
    MaybeU32,
    Members,
    Name,
    NameOrEmpty,
    NonEmptyBytes,
    Ops,
    Records,
    Reigns,
    Token,
    Tokens,
    Version,
)

#: The protocol versions that this code speaks, both included.
MIN_VERSION = 1
MAX_VERSION = 1

#: The feature of a node that answers READ. On the wire: never rename.
FEATURE_READ = "read"

#: What a node of this code announces in WELCOME.
NODE_FEATURES = (FEATURE_READ,)


class FrameType(IntEnum):
    """The first element of every frame. On the wire: never renumber, never reuse."""

    HELLO = 1
    WELCOME = 2
    ERROR = 3
    PING = 4
    SUBSCRIBE = 5
    HISTORY = 6
    ENTRIES = 7
    ACK = 8
    SNAPSHOT_BEGIN = 9
    SNAPSHOT_CHUNK = 10
    SNAPSHOT_END = 11
    WRITE = 12
    WRITE_RESULT = 13
    STATUS = 14
    STATUS_RESULT = 15
    READ = 16
    READ_RESULT = 17


class Purpose(StrEnum):
    """What a session is for. On the wire: never rename."""

    #: follows the log and is a member
    REPLICA = "replica"
    #: writes, reads, and asks for the status
    CLIENT = "client"
    #: reads the stream of any node and counts for nothing
    OBSERVE = "observe"
    #: asks who is there
    PROBE = "probe"


class Role(StrEnum):
    """What a node is. On the wire: never rename."""

    PRIMARY = "primary"
    REPLICA = "replica"


class _Frame:
    """What all frames share. `str` is made for logs: bounded, on one line, without payloads or secrets."""

    __slots__ = ()

    TYPE: ClassVar[FrameType]

    def check(self) -> None:
        """What holds between the fields, once each is in its range.

        Raises:
            ValueError: it does not; the message begins with a field's name.
        """

    def __str__(self) -> str:
        shown = [f" {each.name}={each.kind.show(getattr(self, each.name))}" for each in LAYOUTS[self.TYPE].fields]
        return self.TYPE.name + "".join(shown)


@dataclass(frozen=True, slots=True)
class Hello(_Frame):
    """The first frame of whoever connected."""

    TYPE: ClassVar = FrameType.HELLO

    #: the protocol versions that the sender speaks, both included
    min_version: Version
    max_version: Version
    #: 16 bytes; empty when the sender does not know it yet
    cluster_id: IdOrEmpty
    #: 16 bytes, made once for a data directory; random for a sender that has none
    node_id: Id
    #: 16 bytes, random at every start: tells a node that reconnects from a copy of its directory
    boot_id: Id
    #: may be empty, but for a replica
    name: NameOrEmpty
    purpose: Annotated[Purpose, Choice(Purpose)]
    #: what the sender understands beyond its version, such as kinds of operations
    features: Tokens
    #: credentials; empty while there are none
    auth: Bytes = field(repr=False)
    #: HOST:PORT where the sender itself accepts peer sessions. A wildcard host, 0.0.0.0 or [::], means the IP address
    #: that this connection is seen to come from. Empty = it accepts none, or does not know where
    address: AddressOrEmpty

    def check(self) -> None:
        if self.max_version < self.min_version:
            raise ValueError(f"max_version: {self.max_version} is below min_version {self.min_version}")
        if self.purpose is Purpose.REPLICA and not self.name:
            raise ValueError("name: a replica must have one")


@dataclass(frozen=True, slots=True)
class Welcome(_Frame):
    """The answer to HELLO."""

    TYPE: ClassVar = FrameType.WELCOME

    #: the protocol version of this session
    version: Version
    cluster_id: Id
    node_id: Id
    name: Name
    role: Annotated[Role, Choice(Role)]
    history: Reigns
    #: durable at the sender; 0 = none
    last_seq: U64
    features: Tokens


@dataclass(frozen=True, slots=True)
class Error(_Frame):
    """Why the sender closes the session, or will not do what it was asked to."""

    TYPE: ClassVar = FrameType.ERROR

    #: stable; programs may match on it
    code: Token
    #: for people
    message: FreeText


@dataclass(frozen=True, slots=True)
class Ping(_Frame):
    """A sign of life, and what a peer's lag is computed from."""

    TYPE: ClassVar = FrameType.PING

    #: durable at the sender; 0 = none
    last_seq: U64
    #: the sender's UTC clock, milliseconds since 1970
    time_ms: U64


@dataclass(frozen=True, slots=True)
class Subscribe(_Frame):
    """Asks for the entries after a position."""

    TYPE: ClassVar = FrameType.SUBSCRIBE

    #: the last entry that the sender holds; seq 0 = none. Epoch 0 with another seq means "after seq, whichever epoch
    #: ordered it" and is for the purpose `observe` only: nothing else may skip the check that the histories agree
    position: At
    #: a full sync that was cut, for the primary to resume; None = there is none. An observer has none
    incoming: MaybeIncoming


@dataclass(frozen=True, slots=True)
class HistoryFrame(_Frame):
    """The sender's history and its members; sent before the first entry and whenever either changes.

    Named so because `History` is the value in it.
    """

    TYPE: ClassVar = FrameType.HISTORY

    history: Reigns
    #: every node id and every name once; addresses may repeat
    members: Members

    def check(self) -> None:
        for seen in ({each.node_id for each in self.members}, {each.name for each in self.members}):
            if len(seen) < len(self.members):
                raise ValueError("members: a node id or a name is there twice")


@dataclass(frozen=True, slots=True)
class Entries(_Frame):
    """Consecutive records of the sender's log."""

    TYPE: ClassVar = FrameType.ENTRIES

    #: at least one
    records: Records


@dataclass(frozen=True, slots=True)
class Ack(_Frame):
    """How far the sender got with what it is streamed; each is a seq, 0 = nothing."""

    TYPE: ClassVar = FrameType.ACK

    received: U64
    #: fsynced in the sender's log
    durable: U64
    #: written to the sender's LevelDB
    applied: U64


@dataclass(frozen=True, slots=True)
class SnapshotBegin(_Frame):
    """A snapshot follows, as SNAPSHOT_CHUNK frames and a SNAPSHOT_END."""

    TYPE: ClassVar = FrameType.SNAPSHOT_BEGIN

    #: names the full sync; the same for all snapshots that it takes
    sync_id: Id
    #: what this snapshot shows
    position: At
    #: what the first snapshot of this sync showed: the entries after it are streamed when the snapshot is complete
    first_position: At
    #: whether the chunks go on after the last key that the receiver holds of an earlier snapshot of this sync
    resumed: Bool

    def check(self) -> None:
        if self.first_position.seq > self.position.seq:
            raise ValueError(f"first_position: {self.first_position} is after position {self.position}")


@dataclass(frozen=True, slots=True)
class SnapshotChunk(_Frame):
    """Some records of a snapshot. `kvnode.protocol.snapshot` packs and unpacks them."""

    TYPE: ClassVar = FrameType.SNAPSHOT_CHUNK

    #: CRC-32 of `data`
    crc: U32
    #: msgpack of the records in key order
    data: NonEmptyBytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SnapshotEnd(_Frame):
    """The snapshot is complete."""

    TYPE: ClassVar = FrameType.SNAPSHOT_END

    #: as in its SNAPSHOT_BEGIN
    position: At
    #: how many records its chunks held
    keys: U64


@dataclass(frozen=True, slots=True)
class Write(_Frame):
    """Asks the primary to order one atomic write."""

    TYPE: ClassVar = FrameType.WRITE

    #: chosen by the sender, unique among its unanswered requests of this session
    request_id: U64
    #: at least one
    ops: Ops
    #: replicas besides the primary that must hold it durably; None = a majority of the members, the primary counted
    acks: MaybeU32
    #: how long to wait for them once the write is durable at the primary
    ack_timeout_ms: U32


@dataclass(frozen=True, slots=True)
class WriteResult(_Frame):
    """What became of a WRITE."""

    TYPE: ClassVar = FrameType.WRITE_RESULT

    request_id: U64
    #: of the write's entry, or of the last applied entry where nothing had to be logged; both 0 when an error leaves
    #: no entry to name
    epoch: EpochField
    seq: U64
    #: how many keys existed among those that the write deletes
    deleted: U64
    #: None = success; a code of the REST interface otherwise. Some errors come with an epoch and seq:
    #: `replication_timeout` names the entry that is durable at the primary
    error_code: MaybeToken
    #: None exactly when `error_code` is
    error_message: MaybeText
    #: a JSON object: what the error object of the REST interface has besides code and message, such as a limit or a
    #: hint; None = nothing, and always without an error
    error_fields: MaybeJson

    def check(self) -> None:
        _check_error(self.error_code, self.error_message, self.error_fields)


@dataclass(frozen=True, slots=True)
class Status(_Frame):
    """Asks for what GET /status answers."""

    TYPE: ClassVar = FrameType.STATUS

    #: chosen by the sender, unique among its unanswered requests of this session
    request_id: U64


@dataclass(frozen=True, slots=True)
class StatusResult(_Frame):
    """The answer to STATUS."""

    TYPE: ClassVar = FrameType.STATUS_RESULT

    request_id: U64
    #: a JSON object
    status: JsonText = field(repr=False)


@dataclass(frozen=True, slots=True)
class Read(_Frame):
    """Asks any node for the record of one key. Only for nodes that announce `FEATURE_READ`."""

    TYPE: ClassVar = FrameType.READ

    #: chosen by the sender, unique among its unanswered requests of this session
    request_id: U64
    key: Key = field(repr=False)
    #: of the entry that the read has to see at least; 0 = whichever epoch ordered it
    min_epoch: EpochField
    #: likewise; 0 = what the node has
    min_seq: U64
    #: how long to wait for that entry
    wait_ms: U32


@dataclass(frozen=True, slots=True)
class ReadResult(_Frame):
    """The answer to READ."""

    TYPE: ClassVar = FrameType.READ_RESULT

    request_id: U64
    #: of the entry that wrote the record; both 0 where there is no value
    epoch: EpochField
    seq: U64
    #: JSON text as it was stored; None = the key has no record, or the read failed
    value: MaybeJson = field(repr=False)
    #: the position that the read saw; both 0 when it failed
    applied_epoch: EpochField
    applied_seq: U64
    #: as in WRITE_RESULT. That a key has no record is no error
    error_code: MaybeToken
    error_message: MaybeText
    error_fields: MaybeJson

    def check(self) -> None:
        _check_error(self.error_code, self.error_message, self.error_fields)
        if (self.value is None) is not (self.seq == 0):
            raise ValueError("seq: it is 0 exactly when there is no value")
        if self.value is not None and self.error_code is not None:
            raise ValueError("value: it is there beside error_code")


def _check_error(code: str | None, message: str | None, more: bytes | None) -> None:
    """What holds between the fields in which a result tells of an error."""
    if (code is None) is not (message is None):
        raise ValueError("error_message: it is there exactly when error_code is")
    if code is None and more is not None:
        raise ValueError("error_fields: it is there without error_code")


Message: TypeAlias = (
    Hello
    | Welcome
    | Error
    | Ping
    | Subscribe
    | HistoryFrame
    | Entries
    | Ack
    | SnapshotBegin
    | SnapshotChunk
    | SnapshotEnd
    | Write
    | WriteResult
    | Status
    | StatusResult
    | Read
    | ReadResult
)


class WireField(NamedTuple):
    """A field of a frame: the attribute's name, and what it may hold."""

    name: str
    kind: Kind[Any]


class Layout(NamedTuple):
    """How a type of frame is made up, and what is called for each of its fields, looked up once for all frames.

    Attributes:
        frame: its class.
        fields: in wire order, the type number not among them.
        values: the values of a frame's fields, in that order.
        readers: `read` of each field's kind.
        writers: likewise `write`.
    """

    frame: type[Message]
    fields: tuple[WireField, ...]
    values: Callable[[Message], tuple[Any, ...]]
    readers: tuple[Callable[[Any], Any], ...]
    writers: tuple[Callable[[Any], Any], ...]


def _layout_of(frame: type[Message]) -> Layout:
    hints = get_type_hints(frame, include_extras=True)
    names = [each.name for each in fields(frame)]
    kinds: list[Kind[Any]] = [get_args(hints[name])[1] for name in names]
    return Layout(
        frame,
        tuple(map(WireField, names, kinds)),
        _values_of(names),
        tuple([kind.read for kind in kinds]),
        tuple([kind.write for kind in kinds]),
    )


def _values_of(names: list[str]) -> Callable[[Message], tuple[Any, ...]]:
    # For a single name, attrgetter returns a value and no tuple.
    return attrgetter(*names) if len(names) > 1 else lambda message: (getattr(message, names[0]),)


#: Every type of frame by its number.
LAYOUTS: Mapping[int, Layout] = {frame.TYPE: _layout_of(frame) for frame in get_args(Message)}
