"""The simulated disk while nothing goes wrong, when it is full, and when calls fail."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.node.fs import Fs, RealFs, read_file, replace_file
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash
from support.memory_disk import MemoryDisk, MemoryFile

ROOT = Path("/data")
NAMES = ["a", "b", "d", "d/a", "d/e", "d/e/a"]


@pytest.fixture
def disk() -> MemoryDisk:
    disk = MemoryDisk()
    disk.make_directory(ROOT)
    disk.sync_directory(ROOT.parent)
    return disk


def make_file(disk: MemoryDisk, name: str, content: bytes = b"") -> MemoryFile:
    """A new file whose content and name are stable."""
    file = disk.create(ROOT / name)
    file.write_at(0, content)
    file.sync()
    disk.sync_directory(ROOT)
    return file


names = st.sampled_from(NAMES)
operations = st.one_of(
    st.tuples(st.just("create"), names),
    st.tuples(st.just("write_at"), names, st.integers(0, 40), st.binary(max_size=30)),
    st.tuples(st.just("read_at"), names, st.integers(0, 50), st.integers(0, 50)),
    st.tuples(st.just("allocate"), names, st.integers(1, 60)),
    st.tuples(st.just("truncate"), names, st.integers(0, 60)),
    st.tuples(st.just("read_only_write"), names),
    st.tuples(st.just("sync"), names),
    st.tuples(st.just("rename"), names, names),
    st.tuples(st.just("unlink"), names),
    st.tuples(st.just("remove_tree"), names),
    st.tuples(st.just("make_directory"), names),
    st.tuples(st.just("list_names"), names),
    st.tuples(st.just("exists"), names),
    st.tuples(st.just("sync_directory"), names),
)


def perform(fs: Fs, root: Path, operation: str, name: str, *arguments: object) -> object:
    """Do one operation; its result, or the errno of its failure."""
    path = root / name
    try:
        match operation, arguments:
            case "create", ():
                fs.create(path).close()
            case "rename", (str(target),):
                fs.rename(path, root / target)
            case (("unlink" | "remove_tree" | "make_directory" | "list_names" | "exists" | "sync_directory"), ()):
                call: Callable[[Path], object] = getattr(fs, operation)
                return call(path)
            case "read_only_write", ():
                fs.open(path, writable=True).close()  # the real open of a directory succeeds only for reading
                file = fs.open(path, writable=False)
                try:
                    file.write_at(0, b"x")
                finally:
                    file.close()
            case _:
                file = fs.open(path, writable=True)
                try:
                    return getattr(file, operation)(*arguments), file.size()
                finally:
                    file.close()
    except OSError as error:
        return error.errno
    return None


@settings(max_examples=150, deadline=None)
@given(script=st.lists(operations, max_size=30))
def test_what_is_seen_is_what_the_real_file_system_shows(
    script: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    real_root = tmp_path_factory.mktemp("real")
    disk, real = MemoryDisk(), RealFs()
    disk.make_directory(ROOT)
    for step in script:
        assert perform(disk, ROOT, *step) == perform(real, real_root, *step), step
    seen = {path.relative_to(ROOT): content for path, content in disk.snapshot(ROOT).items()}
    found = {p.relative_to(real_root): p.read_bytes() for p in real_root.rglob("*") if p.is_file()}
    assert seen == found
    assert disk.open_handles() == []


def test_every_change_and_sync_is_recorded_and_no_read_is(disk: MemoryDisk) -> None:
    file = disk.create(ROOT / "x.tmp")
    file.allocate(10)
    file.write_at(0, b"abc")
    file.truncate(3)
    file.sync()
    disk.rename(ROOT / "x.tmp", ROOT / "x")
    file.write_at(3, b"d")
    disk.unlink(ROOT / "x")
    disk.list_names(ROOT)
    disk.exists(ROOT / "x")
    file.read_at(0, 1)
    file.size()
    file.close()
    assert [(call.operation, call.path) for call in disk.calls] == [
        ("make_directory", "/data"),
        ("sync_directory", "/"),
        ("create", "/data/x.tmp"),
        ("allocate", "/data/x.tmp"),
        ("write_at", "/data/x.tmp"),
        ("truncate", "/data/x.tmp"),
        ("sync", "/data/x.tmp"),
        ("rename", "/data/x.tmp"),
        ("write_at", "/data/x"),
        ("unlink", "/data/x"),
    ]
    assert [call.number for call in disk.calls] == list(range(1, 11))


def test_a_closed_file_is_no_longer_usable(disk: MemoryDisk) -> None:
    file = make_file(disk, "x")
    assert disk.open_handles() == [ROOT / "x"]
    file.close()
    for use in (file.sync, file.size, file.close, lambda: file.read_at(0, 1), lambda: file.write_at(0, b"x")):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()


def test_a_dead_process_can_do_nothing_but_close(disk: MemoryDisk) -> None:
    file = make_file(disk, "x")
    disk.plan.kill()
    for use in (
        file.size,
        lambda: file.read_at(0, 1),
        lambda: file.write_at(0, b"x"),
        lambda: disk.exists(ROOT),
        lambda: disk.list_names(ROOT),
        lambda: disk.open(ROOT / "x", writable=False),
        lambda: disk.create(ROOT / "y"),
    ):
        with pytest.raises(SimulatedCrash):
            use()
    file.close()


# ---- room ------------------------------------------------------------------------------------------------------


def test_a_write_without_room_writes_what_fits(disk: MemoryDisk) -> None:
    file = make_file(disk, "x", b"12345")
    disk.free_bytes = 3
    with pytest.raises(OSError, match="No space left") as caught:
        file.write_at(5, b"6789ABC")
    assert caught.value.errno == errno.ENOSPC
    assert file.read_at(0, 100) == b"12345678"
    assert disk.free_bytes == 0
    file.write_at(0, b"overwritten"[:8])
    assert file.read_at(0, 100) == b"overwrit"


def test_allocated_room_can_be_written_when_the_disk_is_full(disk: MemoryDisk) -> None:
    file = make_file(disk, "x")
    disk.free_bytes = 100
    with pytest.raises(OSError, match="No space left"):
        file.allocate(101)
    assert (file.size(), disk.free_bytes) == (0, 100)
    file.allocate(100)
    assert (file.read_at(0, 200), disk.free_bytes) == (bytes(100), 0)
    file.write_at(50, bytes([7]) * 50)
    with pytest.raises(OSError, match="No space left"):
        file.write_at(99, b"89")
    assert file.read_at(99, 10) == b"8"


def test_truncating_and_unlinking_free_room(disk: MemoryDisk) -> None:
    disk.free_bytes = 100
    file = make_file(disk, "x", bytes(60))
    other = make_file(disk, "y", bytes(40))
    file.truncate(20)
    assert disk.free_bytes == 40
    disk.unlink(ROOT / "x")
    assert disk.free_bytes == 40, "an open file keeps its room"
    file.close()
    assert disk.free_bytes == 60
    other.close()
    disk.create(ROOT / "z").close()
    disk.rename(ROOT / "z", ROOT / "y")
    assert disk.free_bytes == 100


def test_the_capacity_outlives_a_crash(disk: MemoryDisk) -> None:
    disk.free_bytes = 100
    file = make_file(disk, "x", bytes(30))
    file.write_at(30, bytes(20))
    assert disk.free_bytes == 50
    assert disk.after_crash(KEPT).free_bytes == 50
    assert disk.after_crash(DROPPED).free_bytes == 70


# ---- failures --------------------------------------------------------------------------------------------------


def test_a_failed_write_may_have_written_a_part(disk: MemoryDisk) -> None:
    file = make_file(disk, "x", b"old")
    disk.plan.fail(("write_at", "*/x"), errno.EIO, partial=0.5)
    with pytest.raises(OSError, match="Input/output error"):
        file.write_at(0, b"newest")
    assert file.read_at(0, 10) == b"new"
    file.write_at(0, b"newest")
    assert file.read_at(0, 10) == b"newest"


@pytest.mark.parametrize(("operation", "size"), [("allocate", 8), ("truncate", 3)])
def test_a_failed_change_of_size_may_be_half_done(disk: MemoryDisk, operation: str, size: int) -> None:
    file = make_file(disk, "x", b"1234")
    disk.plan.fail((operation, "*"), errno.ENOSPC, partial=0.5)
    with pytest.raises(OSError, match="No space left"):
        getattr(file, operation)({"allocate": 12, "truncate": 2}[operation])
    assert file.size() == size


def test_failed_changes_of_names_change_nothing(disk: MemoryDisk) -> None:
    make_file(disk, "x", b"1").close()
    before = disk.snapshot()
    disk.plan.fail(("*", "*"), errno.EIO, sticky=True)
    for use in (
        lambda: disk.rename(ROOT / "x", ROOT / "y"),
        lambda: disk.unlink(ROOT / "x"),
        lambda: disk.create(ROOT / "x"),
        lambda: disk.create(ROOT / "y"),
        lambda: disk.make_directory(ROOT / "d"),
    ):
        with pytest.raises(OSError, match="Input/output error"):
            use()
    assert disk.snapshot() == before
    assert disk.list_names(ROOT) == ["x"]


def test_after_a_failed_sync_a_second_one_succeeds_falsely(disk: MemoryDisk) -> None:
    file = make_file(disk, "x", b"stable")
    disk.plan.fail(("sync", "*"), errno.EIO)
    file.write_at(6, b"-lost")
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    file.sync()
    assert file.read_at(0, 100) == b"stable-lost"
    assert disk.stable_snapshot() == {ROOT / "x": b"stable"}
    assert disk.unsynced_paths() == []
    kept = disk.after_crash(KEPT)
    again = kept.open(ROOT / "x", writable=True)
    again.sync()
    assert kept.snapshot() == {ROOT / "x": b"stable-lost"}
    assert kept.after_crash(DROPPED).snapshot() == {ROOT / "x": b"stable"}


def test_bytes_written_again_after_a_failed_sync_can_be_made_stable(disk: MemoryDisk) -> None:
    file = make_file(disk, "x", b"stable")
    disk.plan.fail(("sync", "*"), errno.EIO)
    file.write_at(6, b"-lost")
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    file.write_at(6, file.read_at(6, 5))
    file.sync()
    assert disk.stable_snapshot() == {ROOT / "x": b"stable-lost"}


def test_a_failed_sync_of_a_directory_can_be_repeated(disk: MemoryDisk) -> None:
    disk.plan.fail(("sync_directory", "*"), errno.EIO)
    disk.create(ROOT / "x").close()
    with pytest.raises(OSError, match="Input/output error"):
        disk.sync_directory(ROOT)
    assert disk.stable_snapshot() == {}
    disk.sync_directory(ROOT)
    assert disk.stable_snapshot() == {ROOT / "x": b""}


# ---- for tests -------------------------------------------------------------------------------------------------


def test_files_can_be_put_and_removed_past_the_plan(disk: MemoryDisk) -> None:
    disk.put_file(ROOT / "wal" / "1", b"abc")
    disk.put_file(ROOT / "wal" / "1", b"abd")
    disk.put_file(ROOT / "wal" / "2", b"")
    disk.remove_file(ROOT / "wal" / "2")
    assert disk.snapshot() == disk.stable_snapshot() == {ROOT / "wal" / "1": b"abd"}
    assert len(disk.calls) == 2
    assert read_file(disk, ROOT / "wal" / "1") == b"abd"


def test_a_file_put_into_a_directory_is_as_durable_as_its_name(disk: MemoryDisk) -> None:
    disk.make_directory(ROOT / "db")
    disk.put_file(ROOT / "db" / "CURRENT", b"1", durable_parents=False)
    assert disk.stable_snapshot() == {}
    disk.sync_directory(ROOT)
    assert disk.stable_snapshot() == {ROOT / "db" / "CURRENT": b"1"}


def test_directories_are_copied_from_and_to_the_real_disk(disk: MemoryDisk, tmp_path: Path) -> None:
    replace_file(RealFs(), tmp_path / "top", b"1")
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / "2").write_bytes(b"22")
    disk.load_from(tmp_path, ROOT)
    assert disk.stable_snapshot() == {ROOT / "top": b"1", ROOT / "wal" / "2": b"22"}
    disk.dump_to(tmp_path / "copy", ROOT)
    assert (tmp_path / "copy" / "wal" / "2").read_bytes() == b"22"


def test_a_new_life_has_its_own_plan(disk: MemoryDisk) -> None:
    plan = CrashPlan(crash_at=1)
    survivor = disk.after_crash(KEPT, plan)
    assert survivor.plan is plan
    with pytest.raises(SimulatedCrash):
        survivor.create(ROOT / "x")
    disk.create(ROOT / "x").close()
