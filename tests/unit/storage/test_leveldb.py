"""The engine's writes, reads and walks, and what opening finds."""

from pathlib import Path

import plyvel
import pytest

from kvnode.node.api import KeyRange, Record
from kvnode.node.config import Config, MiB
from kvnode.node.errors import EngineClosed, EngineFailed, UnknownFormat
from kvnode.node.storage.engine import Applied
from kvnode.node.storage.leveldb import LevelDbFactory, leveldb_factory
from kvnode.protocol.types import Entry, Epoch, Position, delete, put
from support.engines import EPOCH, SMALL, entry, expect_range, fill, opened, read_range, read_values

RECORDS = {b"key%03d" % number: b'"value %d"' % number for number in range(50)}


def test_factory_takes_its_options_from_the_settings() -> None:
    config = Config(engine_write_buffer_bytes=MiB, engine_block_cache_bytes=2 * MiB, engine_open_files=100)
    factory = leveldb_factory(config)
    assert factory == LevelDbFactory(write_buffer_bytes=MiB, block_cache_bytes=2 * MiB, open_files=100)
    assert factory.compression == "snappy"


def test_new_engine_is_empty_and_at_position_zero(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        nothing = Position(Epoch(0), 0)
        assert engine.applied == Applied(nothing, synced=False)
        assert engine.read([b"a"]) == ([None], nothing)
        assert not engine.contains(b"a")
        assert read_range(engine, KeyRange()) == ([], None)
        assert engine.level0_files() == 0
        assert engine.flush() == nothing


def test_written_records_are_read_with_their_version(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        engine.write([entry(1, [put(b"a", b"1"), put(b"b", b'"x"', 77)]), entry(2, [put(b"a", b"2")])], synced=True)
        records, applied = engine.read([b"b", b"a", b"c"])
        assert records == [Record(Position(EPOCH, 1), 77, b'"x"'), Record(Position(EPOCH, 2), 0, b"2"), None]
        assert applied == Position(EPOCH, 2)
        assert engine.applied == Applied(applied, synced=True, time_ms=1002)
        assert [engine.contains(key) for key in (b"a", b"b", b"c")] == [True, True, False]


def test_operations_take_effect_in_order(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        engine.write([entry(1, [put(b"a", b"1"), delete(b"a"), put(b"b", b"1"), delete(b"c")])], synced=True)
        engine.write(
            [entry(2, [delete(b"b"), put(b"b", b"2"), put(b"d", b"1")]), entry(3, [delete(b"d")])], synced=True
        )
        assert read_values(engine, [b"a", b"b", b"c", b"d"]) == [None, b"2", None, None]


def test_records_of_one_reign_share_its_epoch(tmp_path: Path) -> None:
    """In a cache of a million records it would be a million equal objects."""
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"a": b"1", b"b": b"2"})
        first, second = engine.read([b"a", b"b"])[0]
        assert isinstance(first, Record)
        assert isinstance(second, Record)
        assert first.position.epoch is second.position.epoch


def test_writing_nothing_changes_nothing(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        engine.write([], synced=True)
        assert engine.applied.position.seq == 0


@pytest.mark.parametrize("flushed", [False, True])
def test_everything_is_there_after_reopening(tmp_path: Path, flushed: bool) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, RECORDS)
        engine.write([entry(2, [delete(b"key007"), put(b"other", b"[]")])], synced=False)
        if flushed:
            engine.flush()
    left = RECORDS | {b"other": b"[]"}
    del left[b"key007"]
    with opened(SMALL, tmp_path / "db") as engine:
        assert engine.applied == Applied(Position(EPOCH, 2), synced=False, time_ms=1002)
        assert read_range(engine, KeyRange()) == expect_range(left, KeyRange())


def test_keys_of_any_bytes_and_lengths_are_kept(tmp_path: Path) -> None:
    records = {
        key: b"%d" % number
        for number, key in enumerate((b"\x00", b"\x00\x00", b"\xff", b"\xff" * 4096, b"k", b"mapplied", "/ä☃".encode()))
    }
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, records)
        assert read_range(engine, KeyRange()) == expect_range(records, KeyRange())
        assert read_values(engine, list(records)) == list(records.values())


def test_scan_shows_one_snapshot_and_its_position(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, RECORDS)
        scan = engine.scan(KeyRange())
        items = scan.next_items(10, 1 << 20)
        engine.write([entry(2, [delete(key) for key in RECORDS])], synced=True)
        engine.flush()
        while some := scan.next_items(10, 1 << 20):
            items += some
        scan.close()
        assert scan.applied == Position(EPOCH, 1)
        assert items == sorted(RECORDS.items())
        assert read_range(engine, KeyRange()) == ([], None)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_hands_out_as_many_items_as_asked_for(tmp_path: Path, reverse: bool) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, RECORDS)
        scan = engine.scan(KeyRange(limit=25, reverse=reverse))
        counts = []
        while items := scan.next_items(10, 1 << 20):
            counts.append((len(items), scan.ended))
        assert counts == [(10, False), (10, False), (5, True)]
        assert scan.next_key == (b"key024" if reverse else b"key025")
        assert scan.next_items(10, 1 << 20) == []
        scan.close()


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_stops_at_the_first_item_that_reaches_the_bytes(tmp_path: Path, reverse: bool) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"a": b"x" * 1000, b"b": b"x" * 1000, b"c": b"x" * 5000, b"d": b"x"})
        scan = engine.scan(KeyRange(reverse=reverse))
        counts = []
        while items := scan.next_items(1000, 1500):
            counts.append(len(items))
        scan.close()
        assert counts == ([2, 2] if reverse else [2, 1, 1])


def test_scan_of_an_impossible_range_is_empty(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, RECORDS)
        assert read_range(engine, KeyRange(first=b"key020", last=b"key010")) == ([], None)
        assert read_range(engine, KeyRange(prefix=b"key", last=b"a", reverse=True)) == ([], None)


def test_reverse_scan_finds_an_only_item_on_its_lower_bound(tmp_path: Path) -> None:
    """plyvel's own reverse iterator does not."""
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, RECORDS)
        wanted = KeyRange(first=b"key020", last=b"key020", reverse=True)
        assert read_range(engine, wanted) == ([(b"key020", b'"value 20"')], None)


def test_closed_scan_says_so(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, RECORDS)
        scan = engine.scan(KeyRange())
        scan.close()
        scan.close()
        with pytest.raises(EngineClosed):
            scan.next_items(1, 1)


def test_level0_files_are_counted(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        # Tables that overlap each other stay at level 0 until there are four.
        for seq in range(1, 4):
            fill(engine, seq, RECORDS)
            engine.flush()
        assert engine.level0_files() >= 1


def test_second_opening_is_refused(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, RECORDS)
        for paranoid in (True, False):
            with pytest.raises(EngineFailed, match="lock") as caught:
                SMALL(tmp_path / "db", paranoid=paranoid)
            assert not caught.value.disk_full
        assert read_range(engine, KeyRange()) == expect_range(RECORDS, KeyRange())


def test_format_version_is_written_at_once(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db"):
        pass
    with plyvel.DB(str(tmp_path / "db")) as db:
        assert list(db) == [(b"mformat", b"\x00\x00\x00\x01")]


def test_stored_form_is_the_documented_one(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        engine.write([Entry(2, EPOCH, 9, [put(b"a", b"true", 5)])], synced=True)
    epoch = EPOCH.to_bytes(8, "big")
    with plyvel.DB(str(tmp_path / "db")) as db:
        assert dict(db) == {
            b"ka": bytes(7) + b"\x02" + epoch + bytes(7) + b"\x05" + b"true",
            b"mapplied": bytes(7) + b"\x02" + epoch + bytes(7) + b"\x09" + b"\x01",
            b"mformat": b"\x00\x00\x00\x01",
        }


def test_unknown_format_version_is_refused_naming_both(tmp_path: Path) -> None:
    with plyvel.DB(str(tmp_path / "db"), create_if_missing=True) as db:
        db.put(b"mformat", b"\x00\x00\x00\x07")
    for paranoid in (True, False):
        with pytest.raises(UnknownFormat, match=r"version 7.* version 1"):
            SMALL(tmp_path / "db", paranoid=paranoid)
    with plyvel.DB(str(tmp_path / "db")) as db:
        assert dict(db) == {b"mformat": b"\x00\x00\x00\x07"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({b"ka": b"x"}, "no format version"),
        ({b"zebra": b""}, "no format version"),
        ({b"mformat": b"\x01"}, "mformat"),
        ({b"mformat": b"\x00\x00\x00\x01", b"mapplied": b"short"}, "mapplied"),
    ],
)
def test_database_that_is_no_engine_is_refused(tmp_path: Path, content: dict[bytes, bytes], reason: str) -> None:
    with plyvel.DB(str(tmp_path / "db"), create_if_missing=True) as db:
        for key, value in content.items():
            db.put(key, value)
    with pytest.raises(EngineFailed, match=reason):
        SMALL(tmp_path / "db", paranoid=True)
    with plyvel.DB(str(tmp_path / "db")) as db:
        assert dict(db) == content


def test_directory_that_cannot_be_made_is_an_engine_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineFailed):
        SMALL(tmp_path / "file" / "db", paranoid=True)
