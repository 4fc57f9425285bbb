"""What a flush makes durable, and what happens when LevelDB cannot write.

The full disks are a limit on the size of files, which anybody may set, and a file system of one megabyte, where this
user may mount one. Both happen in processes of their own.
"""

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import plyvel
import pytest

from kvnode.node.api import KeyRange
from kvnode.node.errors import EngineClosed, EngineFailed
from kvnode.node.storage.leveldb import LevelDbEngine
from kvnode.protocol.types import Position, put
from support.engines import EPOCH, SMALL, entry, expect_range, fill, opened, read_range


def _lose_logs(path: Path, target: Path) -> Path:
    """A copy of a database without LevelDB's own logs, of which nothing is ever synced."""
    shutil.copytree(path, target, ignore=shutil.ignore_patterns("*.log", "LOCK"))
    return target


def test_flushed_entries_survive_the_loss_of_every_log(tmp_path: Path) -> None:
    records: dict[bytes, bytes] = {}
    with opened(SMALL, tmp_path / "db") as engine:
        for seq in range(1, 4):
            change = {b"key%d" % seq: b"%d" % seq, b"counter": b"%d" % seq}
            fill(engine, seq, change)
            records |= change
            assert engine.flush() == Position(EPOCH, seq)
            copy = _lose_logs(tmp_path / "db", tmp_path / f"copy{seq}")
            with opened(SMALL, copy) as survivor:
                assert survivor.applied.position == Position(EPOCH, seq)
                assert read_range(survivor, KeyRange()) == expect_range(records, KeyRange())


def test_entries_since_the_flush_are_in_the_log_only(tmp_path: Path) -> None:
    """Else the tests above and below would show nothing."""
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"a": b"1"})
        engine.flush()
        fill(engine, 2, {b"b": b"2"})
        copy = _lose_logs(tmp_path / "db", tmp_path / "copy")
    with opened(SMALL, copy) as survivor:
        assert survivor.applied.position.seq == 1


def test_flush_does_not_compact_what_is_in_tables(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        for seq in (1, 2, 3):
            fill(engine, seq, {b"a": b"%d" % seq, b"z": b"%d" % seq})
            engine.flush()
        assert len(list((tmp_path / "db").glob("*.ldb"))) == 3


def test_flush_of_what_is_flushed_does_nothing(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"a": b"1"})
        engine.flush()
        logs = sorted((tmp_path / "db").glob("*.log"))
        assert engine.flush() == Position(EPOCH, 1)
        assert sorted((tmp_path / "db").glob("*.log")) == logs


def test_flush_beside_a_writer_covers_what_was_applied_before(tmp_path: Path) -> None:
    path = tmp_path / "db"
    rng = Random(1)
    stop = threading.Event()
    problems: list[BaseException] = []
    with opened(SMALL, path) as engine:

        def write() -> None:
            seq = 0
            try:
                while not stop.is_set():
                    seq += 1
                    engine.write([entry(seq, [put(b"%09d" % rng.randrange(10**9), b"x" * 2000)])], synced=True)
            except BaseException as error:
                problems.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(30):
                before = engine.applied.position
                assert engine.flush().seq >= before.seq
        finally:
            stop.set()
            writer.join()
        assert not problems
        flushed = engine.flush()
        assert flushed == engine.applied.position
        copy = _lose_logs(path, tmp_path / "copy")
    with opened(SMALL, copy) as survivor:
        assert survivor.applied.position == flushed
        assert len(read_range(survivor, KeyRange())[0]) > flushed.seq * 0.99


class DropsOneRequest:
    """A database that takes the first request to compact for done."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.requests = 0

    def compact_range(self, *, start: bytes, stop: bytes) -> None:
        self.requests += 1
        if self.requests > 1:
            self._db.compact_range(start=start, stop=stop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def test_dropped_flush_request_is_made_again(tmp_path: Path) -> None:
    """LevelDB drops one that it joins to the write of another thread which waits for its turn."""
    path = tmp_path / "db"
    with opened(SMALL, path) as engine:
        fill(engine, 1, {b"a": b"1"})
        applied = engine.applied
    db = DropsOneRequest(plyvel.DB(str(path)))
    engine = LevelDbEngine(path, db, applied)
    fill(engine, 2, {b"a": b"2"})
    assert engine.flush().seq == 2
    assert db.requests == 2
    assert engine.close(10)


def test_flush_that_cannot_be_shown_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that stays means that its memtable may be nowhere else."""
    monkeypatch.setattr("kvnode.node.storage.leveldb._FLUSH_POLL_S", 0)
    path = tmp_path / "db"
    with opened(SMALL, path) as engine:
        fill(engine, 1, {b"a": b"1"})
        # LevelDB knows no log of a higher number than its current one, and so never deletes this.
        (path / "999999.log").touch()
        with pytest.raises(EngineFailed, match=r"cannot show.*999999\.log"):
            engine.flush()
        with pytest.raises(EngineFailed, match="failed before"):
            fill(engine, 2, {b"b": b"1"})
        assert read_range(engine, KeyRange()) == ([(b"a", b"1")], None)


@pytest.mark.parametrize("removed", ["*.log", "CURRENT", "MANIFEST-*", "*"])
def test_flush_into_files_that_somebody_removed_fails(removed: str, tmp_path: Path) -> None:
    """LevelDB writes on into open files that have no name any more, and its log is gone as after a flush."""
    path = tmp_path / "db"
    with opened(SMALL, path) as engine:
        fill(engine, 1, {b"a": b"1"})
        for file in path.glob(removed):
            file.unlink()
        with pytest.raises(EngineFailed, match="was removed"):
            engine.flush()
        with pytest.raises(EngineFailed, match="failed before"):
            fill(engine, 2, {b"b": b"1"})


def test_closed_engine_flushes_nothing(tmp_path: Path) -> None:
    engine = SMALL(tmp_path / "db", paranoid=True)
    assert engine.close(10)
    with pytest.raises(EngineClosed):
        engine.flush()


# ---- no room -------------------------------------------------------------------------------------------------------

_COMMON = """
import resource, sys
from pathlib import Path
from random import Random
from kvnode.node.api import KeyRange
from kvnode.node.errors import EngineFailed
from kvnode.node.storage.leveldb import LevelDbFactory
from support.engines import SMALL, entry, fill, opened, read_range

rng = Random(1)
big = LevelDbFactory(write_buffer_bytes=64 << 20, block_cache_bytes=65536, open_files=74)

def change(seq):
    return {b"key%05d" % (10 * seq + i): rng.randbytes(400).hex().encode() for i in range(10)}

def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def failure(call, *args):
    try:
        call(*args)
    except EngineFailed as error:
        return error
    raise SystemExit(f"{call} did not fail")

def write_until_failure(engine, written):
    for seq, records in enumerate(written, 1):
        try:
            fill(engine, seq, records)
        except EngineFailed as error:
            return seq, error
    raise SystemExit("nothing failed")

def holds_a_prefix(engine, written):
    seq = engine.applied.position.seq
    expected = {key: value for each in written[:seq] for key, value in each.items()}
    assert read_range(engine, KeyRange())[0] == sorted(expected.items()), seq
    return seq
"""

_FAILED_WRITE = """
path = Path(sys.argv[1]) / "db"
written = [change(seq) for seq in range(1, 200)]
with opened(big, path) as engine:
    limit_files(200_000)
    failed, error = write_until_failure(engine, written)
    assert failed < 40 and "File too large" in str(error) and not error.disk_full
    # Room again: LevelDB would take writes now, and lose them.
    limit_files(resource.RLIM_INFINITY)
    for call in (lambda: fill(engine, failed, written[failed - 1]), engine.flush):
        again = failure(call)
        assert "failed before" in str(again) and "File too large" in str(again), again
    assert holds_a_prefix(engine, written) == failed - 1
with opened(big, path, paranoid=False) as engine:
    seq = holds_a_prefix(engine, written)
    for seq in range(seq + 1, 201):
        fill(engine, seq, written[seq - 1] if seq < 200 else change(seq))
    engine.flush()
    assert engine.applied.position.seq == 200
"""

_FAILED_FLUSH = """
path = Path(sys.argv[1]) / "db"
written = [change(seq) for seq in range(1, 41)]
with opened(big, path) as engine:
    for seq, records in enumerate(written, 1):
        fill(engine, seq, records)
    limit_files(100_000)
    error = failure(engine.flush)
    assert "File too large" in str(error) and not error.disk_full, error
    limit_files(resource.RLIM_INFINITY)
    assert "failed before" in str(failure(engine.flush))
    assert "failed before" in str(failure(fill, engine, 41, change(41)))
    assert holds_a_prefix(engine, written) == 40
with opened(big, path, paranoid=False) as engine:
    assert holds_a_prefix(engine, written) == 40
    assert engine.flush().seq == 40
"""

_FULL_DISK = """
import subprocess
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(root)], check=True)
path = root / "db"
written = [change(seq) for seq in range(1, 200)]
ballast = root / "ballast"

# A write that finds no room.
with opened(big, path) as engine:
    failed, error = write_until_failure(engine, written)
    assert error.disk_full and "No space left" in str(error), error
    assert failure(fill, engine, failed, written[failed - 1]).disk_full
    assert holds_a_prefix(engine, written) == failed - 1
for paranoid in (True, False):
    assert failure(lambda: big(path, paranoid=paranoid)).disk_full

# A flush that finds no room.
for each in path.iterdir():
    each.unlink()
with opened(big, path) as engine:
    for seq in range(1, 31):
        fill(engine, seq, written[seq - 1])
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    error = failure(engine.flush)
    assert error.disk_full and "No space left" in str(error), error
    assert failure(fill, engine, 31, written[30]).disk_full
    assert holds_a_prefix(engine, written) == 30
for paranoid in (True, False):
    assert failure(lambda: big(path, paranoid=paranoid)).disk_full
ballast.unlink()
with opened(big, path) as engine:
    assert holds_a_prefix(engine, written) == 30
    assert engine.flush().seq == 30
"""


def _run(script: str, path: Path, *, before: tuple[str, ...] = ()) -> None:
    """Run a script in a process of its own, in which `support` can be imported."""
    tests = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {tests!r})\n{_COMMON}{script}"
    done = subprocess.run([*before, sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_failed_write_is_final_until_reopening(tmp_path: Path) -> None:
    _run(_FAILED_WRITE, tmp_path)


def test_failed_flush_is_an_error_and_final(tmp_path: Path) -> None:
    """The call into LevelDB returns as if all were well."""
    _run(_FAILED_FLUSH, tmp_path)


def test_full_disk_is_told_apart(tmp_path: Path) -> None:
    own_mounts = ("unshare", "--map-root-user", "--mount")
    trial = (*own_mounts, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path))
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    _run(_FULL_DISK, tmp_path, before=own_mounts)
