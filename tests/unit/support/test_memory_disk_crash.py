"""What the simulated disk lets survive a crash: all that was synced, of the rest anything and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.node.fs import replace_file
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash, Survival, torn
from support.memory_disk import MemoryDisk
from support.memory_nodes import SECTOR_BYTES

ROOT = Path("/data")
FILE = ROOT / "file"
SEEDS = 60

file_changes = st.lists(
    st.one_of(
        st.tuples(st.just("write_at"), st.integers(0, 1200), st.integers(1, 900)),
        st.tuples(st.just("truncate"), st.integers(0, 1500)),
        st.tuples(st.just("allocate"), st.integers(1, 1500)),
    ),
    max_size=6,
)
name_changes = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from("abc")),
        st.tuples(st.just("unlink"), st.sampled_from("abc")),
        st.tuples(st.just("rename"), st.sampled_from("abc"), st.sampled_from("abc")),
    ),
    max_size=8,
)


def new_disk(plan: CrashPlan | None = None) -> MemoryDisk:
    disk = MemoryDisk(plan)
    disk.make_directory(ROOT)
    disk.sync_directory(ROOT.parent)
    return disk


class FileHistory:
    """A file changed on a disk, with what each byte may be after a power loss."""

    def __init__(self) -> None:
        self.disk = new_disk()
        self.file = self.disk.create(FILE)
        self.disk.sync_directory(ROOT)
        self.content = b""
        self.sizes = {0}
        self.possible: list[set[int]] = []
        self._writes = 0

    def change(self, operation: str, *arguments: int) -> None:
        if operation == "write_at":
            offset, size = arguments
            self._writes += 1
            data = bytes([self._writes % 255 + 1]) * size
            self.file.write_at(offset, data)
        else:
            getattr(self.file, operation)(*arguments)
        before, self.content = self.content, self.disk.snapshot()[FILE]
        self.sizes |= set(range(min(len(before), len(self.content)), len(self.content) + 1))
        self.possible += [{0} for _ in range(len(self.content) - len(self.possible))]
        for index, value in enumerate(self.content):
            if index >= len(before) or value != before[index]:
                self.possible[index] |= {0, value} if index >= len(before) else {value}

    def sync(self) -> None:
        self.file.sync()
        self.sizes = {len(self.content)}
        self.possible = [{value} for value in self.content]


@settings(max_examples=150, deadline=None)
@given(synced=file_changes, unsynced=file_changes, seed=st.integers(0, 10_000))
def test_of_a_file_the_synced_bytes_survive_and_of_the_others_any(
    synced: list[tuple[str, int]], unsynced: list[tuple[str, int]], seed: int
) -> None:
    history = FileHistory()
    for change in synced:
        history.change(*change)
    history.sync()
    stable = history.content
    for change in unsynced:
        history.change(*change)

    kept = history.disk.after_crash(KEPT)
    assert kept.snapshot() == {FILE: history.content}
    assert kept.stable_snapshot() == {FILE: stable}
    assert history.disk.after_crash(DROPPED).snapshot() == {FILE: stable}
    for disk in (history.disk, kept):
        left = disk.after_crash(torn(seed))
        content = left.snapshot()[FILE]
        assert left.stable_snapshot() == {FILE: content}
        assert len(content) in history.sizes
        for index, value in enumerate(content):
            assert value in history.possible[index], f"byte {index}"
        assert disk.after_crash(torn(seed)).snapshot() == left.snapshot(), "the seed alone decides"


@settings(max_examples=150, deadline=None)
@given(synced=name_changes, unsynced=name_changes, seed=st.integers(0, 10_000))
def test_of_a_directory_a_prefix_of_the_changes_since_its_sync_survives(
    synced: list[tuple[str, str]], unsynced: list[tuple[str, str]], seed: int
) -> None:
    disk = new_disk()
    contents = 0

    def names() -> dict[Path, bytes]:
        return disk.snapshot()

    def change(operation: str, name: str, *target: str) -> None:
        nonlocal contents
        try:
            if operation == "create":
                disk.unlink(ROOT / name) if disk.exists(ROOT / name) else None
                possible.append(names())
                contents += 1
                file = disk.create(ROOT / name)
                file.close()
                # Stable content from the beginning, so that only names are in question.
                file = disk.open(ROOT / name, writable=True)
                file.write_at(0, b"%d" % contents)
                file.sync()
                file.close()
            elif operation == "rename":
                disk.rename(ROOT / name, ROOT / target[0])
            else:
                disk.unlink(ROOT / name)
        except FileNotFoundError:
            return
        possible.append(names())

    possible: list[dict[Path, bytes]] = []
    for step in synced:
        change(*step)
    disk.sync_directory(ROOT)
    possible[:] = [names()]
    assert disk.stable_snapshot() == names()
    for step in unsynced:
        change(*step)

    assert disk.after_crash(KEPT).snapshot() == names()
    assert disk.after_crash(DROPPED).snapshot() == possible[0]
    assert disk.after_crash(torn(seed)).snapshot() in possible
    assert disk.after_crash(KEPT).after_crash(torn(seed)).snapshot() in possible


def outcomes(disk: MemoryDisk) -> set[bytes | None]:
    """The file's content after each of many power losses; None where it is not there."""
    return {disk.after_crash(torn(seed)).snapshot().get(FILE) for seed in range(SEEDS)}


def test_torn_lets_later_sectors_survive_without_earlier_ones() -> None:
    history = FileHistory()
    history.change("allocate", 4 * SECTOR_BYTES)
    history.sync()
    history.change("write_at", 0, 4 * SECTOR_BYTES)
    patterns = set()
    for seed in range(SEEDS):
        content = history.disk.after_crash(torn(seed)).snapshot()[FILE]
        sectors = [content[at : at + SECTOR_BYTES] for at in range(0, len(content), SECTOR_BYTES)]
        patterns.add(tuple(any(sector) for sector in sectors))
        assert len(content) == 4 * SECTOR_BYTES
    assert (True, True, True, True) in patterns
    assert (False, False, False, False) in patterns
    assert any(not first and last for first, *_, last in patterns)
    assert any(first and not last for first, *_, last in patterns)


def test_torn_lets_the_size_grow_without_the_data_and_not_at_all() -> None:
    history = FileHistory()
    history.change("write_at", 0, 700)
    found = outcomes(history.disk)
    assert b"" in found
    assert bytes(700) in found
    assert history.content in found
    assert any(content and 0 < len(content) < 700 for content in found)


def test_a_synced_new_file_has_no_durable_name() -> None:
    disk = new_disk()
    file = disk.create(FILE)
    file.write_at(0, b"data")
    file.sync()
    assert disk.after_crash(DROPPED).snapshot() == {}
    assert outcomes(disk) == {None, b"data"}
    assert disk.unsynced_paths() == [ROOT]
    disk.sync_directory(ROOT)
    assert outcomes(disk) == {b"data"}
    assert disk.unsynced_paths() == []


def test_a_new_directory_needs_its_parent_synced() -> None:
    disk = new_disk()
    disk.make_directory(ROOT / "sub")
    file = disk.create(ROOT / "sub" / "x")
    file.write_at(0, b"data")
    file.sync()
    disk.sync_directory(ROOT / "sub")
    assert disk.after_crash(DROPPED).snapshot() == {}
    disk.sync_directory(ROOT)
    assert disk.after_crash(DROPPED).snapshot() == {ROOT / "sub" / "x": b"data"}


def test_an_unsynced_unlink_may_not_have_happened() -> None:
    disk = new_disk()
    disk.put_file(FILE, b"data")
    disk.unlink(FILE)
    assert disk.after_crash(KEPT).snapshot() == {}
    assert disk.after_crash(DROPPED).snapshot() == {FILE: b"data"}
    assert outcomes(disk) == {None, b"data"}
    disk.sync_directory(ROOT)
    assert outcomes(disk) == {None}


def test_a_rename_between_directories_is_atomic() -> None:
    for synced in (None, "from", "to"):
        disk = new_disk()
        disk.put_file(ROOT / "from" / "x", b"data")
        disk.put_file(ROOT / "to" / "y", b"other")
        disk.rename(ROOT / "from" / "x", ROOT / "to" / "x")
        if synced:
            disk.sync_directory(ROOT / synced)
        other = {ROOT / "to" / "y": b"other"}
        before, after = {ROOT / "from" / "x": b"data"} | other, {ROOT / "to" / "x": b"data"} | other
        found = [disk.after_crash(survival).snapshot() for survival in [DROPPED, *map(torn, range(SEEDS))]]
        assert all(each in (before, after) for each in found)
        if synced:
            assert before not in found
        else:
            assert before in found
            assert after in found


def test_a_renamed_directory_takes_its_files_along() -> None:
    disk = new_disk()
    disk.put_file(ROOT / "db" / "x", b"data")
    disk.make_directory(ROOT / "old")
    disk.sync_directory(ROOT)
    disk.rename(ROOT / "db", ROOT / "old" / "1")
    assert disk.snapshot() == {ROOT / "old" / "1" / "x": b"data"}
    assert disk.after_crash(DROPPED).snapshot() == {ROOT / "db" / "x": b"data"}
    disk.sync_directory(ROOT / "old")
    assert disk.after_crash(DROPPED).snapshot() == {ROOT / "old" / "1" / "x": b"data"}


def test_a_dead_disk_can_be_asked_for_several_survivors_that_live_apart() -> None:
    disk = new_disk()
    disk.put_file(FILE, b"data")
    first, second = disk.after_crash(KEPT), disk.after_crash(KEPT)
    first.open(FILE, writable=True).write_at(0, b"DATA")
    first.unlink(FILE)
    assert second.snapshot() == disk.snapshot() == {FILE: b"data"}


# ---- a protocol under crashes at every call -----------------------------------------------------------------------


def replace_safely(disk: MemoryDisk) -> None:
    replace_file(disk, FILE, b"new" * 400)


def replace_without_sync(disk: MemoryDisk) -> None:
    """The classic mistake: the name becomes durable before the data."""
    temporary = FILE.with_name("file.tmp")
    file = disk.create(temporary)
    file.write_at(0, b"new" * 400)
    file.close()
    disk.rename(temporary, FILE)
    disk.sync_directory(ROOT)


def replace_in_place(disk: MemoryDisk) -> None:
    file = disk.open(FILE, writable=True)
    file.truncate(0)
    file.write_at(0, b"new" * 400)
    file.sync()
    file.close()


def contents_after_crashes(replace: Callable[[MemoryDisk], None]) -> tuple[set[bytes | None], set[bytes | None]]:
    """What is found after a crash at every call and every survival mode; and after a crash past the last call."""

    def start(crash_at: int | None, partial: float) -> MemoryDisk:
        disk = MemoryDisk(CrashPlan(crash_at=crash_at, crash_partial=partial))
        disk.put_file(FILE, b"old" * 300)
        return disk

    survivals: list[Survival] = [KEPT, DROPPED, *map(torn, range(SEEDS))]
    done = start(None, 0)
    replace(done)
    found: set[bytes | None] = set()
    for number in range(1, len(done.calls) + 1):
        for partial in (0, 0.5, 1):
            disk = start(number, partial)
            with pytest.raises(SimulatedCrash):
                replace(disk)
            found |= {disk.after_crash(survival).snapshot().get(FILE) for survival in survivals}
    return found, {done.after_crash(survival).snapshot().get(FILE) for survival in survivals}


def test_replacing_a_file_leaves_the_old_or_the_new_and_then_the_new() -> None:
    found, after = contents_after_crashes(replace_safely)
    assert found == {b"old" * 300, b"new" * 400}
    assert after == {b"new" * 400}


def test_the_crash_points_show_a_missing_sync() -> None:
    _, after = contents_after_crashes(replace_without_sync)
    assert b"" in after
    assert len(after) > 2


def test_the_crash_points_show_a_replacement_that_is_not_atomic() -> None:
    found, after = contents_after_crashes(replace_in_place)
    assert len(found) > 2
    assert after == {b"new" * 400}


def test_a_tree_goes_name_by_name_and_for_certain_when_its_parent_is_synced() -> None:
    disk = new_disk()
    for name in ("t/a/x", "t/a/y", "t/b/x", "t/c"):
        disk.put_file(ROOT / name, b"1")
    disk.put_file(FILE, b"1")
    before = len(disk.calls)
    disk.remove_tree(ROOT / "t")
    removed = [(call.operation, call.path.removeprefix("/data/t")) for call in disk.calls[before:]]
    assert removed == [
        ("unlink", "/a/x"),
        ("unlink", "/a/y"),
        ("remove_directory", "/a"),
        ("unlink", "/b/x"),
        ("remove_directory", "/b"),
        ("unlink", "/c"),
        ("remove_directory", ""),
    ]
    assert set(disk.after_crash(KEPT).snapshot()) == {FILE}
    assert len(disk.after_crash(DROPPED).snapshot()) == 5
    left = {frozenset(disk.after_crash(torn(seed)).snapshot()) for seed in range(SEEDS)}
    assert len(left) > 3
    disk.sync_directory(ROOT)
    assert set(disk.after_crash(DROPPED).snapshot()) == {FILE}


@pytest.mark.parametrize("call", range(1, 5))
def test_a_crash_inside_the_removal_of_a_tree_leaves_a_part_of_it(call: int) -> None:
    disk = new_disk()
    for name in ("t/a/x", "t/a/y", "t/c"):
        disk.put_file(ROOT / name, b"1")
    disk.plan.crash_at = len(disk.calls) + call
    with pytest.raises(SimulatedCrash):
        disk.remove_tree(ROOT / "t")
    assert len(disk.after_crash(KEPT).snapshot()) == max(1, 4 - call)
    assert len(disk.after_crash(DROPPED).snapshot()) == 3
