"""Closing never happens under a reader: LevelDB would crash the process."""

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import plyvel
import pytest

from kvnode.node.api import KeyRange
from kvnode.node.errors import EngineClosed
from kvnode.node.storage.leveldb import LevelDbEngine
from support.engines import SMALL, entry, expect_range, fill, opened, read_range

RECORDS = {b"key%03d" % number: b'"value"' for number in range(100)}


def test_closed_engine_refuses_every_call(tmp_path: Path) -> None:
    engine = SMALL(tmp_path / "db", paranoid=True)
    fill(engine, 1, RECORDS)
    assert engine.close(10)
    for call in (
        lambda: engine.read([b"a"]),
        lambda: engine.contains(b"a"),
        lambda: engine.scan(KeyRange()),
        lambda: engine.write([entry(2, [])], synced=True),
        engine.flush,
        engine.level0_files,
    ):
        with pytest.raises(EngineClosed):
            call()
    assert engine.applied.position.seq == 1
    assert engine.close(10)


def test_open_scan_does_not_hold_closing_up_and_ends_in_an_error(tmp_path: Path) -> None:
    engine = SMALL(tmp_path / "db", paranoid=True)
    fill(engine, 1, RECORDS)
    scans = [engine.scan(KeyRange(reverse=reverse)) for reverse in (False, True)]
    ended = engine.scan(KeyRange(limit=1))
    for scan in scans:
        assert len(scan.next_items(10, 1 << 20)) == 10
    while ended.next_items(10, 1 << 20):
        pass
    assert engine.close(10)
    for scan in (*scans, ended):
        with pytest.raises(EngineClosed):
            scan.next_items(10, 1 << 20)
        scan.close()
        scan.close()
    with opened(SMALL, tmp_path / "db") as again:
        assert read_range(again, KeyRange()) == expect_range(RECORDS, KeyRange())


def test_scan_that_nobody_closed_is_released_with_the_engine(tmp_path: Path) -> None:
    engine = SMALL(tmp_path / "db", paranoid=True)
    fill(engine, 1, RECORDS)
    engine.scan(KeyRange()).next_items(10, 1 << 20)
    gc.collect()
    assert engine.close(10)
    gc.collect()


class SlowToRead:
    """A database in which a read waits until it is let go."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def get(self, key: bytes, **options: Any) -> Any:
        self.inside.set()
        assert self.go_on.wait(30)
        return self._db.get(key, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def test_closing_waits_for_a_reader_and_gives_up_in_time(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with opened(SMALL, path) as engine:
        fill(engine, 1, RECORDS)
        applied = engine.applied
    db = SlowToRead(plyvel.DB(str(path)))
    engine = LevelDbEngine(path, db, applied)
    scan = engine.scan(KeyRange())
    found = []
    reader = threading.Thread(target=lambda: found.append(engine.contains(b"key001")))
    reader.start()
    assert db.inside.wait(30)
    assert not engine.close(0.01)
    # Left open, but nobody gets in, and nothing is released under the reader.
    with pytest.raises(EngineClosed):
        engine.contains(b"key001")
    with pytest.raises(EngineClosed):
        scan.next_items(1, 1)
    scan.close()
    assert not db.closed
    db.go_on.set()
    assert engine.close(30)
    reader.join()
    assert found == [True]
    assert db.closed


_STRESS = """
import faulthandler, random, sys, tempfile, threading
from pathlib import Path
faulthandler.enable()
from kvnode.node.api import KeyRange
from kvnode.node.errors import EngineClosed
from kvnode.protocol.types import put
from support.engines import SMALL, entry

def run(number, engine, started, problems):
    rng = random.Random(number)
    scans = []
    try:
        while True:
            match number % 4:
                case 0:
                    engine.read([b"key%05d" % rng.randrange(3000) for _ in range(5)])
                case 1:
                    scans.append(engine.scan(KeyRange(reverse=rng.random() < 0.5)))
                    for _ in range(rng.randrange(20)):
                        scans[-1].next_items(50, 1 << 20)
                    if rng.random() < 0.8:
                        scans.pop(rng.randrange(len(scans))).close()
                case 2:
                    engine.contains(b"key%05d" % rng.randrange(6000))
                case 3:
                    seq = engine.applied.position.seq + 1
                    engine.write([entry(seq, [put(b"key%05d" % rng.randrange(3000), b"x" * 500)])], synced=True)
                    if seq % 200 == 0:
                        engine.flush()
            started.set()
    except EngineClosed:
        for scan in scans:
            scan.close()
    except BaseException as error:
        problems.append(error)

rng = random.Random(1)
for attempt in range(int(sys.argv[1])):
    with tempfile.TemporaryDirectory() as directory:
        engine = SMALL(Path(directory) / "db", paranoid=True)
        records = [put(b"key%05d" % i, b"x" * 200) for i in range(3000)]
        engine.write([entry(1, records)], synced=True)
        problems = []
        # One writer, as in a node.
        starts = [threading.Event() for _ in range(6)]
        threads = [
            threading.Thread(target=run, args=(number, engine, starts[i], problems))
            for i, number in enumerate((0, 4, 1, 5, 2, 3))
        ]
        for thread in threads:
            thread.start()
        for each in starts:
            each.wait()
        for _ in range(rng.randrange(200)):
            engine.level0_files()
        assert engine.close(30)
        for thread in threads:
            thread.join()
        assert not problems, problems
        again = SMALL(Path(directory) / "db", paranoid=True)
        assert again.applied == engine.applied
        assert again.close(30)
"""


def test_closing_under_many_readers_never_crashes() -> None:
    tests = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {tests!r})\n{_STRESS}"
    done = subprocess.run([sys.executable, "-c", code, "12"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
