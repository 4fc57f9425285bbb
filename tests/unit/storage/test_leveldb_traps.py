"""What plyvel and LevelDB do by themselves, for which the engine has a remedy. One that no longer fails can go."""

from pathlib import Path
from random import Random
from typing import Any

import plyvel
import pytest

from support.engines import flipped, tables

CHECKED = {"verify_checksums": True, "fill_cache": False}
RECORDS = {b"key%03d" % number: Random(number).randbytes(40).hex().encode() for number in range(60)}


def _make(path: Path, records: dict[bytes, bytes] = RECORDS, **options: Any) -> Path:
    """A database with one table of small blocks without compression; returns the table."""
    options = {"block_size": 1024, "compression": None} | options
    with plyvel.DB(str(path), create_if_missing=True, **options) as db:
        for key, value in records.items():
            db.put(key, value)
        db.compact_range(start=b"\x00", stop=b"\x00")
    return tables(path)[-1]


def _offset(table: Path, key: bytes) -> int:
    """Where a key's value is in the table."""
    return table.read_bytes().index(RECORDS[key])


def test_without_checksums_damage_is_handed_out(tmp_path: Path) -> None:
    table = _make(tmp_path / "db")
    with flipped(table, _offset(table, b"key030"), 1), plyvel.DB(str(tmp_path / "db"), paranoid_checks=True) as db:
        assert db.get(b"key030") not in (RECORDS[b"key030"], None)
        with pytest.raises(plyvel.CorruptionError):
            db.get(b"key030", verify_checksums=True)


def test_walk_ends_early_without_an_error_in_a_damaged_last_block(tmp_path: Path) -> None:
    table = _make(tmp_path / "db")
    with (
        flipped(table, _offset(table, b"key059"), 1),
        plyvel.DB(str(tmp_path / "db"), paranoid_checks=True) as db,
        db.iterator(**CHECKED) as walk,
    ):
        assert 0 < len(list(walk)) < len(RECORDS)
        with pytest.raises(plyvel.CorruptionError):
            walk.prev()


def test_walk_over_nothing_but_damage_finds_nothing_in_both_directions(tmp_path: Path) -> None:
    """So a step back with the same iterator does not show everything; a raw iterator does."""
    table = _make(tmp_path / "db")
    with flipped(table, _offset(table, b"key059"), 1), plyvel.DB(str(tmp_path / "db"), paranoid_checks=True) as db:
        with db.iterator(start=b"key059", **CHECKED) as walk:
            assert list(walk) == []
            with pytest.raises(StopIteration):
                walk.prev()
        with db.raw_iterator(**CHECKED) as raw, pytest.raises(plyvel.CorruptionError):
            raw.seek(b"key059")


def test_reverse_walk_overlooks_an_only_item_on_its_lower_bound(tmp_path: Path) -> None:
    _make(tmp_path / "db")
    with plyvel.DB(str(tmp_path / "db")) as db:
        wanted = {"start": b"key030", "stop": b"key030", "include_stop": True, "include_value": False}
        assert list(db.iterator(**wanted)) == [b"key030"]
        assert list(db.iterator(**wanted, reverse=True)) == []


def test_point_read_takes_a_missing_table_for_a_missing_key(tmp_path: Path) -> None:
    table = _make(tmp_path / "db")
    with plyvel.DB(str(tmp_path / "db"), paranoid_checks=True) as db:
        table.unlink()
        assert db.get(b"key030", verify_checksums=True) is None
        with db.raw_iterator(**CHECKED) as raw, pytest.raises(plyvel.Error):
            raw.seek(b"key030")


def test_without_paranoid_checks_a_damaged_index_is_believed(tmp_path: Path) -> None:
    table = _make(tmp_path / "db")
    content = table.read_bytes()
    # The last whole key before the footer is one by which the index tells two blocks apart.
    with flipped(table, content.rindex(b"key0", 0, len(content) - 48), 0x08):
        with plyvel.DB(str(tmp_path / "db")) as db:
            assert [key for key in RECORDS if db.get(key, verify_checksums=True) is None]
        with plyvel.DB(str(tmp_path / "db"), paranoid_checks=True) as db:
            for key in RECORDS:
                with pytest.raises(plyvel.CorruptionError):
                    db.get(key, verify_checksums=True)


@pytest.mark.parametrize("paranoid", [False, True])
def test_without_paranoid_checks_a_compaction_makes_damage_valid(tmp_path: Path, paranoid: bool) -> None:
    table = _make(tmp_path / "db")
    content = bytearray(table.read_bytes())
    content[_offset(table, b"key030")] ^= 1
    table.write_bytes(content)
    # A second, overlapping table makes a compaction copy the first.
    _make(tmp_path / "db", {b"key000": b"new", b"key059": b"new"}, paranoid_checks=paranoid)
    with plyvel.DB(str(tmp_path / "db"), paranoid_checks=paranoid) as db:
        db.compact_range(start=b"\x00", stop=b"\xff")
        if paranoid:
            with pytest.raises(plyvel.CorruptionError):
                db.get(b"key030", verify_checksums=True)
        else:
            assert db.get(b"key030", verify_checksums=True) not in (RECORDS[b"key030"], None)


def test_default_opening_drops_damaged_log_records_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with plyvel.DB(str(path), create_if_missing=True) as db:
        for key in (b"a", b"b", b"c"):
            db.put(key, b"x" * 20_000)
    [log] = path.glob("*.log")
    content = bytearray(log.read_bytes())
    content[100] ^= 1
    log.write_bytes(content)
    with pytest.raises(plyvel.CorruptionError):
        plyvel.DB(str(path), paranoid_checks=True)
    with plyvel.DB(str(path)) as db:
        # Later ones are kept, so what is left never was a state.
        assert [key for key, _ in db] == [b"c"]


def test_lost_root_makes_leveldb_delete_the_tables(tmp_path: Path) -> None:
    table = _make(tmp_path / "db")
    (tmp_path / "db" / "CURRENT").unlink()
    with plyvel.DB(str(tmp_path / "db"), create_if_missing=True) as db:
        assert list(db) == []
    assert not table.exists()
