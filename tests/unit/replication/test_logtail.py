"""The newest records in memory, against a list of all of them."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.node.replication.logtail import LogTail
from kvnode.protocol.codec import MAX_FRAME_BYTES, encode
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import Entries
from support.peers import payload_bytes, record, records

#: What a record costs besides its payload, as the tail counts.
RECORD_BYTES = 150


@dataclass
class Model:
    """All records from a seq on, and by which groups they were added."""

    keep_bytes: int
    log: list[LogRecord] = field(default_factory=list)
    first_seq: int = 1
    groups: list[tuple[int, int]] = field(default_factory=list)

    @property
    def next_seq(self) -> int:
        return self.first_seq + len(self.log)

    def add(self, added: list[LogRecord]) -> None:
        self.groups.append((self.next_seq, len(added)))
        self.log += added

    def restart(self, first_seq: int) -> None:
        self.log, self.first_seq, self.groups = [], first_seq, []

    @property
    def kept_from(self) -> int | None:
        """Where the tail must begin: the newest groups that fit, one at least."""
        size, kept = 0, None
        for first, count in reversed(self.groups):
            group = self.log[first - self.first_seq :][:count]
            size += payload_bytes(group) + RECORD_BYTES * count
            if kept is not None and size > self.keep_bytes:
                break
            kept = first
        return kept

    def read(self, first: int, last: int, max_bytes: int) -> list[LogRecord] | None:
        kept = self.kept_from
        if kept is None or first < kept:
            return None
        found: list[LogRecord] = []
        for each in self.log[first - self.first_seq : last + 1 - self.first_seq]:
            if found and payload_bytes(found) + len(each.payload) > max_bytes:
                break
            found.append(each)
        return found

    def newest(self, first: int, last: int, count: int) -> list[LogRecord]:
        kept = self.kept_from
        if kept is None:
            return []
        return self.log[max(first, kept) - self.first_seq : max(0, last + 1 - self.first_seq)][-count:]


def group_of(model: Model, sizes: list[int]) -> list[LogRecord]:
    return [record(model.next_seq + number, value=b"x" * size) for number, size in enumerate(sizes)]


@settings(max_examples=150)
@given(st.data(), st.integers(0, 4000))
def test_it_holds_what_a_list_holds(data: st.DataObject, keep_bytes: int) -> None:
    tail, model = LogTail(keep_bytes), Model(keep_bytes)
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["add", "add", "add", "read", "read", "clear", "replace"])):
            case "add":
                added = group_of(model, data.draw(st.lists(st.integers(0, 600), min_size=1, max_size=6)))
                tail.add(model.next_seq, added)
                model.add(added)
            case "clear":
                tail.clear()
                model.restart(model.next_seq)
            case "replace":
                # The next group shows it.
                model.restart(model.next_seq + data.draw(st.integers(1, 50)))
                added = group_of(model, [10])
                tail.add(model.next_seq, added)
                model.add(added)
            case _ if model.log:
                first = data.draw(st.integers(model.first_seq, model.next_seq - 1))
                last = data.draw(st.integers(first, model.next_seq - 1))
                max_bytes = data.draw(st.integers(0, 3000))
                found = tail.read(first, last, max_bytes)
                expected = model.read(first, last, max_bytes)
                assert (None if found is None else list(found.records)) == expected
                if found is not None:
                    assert found.payload_bytes == payload_bytes(found.records)
                    assert tail.read(first, last, max_bytes) == found
                count = data.draw(st.integers(1, 8))
                assert tail.newest(first - 1, last, count) == model.newest(first, last, count)
            case _:
                assert tail.read(1, 1, 1000) is None


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.integers(1, 1000), st.data())
def test_reads_after_each_other_hand_out_all(sizes: list[int], max_bytes: int, data: st.DataObject) -> None:
    tail, model = LogTail(1 << 20), Model(1 << 20)
    while sizes:
        count = data.draw(st.integers(1, len(sizes)))
        added = group_of(model, sizes[:count])
        tail.add(model.next_seq, added)
        model.add(added)
        del sizes[:count]
    found: list[LogRecord] = []
    while len(found) < len(model.log):
        stretch = tail.read(1 + len(found), len(model.log), max_bytes)
        assert stretch is not None
        found += stretch.records
    assert found == model.log


def test_a_group_that_is_larger_than_all_that_is_kept_stays() -> None:
    tail = LogTail(keep_bytes=1000)
    tail.add(1, records(1, 3))
    tail.add(4, records(4, 5, value=b"x" * 5000))
    assert tail.read(3, 5, 1 << 20) is None
    found = tail.read(4, 5, 1 << 20)
    assert found is not None
    assert found.records == records(4, 5, value=b"x" * 5000)
    tail.add(6, records(6, 6))
    assert tail.read(5, 6, 1 << 20) is None
    assert tail.read(6, 6, 1 << 20) is not None


def test_a_replaced_log_is_not_mixed_with_the_old_one() -> None:
    tail = LogTail()
    tail.add(1, records(1, 5))
    assert tail.read(2, 5, 1000) is not None
    tail.add(4, records(4, 4, value=b'"other"'))
    assert tail.read(2, 4, 1000) is None
    found = tail.read(4, 4, 1000)
    assert found is not None
    assert found.records == records(4, 4, value=b'"other"')
    tail.clear()
    assert tail.read(4, 4, 1000) is None


def test_what_several_replicas_are_sent_is_read_and_encoded_once() -> None:
    tail = LogTail()
    tail.add(1, records(1, 5))
    first, second = tail.read(2, 5, 1000), tail.read(2, 5, 1000)
    assert first is not None
    assert second is not None
    assert first is second
    frame = tail.encode(first.records, MAX_FRAME_BYTES)
    assert frame == encode(Entries(records(2, 5)))
    assert tail.encode(second.records, MAX_FRAME_BYTES) is frame
    third = tail.read(3, 5, 1000)
    assert third is not None
    assert tail.encode(third.records, MAX_FRAME_BYTES) == encode(Entries(records(3, 5)))
    assert tail.encode(first.records, MAX_FRAME_BYTES) == frame
