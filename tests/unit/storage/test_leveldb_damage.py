"""Damaged LevelDB files: every answer is right or an error, never short, never wrong, never old."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest

from kvnode.node.api import KeyRange
from kvnode.node.errors import EngineFailed, RecordDamaged
from kvnode.node.storage.engine import Engine
from kvnode.node.storage.leveldb import LevelDbFactory
from kvnode.protocol.types import Position, delete
from support.engines import (
    EPOCH,
    PLAIN,
    SMALL,
    entry,
    expect_range,
    fast_directory,
    fill,
    flipped,
    opened,
    read_range,
    read_values,
    read_values_after,
    tables,
)


@pytest.fixture
def fast_path() -> Iterator[Path]:
    with fast_directory() as directory:
        yield directory


@dataclass
class Answers:
    """Asks an engine everything that it can be asked, and counts what it answers.

    Attributes:
        records: what it should hold.
    """

    records: dict[bytes, bytes]
    turns: int = 0
    right: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def check(self, engine: Engine, where: str) -> None:
        """Ask for everything; ranges in one piece and in chunks by turns."""
        self.turns += 1
        for wanted in RANGES:
            try:
                found = read_range(engine, wanted, 7 if self.turns % 2 else 1000)
            except (RecordDamaged, EngineFailed):
                self.refused += 1
                continue
            self._count(found == expect_range(self.records, wanted), f"{where}: {wanted}")
        for after_key in AFTER:
            try:
                found_items = read_values_after(engine, after_key, 1 << 20 if self.turns % 2 else 100)
            except (RecordDamaged, EngineFailed):
                self.refused += 1
                continue
            expected, _ = expect_range(self.records, KeyRange(first=after_key + b"\0"))
            self._count(found_items == expected, f"{where}: records after {after_key!r}")
        try:
            values = read_values(engine, KEYS)
        except EngineFailed:
            self.refused += 1
        else:
            for key, value in zip(KEYS, values, strict=True):
                if isinstance(value, RecordDamaged):
                    self.refused += 1
                else:
                    self._count(value == self.records.get(key), f"{where}: read {key!r}")
        for key in KEYS:
            try:
                contained = engine.contains(key)
            except RecordDamaged:
                self.refused += 1
                continue
            self._count(contained == (key in self.records), f"{where}: contains {key!r}")

    def _count(self, is_right: bool, what: str) -> None:
        if is_right:
            self.right += 1
        else:
            self.wrong.append(what)


def _key(number: int) -> bytes:
    return b"key%03d" % number


#: Whole, parts of one and of several blocks, both kinds of end, empty inside and outside, one key, limits at, below and
#: above what there is.
RANGES = [
    replace(wanted, reverse=reverse)
    for reverse in (False, True)
    for wanted in (
        KeyRange(),
        KeyRange(first=_key(20), last=_key(40)),
        KeyRange(last=_key(10)),
        KeyRange(first=_key(60)),
        KeyRange(prefix=b"key03"),
        KeyRange(prefix=b"key", first=_key(20), limit=3),
        KeyRange(limit=5),
        KeyRange(limit=39),
        KeyRange(limit=40),
        KeyRange(limit=41),
        KeyRange(first=_key(41), last=_key(41)),
        KeyRange(first=_key(42), last=_key(42)),
        KeyRange(last=b"a"),
        KeyRange(first=b"z"),
    )
]

#: Where walks over records begin: at all of them, in between, before the last one, behind it.
AFTER = [b"", _key(40), _key(41), _key(77), _key(78), b"z"]

#: First, last, in between, and missing ones before, between and behind them.
KEYS = [_key(0), _key(78), _key(34), _key(52), b"a", _key(41), b"z"]


def _values(rng: Random, compressible: bool) -> dict[bytes, bytes]:
    """Forty records whose keys are even numbers."""
    return {
        _key(2 * number): b'"%d-%s"' % (number, b"abc " * 20 if compressible else rng.randbytes(35).hex().encode())
        for number in range(40)
    }


@pytest.mark.parametrize("factory", [PLAIN, SMALL], ids=["plain", "snappy"])
def test_any_flip_in_a_table_is_an_error_or_changes_nothing(fast_path: Path, factory: LevelDbFactory) -> None:
    records = _values(Random(1), compressible=factory is SMALL)
    path = fast_path / "db"
    with opened(factory, path) as engine:
        fill(engine, 1, records)
        engine.flush()
    [table] = tables(path)
    assert sum(len(key) + 25 + len(value) for key, value in records.items()) > 4 * factory.block_bytes
    size = table.stat().st_size
    flips = [(offset, 1 << offset % 8) for offset in range(size)]
    # The footer has no checksum of its own.
    flips += [(offset, mask) for offset in range(size - 48, size) for mask in (0x80, 0xFF)]
    answers = Answers(records)
    refused_to_open = 0
    for offset, mask in flips:
        with flipped(table, offset, mask):
            try:
                with opened(factory, path) as engine:
                    answers.check(engine, f"offset {offset} mask {mask}")
            except EngineFailed:
                refused_to_open += 1
    assert answers.wrong == []
    # Both kinds of refusal did happen, and damage does not spread to what it does not touch.
    assert refused_to_open > 0
    assert answers.refused > 1000
    assert answers.right > answers.refused


def test_any_flip_in_a_newer_table_brings_no_older_version_back(fast_path: Path) -> None:
    old, new = _values(Random(1), compressible=False), _values(Random(2), compressible=False)
    for key in list(new)[::3]:
        del new[key]
    path = fast_path / "db"
    with opened(PLAIN, path) as engine:
        fill(engine, 1, old)
        engine.flush()
        fill(engine, 2, new)
        engine.write([entry(3, [delete(key) for key in old if key not in new])], synced=True)
        engine.flush()
    older, newer = tables(path)
    answers = Answers(new)
    for table in (newer, older):
        for offset in range(table is older, table.stat().st_size, 3):
            with flipped(table, offset, 1 << offset % 8):
                try:
                    with opened(PLAIN, path) as engine:
                        answers.check(engine, f"{table.name} offset {offset}")
                except EngineFailed:
                    answers.refused += 1
    assert answers.wrong == []
    assert answers.refused > 1000
    assert answers.right > 1000


def test_any_flip_under_an_open_table_is_an_error_or_changes_nothing(fast_path: Path) -> None:
    """The index is on the heap by then, if it was compressed; without, these answers are wrong."""
    records = _values(Random(1), compressible=True)
    path = fast_path / "db"
    # Blocks must come from the file each time.
    factory = replace(SMALL, block_cache_bytes=0)
    with opened(factory, path) as engine:
        fill(engine, 1, records)
        engine.flush()
    with opened(factory, path) as engine:
        [table] = tables(path)
        answers = Answers(records)
        answers.check(engine, "undamaged")
        assert not answers.refused
        for offset in range(table.stat().st_size):
            with flipped(table, offset, 1 << offset % 8):
                answers.check(engine, f"offset {offset}")
    assert answers.wrong == []
    assert answers.refused > 1000


def test_undamaged_neighbours_of_damage_are_still_read(tmp_path: Path) -> None:
    records = _values(Random(1), compressible=False)
    path = tmp_path / "db"
    with opened(PLAIN, path) as engine:
        fill(engine, 1, records)
        engine.flush()
    [table] = tables(path)
    position = table.read_bytes().index(records[_key(40)])
    with flipped(table, position, 1), opened(PLAIN, path) as engine:
        first, damaged, last = read_values(engine, [_key(0), _key(40), _key(78)])
        assert (first, last) == (records[_key(0)], records[_key(78)])
        assert isinstance(damaged, RecordDamaged)
        wanted = KeyRange(last=_key(10))
        assert read_range(engine, wanted) == expect_range(records, wanted)


def test_scan_that_met_damage_never_goes_on(tmp_path: Path) -> None:
    records = _values(Random(1), compressible=False)
    path = tmp_path / "db"
    with opened(PLAIN, path) as engine:
        fill(engine, 1, records)
        engine.flush()
    [table] = tables(path)
    position = table.read_bytes().index(records[_key(40)])
    with flipped(table, position, 1), opened(PLAIN, path) as engine:
        scan = engine.scan(KeyRange())
        handed_out = 0
        with suppress(RecordDamaged):
            while items := scan.next_items(3, 1 << 20):
                handed_out += len(items)
        assert 0 < handed_out < 21
        for _ in range(2):
            with pytest.raises(RecordDamaged):
                scan.next_items(3, 1 << 20)
        scan.close()


def test_table_that_is_missing_when_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with opened(SMALL, path) as engine:
        fill(engine, 1, _values(Random(1), compressible=True))
        engine.flush()
    tables(path)[0].unlink()
    for paranoid in (True, False):
        with pytest.raises(EngineFailed, match="missing"):
            SMALL(path, paranoid=paranoid)


def test_table_that_goes_missing_is_an_error_and_not_a_missing_key(tmp_path: Path) -> None:
    """LevelDB itself answers a point read with "not found" then."""
    path = tmp_path / "db"
    records = _values(Random(1), compressible=True)
    with opened(SMALL, path) as engine:
        # The format version, all the records, and what is applied are in three tables; opening reads the first and
        # the last, and has them open from then on.
        engine.flush()
        fill(engine, 1, records)
        engine.flush()
        fill(engine, 2, {b"other": b"1"})
    with opened(SMALL, path) as engine:
        tables(path)[1].unlink()
        here, gone, absent = read_values(engine, [b"other", _key(34), _key(41)])
        assert here == b"1"
        assert isinstance(gone, RecordDamaged)
        assert isinstance(absent, RecordDamaged)
        with pytest.raises(RecordDamaged):
            engine.contains(_key(34))
        for reverse in (False, True):
            with pytest.raises(RecordDamaged):
                read_range(engine, KeyRange(reverse=reverse))


@pytest.mark.parametrize("kept", [0, 10, 47, 48, 500])
def test_truncated_table_is_an_error(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "db"
    with opened(PLAIN, path) as engine:
        fill(engine, 1, _values(Random(1), compressible=False))
        engine.flush()
    table = tables(path)[0]
    table.write_bytes(table.read_bytes()[:kept])
    for paranoid in (True, False):
        with pytest.raises(EngineFailed):
            PLAIN(path, paranoid=paranoid)


def test_damaged_manifest_or_root_is_refused_or_leaves_an_older_state(fast_path: Path) -> None:
    """A manifest, like a log, can lose its end unseen: recovery compares the position with the checkpoint."""
    path, pristine = fast_path / "db", fast_path / "pristine"
    records = _values(Random(1), compressible=True)
    with opened(SMALL, pristine) as engine:
        fill(engine, 1, records)
        engine.flush()
    answers, older = Answers(records), Answers({})
    refused_to_open = 0
    for name in ("CURRENT", next(pristine.glob("MANIFEST-*")).name):
        for offset in range((pristine / name).stat().st_size):
            shutil.copytree(pristine, path)
            with flipped(path / name, offset, 1 << offset % 8):
                try:
                    with opened(SMALL, path) as engine:
                        state = answers if engine.applied.position.seq else older
                        state.check(engine, f"{name} offset {offset}")
                except EngineFailed:
                    refused_to_open += 1
            shutil.rmtree(path)
    assert answers.wrong == older.wrong == []
    assert refused_to_open > 10


def test_lost_root_is_refused_and_no_table_deleted(tmp_path: Path) -> None:
    """LevelDB would make a new database in its place, and delete the tables."""
    path = tmp_path / "db"
    records = _values(Random(1), compressible=True)
    with opened(SMALL, path) as engine:
        fill(engine, 1, records)
        engine.flush()
    content = (path / "CURRENT").read_bytes()
    (path / "CURRENT").unlink()
    for paranoid in (True, False):
        with pytest.raises(EngineFailed, match="CURRENT is missing"):
            SMALL(path, paranoid=paranoid)
    (path / "CURRENT").write_bytes(content)
    with opened(SMALL, path) as engine:
        assert read_range(engine, KeyRange()) == expect_range(records, KeyRange())


def test_directory_that_a_crash_left_before_there_was_a_root_is_new(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.mkdir()
    (path / "LOCK").touch()
    (path / "MANIFEST-000001").write_bytes(b"torn")
    with opened(SMALL, path) as engine:
        assert engine.applied.position.seq == 0


# ---- LevelDB's own log ---------------------------------------------------------------------------------------------


def _history(path: Path) -> list[dict[bytes, bytes]]:
    """Make a database of one flushed entry and four in the log only; what it holds as of each seq."""
    states: list[dict[bytes, bytes]] = [{}]
    with opened(SMALL, path) as engine:
        for seq in range(1, 6):
            change = {b"key%d" % seq: b'"%d"' % seq, b"counter": b"%d" % seq}
            fill(engine, seq, change)
            states.append(states[-1] | change)
            if seq == 1:
                engine.flush()
    return states


def test_any_flip_in_the_log_is_refused_or_leaves_a_prefix(fast_path: Path) -> None:
    path, pristine = fast_path / "db", fast_path / "pristine"
    states = _history(pristine)
    [log] = pristine.glob("*.log")
    refused = 0
    found = set()
    for offset in range(log.stat().st_size):
        shutil.copytree(pristine, path)
        with flipped(path / log.name, offset, 1 << offset % 8):
            try:
                with opened(SMALL, path) as engine:
                    seq = engine.applied.position.seq
                    assert read_range(engine, KeyRange()) == expect_range(states[seq], KeyRange())
                    found.add(seq)
            except EngineFailed:
                refused += 1
        shutil.rmtree(path)
    assert refused > 100
    assert found <= {1, 2, 3, 4, 5}


def test_damaged_log_is_set_aside_when_not_paranoid(tmp_path: Path) -> None:
    path = tmp_path / "db"
    states = _history(path)
    [log] = path.glob("*.log")
    damaged = bytearray(log.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    log.write_bytes(damaged)
    with pytest.raises(EngineFailed, match="Corruption"):
        SMALL(path, paranoid=True)
    assert log.read_bytes() == damaged
    with opened(SMALL, path, paranoid=False) as engine:
        # Not what is readable of the log behind the damage: that would be no state that ever was.
        assert engine.applied.position == Position(EPOCH, 1)
        assert read_range(engine, KeyRange()) == expect_range(states[1], KeyRange())
        fill(engine, 2, {b"key2": b'"2"', b"counter": b"2"})
    assert log.with_name(log.name + ".damaged").read_bytes() == damaged
    with opened(SMALL, path) as engine:
        assert read_range(engine, KeyRange()) == expect_range(states[2], KeyRange())


def test_logs_set_aside_before_make_room_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "db"
    _history(path)
    for _ in range(2):
        [log] = path.glob("*.log")
        with flipped(log, 0, 1), opened(SMALL, path, paranoid=False) as engine:
            assert engine.applied.position.seq == 1
            fill(engine, 1, {})
        assert [each.name for each in path.glob("*.damaged")] == [log.name + ".damaged"]


def test_undamaged_log_is_kept_when_not_paranoid(tmp_path: Path) -> None:
    path = tmp_path / "db"
    states = _history(path)
    with opened(SMALL, path, paranoid=False) as engine:
        assert engine.applied.position.seq == 5
        assert read_range(engine, KeyRange()) == expect_range(states[5], KeyRange())
    assert not list(path.glob("*.damaged"))


def test_logs_are_put_back_when_they_were_not_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "db"
    _history(path)
    [log] = path.glob("*.log")
    content = log.read_bytes()
    [manifest] = path.glob("MANIFEST-*")
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"\x00\x00")
    with flipped(manifest, 20, 1):
        for paranoid in (True, False):
            with pytest.raises(EngineFailed):
                SMALL(path, paranoid=paranoid)
    assert log.read_bytes() == content
