"""Opening a data directory: who the node is, the epoch that every start begins, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kvnode.node.clock import Clock
from kvnode.node.commit import Committer
from kvnode.node.errors import FileDamaged, NameTaken, UnknownFormat
from kvnode.node.startup import OpenedDirectory, begin_reign, make_data_directory, open_directory
from kvnode.node.storage.datadir import CleanStop, Identity, Layout, Member, StateFiles
from kvnode.node.storage.statefile import encode_state
from kvnode.protocol.types import Epoch, History, Reign, Seq, put
from support.crash_plan import DROPPED, KEPT, Survival
from support.events import CapturedEvents
from support.logged import entries_in
from support.memory_disk import MemoryDisk
from support.simulated_node import DATA, LAYOUT, Machine, SteppingClock, tiny_config


class FrozenClock:
    """A clock that says one thing."""

    def __init__(self, ms: int) -> None:
        self._ms = ms

    def now_ms(self) -> int:
        return self._ms

    def monotonic_s(self) -> float:
        return 0.0


def commit(opened: OpenedDirectory, count: int = 1, clock: Clock | None = None) -> Seq:
    """Write some entries as the store would; returns the last seq."""
    storage = opened.storage
    committer = Committer(storage.wal, storage.engine, storage.history.current, clock or SteppingClock(), synced=True)
    for number in range(count):
        committer.commit([[put(b"k%d" % number, b"1")]])
    return storage.wal.last_seq


def stop_cleanly(opened: OpenedDirectory) -> None:
    storage = opened.storage
    opened.files.save_checkpoint(storage.engine.flush().seq)
    assert storage.engine.close(1)
    tail = storage.wal.close()
    opened.files.save_clean_stop(CleanStop(tail.last_seq, tail.name, tail.end))


def reigns(opened: OpenedDirectory) -> list[tuple[int, Seq]]:
    """(term, first seq) of the history, which is the same on disk."""
    history = opened.storage.history
    assert opened.files.load_history() == history
    return [(reign.epoch.term, reign.first_seq) for reign in history]


def files_of(machine: Machine) -> StateFiles:
    return StateFiles(machine.disk, LAYOUT)


# ---- who the node is -------------------------------------------------------------------------------------------


def test_a_new_directory_becomes_a_primary_of_a_new_cluster() -> None:
    opened = Machine.new().open(tiny_config(name="n1"))
    identity = opened.identity
    assert (identity.name, identity.role, identity.primary) == ("n1", "primary", None)
    assert len(bytes.fromhex(identity.node_id)) == len(identity.cluster_bytes) == 16
    assert opened.files.load_identity() == identity
    assert opened.files.load_members() == (Member(identity.node_id, "n1"),)
    assert reigns(opened) == [(1, 1)]
    storage = opened.storage
    assert (storage.wal.last_seq, storage.engine.applied.position.seq, storage.replayed) == (0, 0, 0)


def test_two_new_directories_have_nothing_in_common() -> None:
    first, second = (Machine.new().open(tiny_config()) for _ in range(2))
    assert first.identity.node_id != second.identity.node_id
    assert first.identity.cluster_id != second.identity.cluster_id
    assert first.identity.node_id != first.identity.cluster_id
    assert first.storage.history.current != second.storage.history.current


def test_without_a_name_the_node_gets_one_from_its_id_and_keeps_it() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config(name=""))
    name = opened.identity.name
    assert name == f"node-{opened.identity.node_id[:8]}"
    stop_cleanly(opened)
    assert machine.after_crash(KEPT).open(tiny_config(name="")).identity == opened.identity


def test_a_known_directory_keeps_its_name_until_told_otherwise() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config(name="n1"))
    stop_cleanly(opened)
    machine = machine.after_crash(KEPT)
    again = machine.open(tiny_config(name=""))
    assert again.identity == opened.identity
    stop_cleanly(again)
    machine = machine.after_crash(KEPT)
    renamed = machine.open(tiny_config(name="n2"))
    assert renamed.identity == replace(opened.identity, name="n2")
    assert renamed.files.load_identity() == renamed.identity
    assert renamed.files.load_members() == (Member(opened.identity.node_id, "n2"),)


def test_renaming_leaves_the_other_members_alone() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config(name="n1"))
    own, other = Member(opened.identity.node_id, "n1"), Member("ee" * 16, "other")
    opened.files.save_members((own, other))
    stop_cleanly(opened)
    machine = machine.after_crash(KEPT)
    renamed = machine.open(tiny_config(name="n2"))
    assert set(renamed.files.load_members() or ()) == {other, Member(own.node_id, "n2")}


def test_a_name_that_another_member_has_is_refused_and_nothing_changes() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config(name="n1"))
    own, other = Member(opened.identity.node_id, "n1"), Member("ee" * 16, "other")
    opened.files.save_members((own, other))
    stop_cleanly(opened)
    machine = machine.after_crash(KEPT)
    with pytest.raises(NameTaken) as refused:
        machine.open(tiny_config(name="other"))
    assert (refused.value.code, refused.value.fields) == ("name_taken", {"name": "other"})
    assert "to stay n1" in (refused.value.hint or "")
    assert files_of(machine).load_identity() == opened.identity
    assert files_of(machine).load_members() == (own, other)
    assert machine.open(tiny_config(name="n1")).identity == opened.identity


def test_a_lost_list_of_members_is_begun_again() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config())
    stop_cleanly(opened)
    machine = machine.after_crash(KEPT)
    machine.disk.remove_file(LAYOUT.members)
    again = machine.open(tiny_config())
    assert again.files.load_members() == (Member(opened.identity.node_id, opened.identity.name),)


@pytest.mark.parametrize("root", ["/data", "/srv/a/b/n1"])
@pytest.mark.parametrize("made_before", [True, False])
def test_the_directorys_own_name_is_durable_before_it_holds_anything(root: str, made_before: bool) -> None:
    disk = MemoryDisk()
    layout = Layout(Path(root))
    if made_before:
        disk.make_directory(layout.root)
        disk.sync_directory(Path("/"))
        for parent in layout.root.parents[1:]:
            disk.sync_directory(parent)
    make_data_directory(disk, layout)
    assert disk.after_crash(DROPPED).exists(layout.root)
    # Once it holds a node, its parent, which may be nobody's to open, is left alone.
    StateFiles(disk, layout).save_identity(Identity("aa" * 16, "n", "bb" * 16, "primary"))
    before = len(disk.calls)
    make_data_directory(disk, layout)
    assert [call.operation for call in disk.calls[before:]] == ["make_directory"]


# ---- the epoch -------------------------------------------------------------------------------------------------


def test_an_epoch_without_entries_is_replaced() -> None:
    machine = Machine.new()
    epochs: list[Epoch] = []
    for term in (1, 2, 3):
        opened = machine.open(tiny_config())
        assert reigns(opened) == [(term, 1)]
        epochs.append(opened.storage.history.current)
        stop_cleanly(opened)
        machine = machine.after_crash(KEPT)
    assert len(set(epochs)) == 3


@pytest.mark.parametrize("survival", [KEPT, DROPPED], ids=str)
def test_every_start_begins_an_epoch_behind_the_last_entry(survival: Survival) -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config())
    assert commit(opened, 3) == 3
    machine = machine.after_crash(survival)
    opened = machine.open(tiny_config())
    assert not opened.storage.clean
    assert reigns(opened) == [(1, 1), (2, 4)]
    assert commit(opened, 2) == 5
    stop_cleanly(opened)
    machine = machine.after_crash(survival)
    opened = machine.open(tiny_config())
    assert opened.storage.clean
    assert reigns(opened) == [(1, 1), (2, 4), (3, 6)]
    machine = machine.after_crash(survival)
    opened = machine.open(tiny_config())
    # The third one ordered nothing.
    assert reigns(opened) == [(1, 1), (2, 4), (4, 6)]
    assert commit(opened) == 6
    entries = entries_in(machine.disk, LAYOUT.wal, opened.storage.wal.segments)
    assert [(entry.seq, entry.epoch.term) for entry in entries] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 4)]


def test_the_epoch_is_durable_before_the_first_write() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config())
    stable = machine.after_crash(DROPPED)
    assert files_of(stable).load_history() == opened.storage.history
    assert files_of(stable).load_identity() == opened.identity


def test_the_new_term_is_above_the_highest_ever_seen() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config())
    commit(opened)
    history = opened.storage.history.begin(Epoch.of(41, 5), 2)
    opened.files.save_history(history)
    machine = machine.after_crash(KEPT)
    opened = machine.open(tiny_config())
    assert reigns(opened) == [(1, 1), (42, 2)]


def test_time_does_not_go_back_over_a_restart() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config())
    commit(opened, 2, FrozenClock(9000))
    stop_cleanly(opened)
    machine = machine.after_crash(KEPT)
    opened = machine.open(tiny_config())
    commit(opened, 2, FrozenClock(1000))
    machine = machine.after_crash(KEPT)
    opened = machine.open(tiny_config())
    assert opened.storage.replayed == 2
    commit(opened, 1, FrozenClock(500))
    commit(opened, 1, FrozenClock(9001))
    entries = entries_in(machine.disk, LAYOUT.wal, opened.storage.wal.segments)
    assert [entry.time_ms for entry in entries] == [9000, 9000, 9000, 9000, 9000, 9001]


# ---- what is refused -------------------------------------------------------------------------------------------


def machine_with_data() -> Machine:
    """A directory with entries in the log and in LevelDB, stopped cleanly."""
    machine = Machine.new()
    opened = machine.open(tiny_config())
    commit(opened, 3)
    stop_cleanly(opened)
    return machine.after_crash(KEPT)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(lambda path: True, id="all the rest"),
        pytest.param(lambda path: path == LAYOUT.history, id="history"),
        pytest.param(lambda path: path == LAYOUT.members, id="members"),
        pytest.param(lambda path: path == LAYOUT.checkpoint, id="checkpoint"),
        pytest.param(lambda path: path.is_relative_to(LAYOUT.wal), id="wal"),
        pytest.param(lambda path: path.is_relative_to(LAYOUT.db), id="db"),
    ],
)
def test_data_without_an_identity_is_refused_and_not_given_a_new_one(kept: Callable[[Path], bool]) -> None:
    machine = machine_with_data()
    machine.disk.remove_file(LAYOUT.node)
    for path in machine.disk.snapshot(DATA):
        if not kept(path):
            machine.disk.remove_file(path)
    before = machine.disk.snapshot(DATA)
    with pytest.raises(FileDamaged, match=r"/data/node\.json: missing") as caught:
        machine.open(tiny_config())
    assert caught.value.hint is not None
    assert machine.disk.snapshot(DATA) == before


def test_empty_directories_and_temporaries_are_no_data() -> None:
    machine = Machine.new()
    for directory in (LAYOUT.wal, LAYOUT.db):
        machine.disk.make_directory(directory)
    machine.disk.put_file(DATA / "node.json.tmp", b"half")
    machine.disk.put_file(LAYOUT.lock, b"1\n")
    assert reigns(machine.open(tiny_config())) == [(1, 1)]


def test_a_directory_of_a_replica_opens_without_a_new_epoch() -> None:
    machine = machine_with_data()
    files = files_of(machine)
    identity = files.load_identity()
    assert identity is not None
    files.save_identity(replace(identity, role="replica", primary="127.0.0.1:7001"))
    history = files.load_history()
    opened = open_directory(tiny_config(), machine.disk, machine.engines, CapturedEvents())
    assert (opened.identity.role, opened.identity.primary) == ("replica", "127.0.0.1:7001")
    assert files.load_history() == history == opened.storage.history


def test_a_replica_that_knows_of_reigns_ahead_of_its_log_opens() -> None:
    """It makes its primary's history durable before the entries that it names: that is no evidence of a loss."""
    machine = machine_with_data()
    files = files_of(machine)
    identity, history = files.load_identity(), files.load_history()
    assert identity is not None
    assert history is not None
    files.save_identity(replace(identity, role="replica", primary="127.0.0.1:7001"))
    files.save_history(History((*history.reigns, Reign(Epoch.of(9, 9), 1000))))
    files.remove_clean_stop()
    opened = open_directory(tiny_config(), machine.disk, machine.engines, CapturedEvents())
    assert opened.storage.wal.last_seq < 999
    # Promoted, it leaves out what it never had, and its term is above all that it heard of.
    begin_reign(opened, CapturedEvents(), seen_term=11)
    assert opened.storage.history.current.term == 12
    assert opened.storage.history.reigns[-1].first_seq == opened.storage.wal.last_seq + 1


@pytest.mark.parametrize("name", ["node.json", "history", "members", "checkpoint", "clean"])
def test_a_file_of_another_format_is_refused_naming_both(name: str) -> None:
    machine = machine_with_data()
    content = machine.disk.snapshot(DATA)[DATA / name]
    assert content.count(b'"format":1') == 1
    machine.disk.put_file(DATA / name, reformatted(content))
    before = machine.disk.snapshot(DATA)
    with pytest.raises(UnknownFormat, match=f"/data/{name}: format version 2, this program knows version 1"):
        machine.open(tiny_config())
    assert machine.disk.snapshot(DATA) == before


def reformatted(content: bytes) -> bytes:
    """A small file's content as another version would have written it."""
    body = msgspec.json.decode(content)
    del body["crc32"]
    body["format"] = 2
    # The same function writes the checksum; a state's member of that name wins over the function's own.
    return encode_state(body)


@pytest.mark.parametrize("name", ["node.json", "history", "members", "checkpoint", "clean"])
def test_a_damaged_file_is_refused_by_name(name: str) -> None:
    machine = machine_with_data()
    content = bytearray(machine.disk.snapshot(DATA)[DATA / name])
    content[len(content) // 2] ^= 1
    machine.disk.put_file(DATA / name, bytes(content))
    with pytest.raises(FileDamaged, match=f"/data/{name}: damaged"):
        machine.open(tiny_config())


def test_a_missing_history_is_refused() -> None:
    """Without it nobody knows which entries are meant by a seq."""
    machine = machine_with_data()
    machine.disk.remove_file(LAYOUT.history)
    with pytest.raises(FileDamaged, match="history: missing, though LevelDB stands at"):
        machine.open(tiny_config())


def test_an_identity_with_a_wrong_role_is_damage() -> None:
    machine = Machine.new()
    files_of(machine).save_identity(Identity("aa" * 16, "n", "bb" * 16, "king"))
    with pytest.raises(FileDamaged, match="role 'king'"):
        machine.open(tiny_config())


def test_the_first_reign_begins_with_the_first_seq() -> None:
    machine = Machine.new()
    opened = machine.open(tiny_config())
    assert opened.storage.history.reigns == (Reign(opened.storage.history.current, 1),)
    assert LAYOUT.wal / "00000000000000000001.wal" in machine.disk.stable_snapshot(DATA)
