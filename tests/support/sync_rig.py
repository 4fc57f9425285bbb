"""A replica's directory into which a full sync comes: its own data, the primary's that replace them, and checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvnode.node.api import Record
from kvnode.node.storage.datadir import Member
from kvnode.node.storage.incoming import IncomingStore
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.segment import HEADER_BYTES
from kvnode.node.storage.wal import Segment
from kvnode.protocol import fields
from kvnode.protocol.snapshot import SnapshotRecord
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign
from support.model_engine import ModelEngineDisk
from support.storage_rig import CLUSTER_ID, StorageRig, check_holds

#: The primary's reigns, none of which the replica's own data are of.
FIRST_REIGN, SECOND_REIGN = Epoch.of(20, 7), Epoch.of(21, 8)
HISTORY = History((Reign(FIRST_REIGN, 1), Reign(SECOND_REIGN, 60)))
MEMBERS = (fields.Member(b"m" * 16, "n1", "10.0.0.1:7001"), fields.Member(b"n" * 16, "n2"))
STORED_MEMBERS = tuple(Member(each.node_id.hex(), each.name, each.address) for each in MEMBERS)

SYNC = Incoming(b"s" * 16, first=Position(FIRST_REIGN, 50), latest=Position(SECOND_REIGN, 70))


def record(number: int, value: bytes = b"1") -> SnapshotRecord:
    """A record of the primary's, in the order of their numbers."""
    return SnapshotRecord(b"new%05d" % number, number % 50 + 1, FIRST_REIGN, 0, value)


def records(first: int, last: int, value: bytes = b"1") -> list[SnapshotRecord]:
    """Those of some numbers."""
    return [record(number, value) for number in range(first, last + 1)]


def as_replica(rig: StorageRig) -> StorageRig:
    """The same directory, as a replica's."""
    rig.identity = replace(rig.identity, role="replica", primary="10.0.0.1:7001")
    return rig


def open_incoming(rig: StorageRig) -> IncomingStore:
    """Its incoming/, as a process finds it that has just started."""
    return IncomingStore(rig.disk, rig.layout, rig.files, rig.engines, CLUSTER_ID, rig.options, rig.captured)


def stored_in(engines: ModelEngineDisk, rig: StorageRig, sync: Incoming) -> dict[bytes, Record]:
    """What LevelDB below incoming/ holds, as far as it is in the log."""
    database = engines.database(rig.layout.incoming / f"db-{sync.sync_id.hex()}")
    state = database.tables.copy()
    for log in database.logs:
        state.apply(log)
    return state.records


def as_stored(copied: Sequence[SnapshotRecord]) -> dict[bytes, Record]:
    """Records by key, as the engine holds them."""
    return {each.key: Record(Position(each.epoch, each.seq), each.expires_ms, each.value) for each in copied}


def check_own(rig: StorageRig, last_seq: int, storage: Storage | None = None) -> Storage:
    """The replica's own data are there, as `StorageRig.write_puts` made them, and nothing else.

    Args:
        storage: what was recovered; None to do that here.
    """
    storage = storage or rig.recover()
    assert storage.wal.first_seq == 1
    check_holds(storage, last_seq)
    assert not any(key.startswith(b"new") for key, *_ in storage.engine.scan_records(b"").next_records(1 << 20))
    assert storage.history != HISTORY
    assert rig.files.load_members() != STORED_MEMBERS
    assert rig.files.load_serve_from() is None
    return storage


def check_replaced(
    rig: StorageRig, sync: Incoming, copied: Sequence[SnapshotRecord], storage: Storage | None = None
) -> Storage:
    """The primary's data are there and nothing else but, perhaps, another sync.

    Args:
        storage: what was recovered; None to do that here.
    """
    storage = storage or rig.recover()
    first = sync.first
    assert storage.wal.segments == [Segment(first.seq + 1, first.seq, HEADER_BYTES)]
    assert storage.wal.last_seq == first.seq
    assert storage.engine.applied.position == first
    assert storage.checkpoint_seq == first.seq
    assert storage.history == HISTORY
    assert rig.files.load_members() == STORED_MEMBERS
    assert rig.files.load_serve_from() == (sync.latest if sync.latest.seq > first.seq else None)
    assert storage.engine.scan_records(b"").next_records(1 << 30) == sorted(copied)
    assert not rig.disk.exists(rig.layout.swap)
    assert rig.files.load_repair() is None
    return storage
