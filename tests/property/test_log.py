"""The log against a list: appended, rotated, dropped, synced, reopened and crashed in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvnode.node.errors import LogTrimmed, StorageFull
from kvnode.node.storage.logreader import LogReader
from kvnode.node.storage.logview import LogView, LogWalk
from kvnode.node.storage.recovery import Storage, list_segments
from kvnode.node.storage.segment import HEADER_BYTES, read_records
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.entry import decode_entry, payload_crc
from kvnode.protocol.types import Entry, delete, put
from support.crash_plan import DROPPED, KEPT, torn
from support.storage_rig import CLUSTER_ID, StorageRig

VALUES = st.integers(0, 400).map(lambda size: b'"' + b"v" * size + b'"')
OPS = st.lists(
    st.builds(put, st.sampled_from([b"a", b"b", b"c"]), VALUES) | st.just(delete(b"a")), min_size=1, max_size=3
)
GROUPS = st.lists(OPS, min_size=1, max_size=4)


class LogMachine(RuleBasedStateMachine):
    """A node's storage that writes groups and is stopped, killed or cut off from power.

    Attributes:
        model: every entry that was written and may still be in the log, in order.
        durable: how many of them must survive anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model: list[Entry] = []
        self.durable = 0

    @initialize(
        segment_bytes=st.integers(HEADER_BYTES + 1, 1500),
        keep_bytes=st.sampled_from([0, 2000, 1 << 40]),
        sync=st.sampled_from([False, False, True]),
    )
    def begin(self, segment_bytes: int, keep_bytes: int, sync: bool) -> None:
        self.rig = StorageRig(WalOptions(segment_bytes, keep_bytes, sync))
        self.storage: Storage = self.rig.start()
        self.reader = LogReader(self.rig.disk, self.storage.wal)
        self.next_seq = 1

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            self.storage.wal.abandon()

    # ---- what happens --------------------------------------------------------------------------------------------

    @rule(group=GROUPS)
    def write(self, group: list[list[object]]) -> None:
        before = self.storage.wal.last_seq
        closed = self.rig.write(self.storage, [group])  # type: ignore[list-item]
        assert self.storage.wal.last_seq == before + len(group)
        self.note_written(before)
        if closed:
            # Closing a segment makes durable what was in it.
            self.durable = max(self.durable, before)
        if self.rig.options.sync:
            self.durable = self.storage.wal.last_seq

    @rule(group=GROUPS, share=st.floats(0, 1))
    def write_with_the_disk_full(self, group: list[list[object]], share: float) -> None:
        before, segments = self.storage.wal.last_seq, len(self.storage.wal.segments)
        failure = self.rig.disk.plan.fail(("write_at", "*.wal"), 28, partial=share)
        try:
            self.rig.write(self.storage, [group])  # type: ignore[list-item]
        except StorageFull:
            assert self.storage.wal.last_seq == before
            # What is cut back is synced, and everything before with it.
            self.durable = before
        else:
            raise AssertionError("the disk was full")
        finally:
            self.rig.disk.plan.failures.remove(failure)
        assert len(self.storage.wal.segments) - segments in (0, 1)

    @rule()
    def sync(self) -> None:
        self.storage.wal.sync()
        self.durable = self.storage.wal.last_seq

    @rule()
    def checkpoint(self) -> None:
        self.rig.checkpoint(self.storage)
        self.durable = self.storage.wal.last_seq
        self.rig.trim(self.storage)

    @rule(ahead=st.sampled_from([0, 0, 0, 1, 7]), share=st.floats(0, 1), max_bytes=st.integers(1, 3000))
    def read_on(self, ahead: int, share: float, max_bytes: int) -> None:
        """A replica's reader goes on, perhaps over what reached the replica in another way."""
        wal = self.storage.wal
        first_seq = self.next_seq + ahead
        if first_seq > wal.last_seq:
            return
        last_seq = first_seq + int((wal.last_seq - first_seq) * share)
        try:
            records, size = self.reader.read(first_seq, last_seq, max_bytes)
        except LogTrimmed as error:
            self.next_seq = error.first_seq
            if first_seq < wal.first_seq == self.next_seq:
                return
            raise
        expected = self.model[first_seq - 1 : first_seq - 1 + len(records)]
        assert [decode_entry(payload) for _, payload in records] == expected
        assert all(payload_crc(payload) == crc for crc, payload in records)
        assert size == sum(len(payload) for _, payload in records)
        assert size <= max_bytes or len(records) == 1
        self.next_seq = first_seq + len(records)
        assert self.next_seq <= last_seq + 1

    @rule()
    def stop_and_start(self) -> None:
        self.rig.stop(self.storage)
        self.restart(self.rig.crashed(DROPPED))
        assert self.storage.clean
        assert self.storage.wal.last_seq == len(self.model)

    @rule(groups=st.lists(GROUPS, max_size=3))
    def kill(self, groups: list[list[list[object]]]) -> None:
        for group in groups:
            self.write(group)
        self.restart(self.rig.crashed(KEPT))
        assert self.storage.wal.last_seq == len(self.model)

    @rule(groups=st.lists(GROUPS, max_size=3), seed=st.none() | st.integers(0, 1000))
    def lose_power(self, groups: list[list[list[object]]], seed: int | None) -> None:
        for group in groups:
            self.write(group)
        # LevelDB keeps what was flushed: when it keeps more than the log, it counts, which is another story.
        self.restart(self.rig.crashed(DROPPED if seed is None else torn(seed), DROPPED))

    def restart(self, rig: StorageRig) -> None:
        self.rig = rig
        self.storage = rig.start()
        self.reader = LogReader(rig.disk, self.storage.wal)
        self.next_seq = min(self.next_seq, self.storage.wal.last_seq + 1)
        last_seq = self.storage.wal.last_seq
        assert self.durable <= last_seq <= len(self.model)
        del self.model[last_seq:]
        self.durable = last_seq

    def note_written(self, after_seq: int) -> None:
        segment = self.storage.wal.segments[-1]
        data = self.rig.read(self.rig.layout.wal / segment.name)
        entries = [record.entry for record in read_records(data, segment.first_seq)]
        self.model += [entry for entry in entries if entry.seq > after_seq]

    # ---- what holds ----------------------------------------------------------------------------------------------

    @precondition(lambda self: hasattr(self, "storage"))
    @invariant()
    def log_holds_the_model_from_its_first_seq_on(self) -> None:
        wal = self.storage.wal
        segments = wal.segments
        assert list_segments(self.rig.disk, self.rig.layout.wal, CLUSTER_ID) == [each.first_seq for each in segments]
        view = LogView(self.rig.disk, self.rig.layout.wal, CLUSTER_ID)
        reader = LogWalk(view)
        records = list(reader.records(None, None))
        assert reader.faults == []
        assert [record.entry for record in records] == self.model[segments[0].first_seq - 1 :]
        assert wal.last_seq == len(self.model)
        assert segments[0].first_seq <= self.storage.checkpoint_seq + 1

    @precondition(lambda self: hasattr(self, "storage"))
    @invariant()
    def segments_are_as_listed(self) -> None:
        segments = self.storage.wal.segments
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            data = self.rig.read(self.rig.layout.wal / segment.name)
            records = list(read_records(data, segment.first_seq))
            assert segment.last_seq == segment.first_seq - 1 + len(records)
            assert segment.end == (records[-1].end if records else HEADER_BYTES)
            if following is not None:
                assert following.first_seq == segment.last_seq + 1
                assert segment.end == len(data)
            assert not any(data[segment.end :])

    @precondition(lambda self: hasattr(self, "storage"))
    @invariant()
    def marks_do_not_lie(self) -> None:
        """All before a marked record is on stable storage."""
        stable = self.rig.disk.stable_snapshot(self.rig.layout.wal)
        for segment in self.storage.wal.segments:
            path = self.rig.layout.wal / segment.name
            data = self.rig.read(path)
            ends = [record.offset for record in read_records(data, segment.first_seq) if record.marked]
            for end in ends:
                assert stable[path][:end] == data[:end]
            if ends:
                before = [other for other in stable if other < path]
                assert all(stable[other] == self.rig.read(other) for other in before)

    @precondition(lambda self: hasattr(self, "storage"))
    @invariant()
    def leveldb_is_level_with_the_log(self) -> None:
        applied = self.storage.engine.applied.position
        assert applied.seq == self.storage.wal.last_seq
        expected: dict[bytes, bytes] = {}
        for entry in self.model:
            for op in entry.ops:
                if op.kind == 1:
                    expected[op.key] = op.value  # type: ignore[union-attr]
                else:
                    expected.pop(op.key, None)
        found, _ = self.storage.engine.read([b"a", b"b", b"c"])
        held = [None if record is None else record.value for record in found]  # type: ignore[union-attr]
        assert held == [expected.get(key) for key in (b"a", b"b", b"c")]


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
