"""The data directory: its lock, and the content of each small file."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvnode.node.errors import DirectoryLocked, FileDamaged
from kvnode.node.storage.datadir import CleanStop, DirectoryLock, Identity, Layout, Member, Repair, StateFiles, Swap
from kvnode.node.storage.statefile import encode_state
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign
from support.crash_plan import DROPPED
from support.memory_disk import MemoryDisk

LAYOUT = Layout(Path("/data"))
EPOCH = Epoch.of(3, 7)
POSITION = Position(EPOCH, 2**63)
IDENTITY = Identity("ab" * 16, "n1", "cd" * 16, "replica", "10.0.0.1:7001")


def new_files() -> tuple[MemoryDisk, StateFiles]:
    disk = MemoryDisk()
    for directory in (LAYOUT.root, LAYOUT.incoming):
        disk.make_directory(directory)
        disk.sync_directory(directory.parent)
    return disk, StateFiles(disk, LAYOUT)


def access(files: StateFiles) -> dict[str, tuple[Callable[[Any], None], Callable[[], object]]]:
    return {
        "node.json": (files.save_identity, files.load_identity),
        "history": (files.save_history, files.load_history),
        "members": (files.save_members, files.load_members),
        "checkpoint": (files.save_checkpoint, files.load_checkpoint),
        "clean": (files.save_clean_stop, files.load_clean_stop),
        "repair": (files.save_repair, files.load_repair),
        "serve_from": (files.save_serve_from, files.load_serve_from),
        "swap": (files.save_swap, files.load_swap),
        "incoming/sync": (files.save_incoming, files.load_incoming),
    }


STATE = {"node_id": "ab" * 16, "name": "n1", "cluster_id": "cd" * 16, "role": "primary"}

CONTENTS: dict[str, list[Any]] = {
    "node.json": [
        IDENTITY,
        Identity("00" * 16, "größe", "ff" * 16, "primary"),
        Identity("00" * 16, "n1", "ff" * 16, "primary", superseded_term=2**32 - 1),
        Identity("00" * 16, "n1", "ff" * 16, "primary", promoted_from="a:1"),
        Identity("00" * 16, "n1", "ff" * 16, "primary", promoted_from="a:1", promoted_from_id="01" * 16),
        Identity("00" * 16, "n1", "ff" * 16, "replica", "a:1", primary_id="01" * 16),
    ],
    "history": [History(), History((Reign(Epoch.of(1, 5), 1), Reign(Epoch.of(2**32 - 1, 2**32 - 1), 2**63)))],
    "members": [(), (Member("ab" * 16, "n1"), Member("cd" * 16, "n2"))],
    "checkpoint": [0, 2**63],
    "clean": [CleanStop(0, "00000000000000000001.wal", 40)],
    "repair": [Repair(0, 7)],
    "serve_from": [POSITION, Position(Epoch(0), 0)],
    "swap": [Swap(b"s" * 16, Position(Epoch(0), 0), POSITION, History((Reign(EPOCH, 1),)), (Member("ab" * 16, "n1"),))],
    "incoming/sync": [Incoming(b"s" * 16, POSITION, POSITION)],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, each) for name, contents in CONTENTS.items() for each in contents]
)
def test_content_is_durable_and_read_back(name: str, content: object) -> None:
    disk, files = new_files()
    save, load = access(files)[name]
    assert load() is None
    save(content)
    assert load() == content
    survivor = StateFiles(disk.after_crash(DROPPED), LAYOUT)
    assert access(survivor)[name][1]() == content


def test_ids_are_bytes_in_hex() -> None:
    assert IDENTITY.cluster_bytes == b"\xcd" * 16


@pytest.mark.parametrize(
    ("promoted_from", "promoted_from_id", "is_it"),
    [
        (None, None, False),
        ("a:1", None, True),
        ("b:1", None, False),
        # Its address may be spelled in many ways, and another node may have it now.
        ("b:1", "01" * 16, True),
        ("a:1", "02" * 16, False),
    ],
)
def test_whom_it_was_promoted_over(promoted_from: str | None, promoted_from_id: str | None, is_it: bool) -> None:
    identity = replace(IDENTITY, promoted_from=promoted_from, promoted_from_id=promoted_from_id)
    assert identity.is_promoted_over(b"\x01" * 16, "a:1") is is_it


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("node.json", {}),
        ("node.json", {"node_id": "ab" * 16, "name": "n1", "cluster_id": "cd" * 16}),
        ("node.json", {"node_id": "ab" * 16, "name": "n1", "cluster_id": "cd" * 15, "role": "primary"}),
        ("node.json", {"node_id": "xy" * 16, "name": "n1", "cluster_id": "cd" * 16, "role": "primary"}),
        ("node.json", {"node_id": 5, "name": "n1", "cluster_id": "cd" * 16, "role": "primary"}),
        ("node.json", {"node_id": "ab" * 16, "name": "n1", "cluster_id": "cd" * 16, "role": "boss"}),
        ("node.json", {"node_id": "ab" * 16, "name": "n1", "cluster_id": "cd" * 16, "role": "primary", "more": 1}),
        ("history", {}),
        ("history", {"reigns": 5}),
        ("history", {"reigns": [5]}),
        ("history", {"reigns": [["1.00000001"]]}),
        ("history", {"reigns": [["1.00000001", "1"]]}),
        ("history", {"reigns": [["1.00000001", 0]]}),
        ("history", {"reigns": [["nonsense", 1]]}),
        ("history", {"reigns": [[5, 1]]}),
        ("history", {"reigns": [["2.00000001", 1], ["1.00000001", 2]]}),
        ("members", {"members": [{"name": "n1"}]}),
        ("members", {"members": [5]}),
        ("members", {"members": None}),
        ("checkpoint", {}),
        ("checkpoint", {"seq": -1}),
        ("checkpoint", {"seq": "1"}),
        ("checkpoint", {"seq": 1.0}),
        ("checkpoint", {"seq": True}),
        ("clean", {"last_seq": 1}),
        ("clean", {"last_seq": "1", "segment": "x", "size": 1}),
        ("clean", {"last_seq": 1, "segment": "x", "size": None}),
        ("repair", {"log_last_seq": 1}),
        ("repair", {"log_last_seq": 1, "lost_last": None}),
        ("node.json", {**STATE, "superseded_term": "1"}),
        ("node.json", {**STATE, "superseded_term": -1}),
        ("node.json", {**STATE, "superseded_term": 2**32}),
        ("node.json", {**STATE, "primary_id": "ab" * 15}),
        ("node.json", {**STATE, "promoted_from_id": 5}),
        ("serve_from", {}),
        ("serve_from", {"latest": ["1.00000001"]}),
        ("serve_from", {"latest": ["1.00000001", -1]}),
        ("serve_from", {"latest": [1, 1]}),
        ("serve_from", {"latest": None}),
        ("incoming/sync", {"sync_id": "ab" * 15, "first": ["1.00000001", 1], "latest": ["1.00000001", 1]}),
        ("incoming/sync", {"sync_id": "ab" * 16, "first": ["1.00000001", 2], "latest": ["1.00000001", 1]}),
        ("incoming/sync", {"sync_id": "ab" * 16, "first": ["1.00000001", 1]}),
        ("incoming/sync", {"sync_id": None, "first": ["1.00000001", 1], "latest": ["1.00000001", 1]}),
        ("swap", {"sync_id": "ab" * 16, "first": ["1.00000001", 1], "latest": ["1.00000001", 1]}),
        ("swap", {"sync_id": "ab" * 16, "first": [], "latest": ["1.00000001", 1], "reigns": [], "members": []}),
    ],
)
def test_unexpected_content_is_refused_with_a_hint(name: str, state: dict[str, Any]) -> None:
    disk, files = new_files()
    disk.put_file(LAYOUT.root / name, encode_state(state))
    with pytest.raises(FileDamaged, match="unexpected content") as raised:
        access(files)[name][1]()
    assert raised.value.path == LAYOUT.root / name
    assert raised.value.hint


@pytest.mark.parametrize("name", CONTENTS)
def test_damage_is_refused_with_a_hint(name: str) -> None:
    disk, files = new_files()
    disk.put_file(LAYOUT.root / name, b"{}")
    with pytest.raises(FileDamaged, match="damaged") as raised:
        access(files)[name][1]()
    assert raised.value.hint


def test_identity_of_a_directory_that_was_never_superseded_is_what_it_always_was() -> None:
    disk, files = new_files()
    files.save_identity(IDENTITY)
    assert b"superseded" not in disk.snapshot()[LAYOUT.node]


@pytest.mark.parametrize("name", ["clean", "repair", "serve_from", "swap", "incoming/sync"])
def test_markers_are_removed_durably(name: str) -> None:
    disk, files = new_files()
    save, load = access(files)[name]
    remove = {
        "clean": files.remove_clean_stop,
        "repair": files.remove_repair,
        "serve_from": files.remove_serve_from,
        "swap": files.remove_swap,
        "incoming/sync": files.remove_incoming,
    }[name]
    remove()
    save(CONTENTS[name][0])
    remove()
    assert load() is None
    assert disk.stable_snapshot() == {}


# ---- the lock --------------------------------------------------------------------------------------------------


def test_second_lock_is_refused_naming_the_holder(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "LOCK")
    try:
        with pytest.raises(DirectoryLocked, match=f"{tmp_path} is open in another process \\(pid {os.getpid()}\\)"):
            DirectoryLock(tmp_path / "LOCK")
    finally:
        lock.release()
    DirectoryLock(tmp_path / "LOCK").release()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from kvnode.node.storage.datadir import DirectoryLock;"
        "lock = DirectoryLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "LOCK"
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(DirectoryLocked, match=f"pid {process.pid}"):
                DirectoryLock(path)
        finally:
            process.kill()
            process.wait(30)
    DirectoryLock(path).release()


def test_lock_in_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DirectoryLock(tmp_path / "missing" / "LOCK")
