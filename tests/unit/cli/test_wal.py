"""`kvnode wal` on real files, as a node leaves them when it is killed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import main
from kvnode.node.fs import RealFs
from kvnode.node.storage.datadir import DirectoryLock, Layout, Repair, StateFiles
from kvnode.node.storage.segment import segment_name
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.types import delete, put
from support.crash_plan import KEPT
from support.storage_rig import StorageRig


def wal(*arguments: str | Path, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["wal", *map(str, arguments)], input=answer, catch_exceptions=False)


def data_directory(path: Path, *, checkpoint_at: int = 5) -> Path:
    """A directory with 20 entries in segments that begin with seq 1, 10 and 18, whose node was killed."""
    rig = StorageRig(WalOptions(segment_bytes=700, keep_bytes=0))
    storage = rig.start()
    rig.write_puts(storage, checkpoint_at)
    rig.checkpoint(storage)
    rig.write_puts(storage, 20 - checkpoint_at)
    rig.crashed(KEPT).disk.dump_to(path, rig.root)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "n1")


def segment(data: Path, first_seq: int) -> Path:
    return data / "wal" / segment_name(first_seq)


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def files(data: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    found.pop("LOCK", None)
    return found


def lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout_bytes.splitlines()]


# ---- ls --------------------------------------------------------------------------------------------------------


def test_ls_in_a_pipe_is_plain_text(data: Path) -> None:
    result = wal("ls", data)
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *rows = result.stdout.splitlines()
    assert heading.split("  ")[0] == "segment"
    assert [row.split() for row in rows] == [
        [segment_name(1), "1", "9", "688", "688", "1.9f2c1a01", "closed"],
        [segment_name(10), "10", "17", "632", "632", "1.9f2c1a01", "closed"],
        [segment_name(18), "18", "20", "262", "700", "1.9f2c1a01", "tail"],
    ]


def test_ls_as_json(data: Path) -> None:
    damage(segment(data, 1), 2)
    first, _, tail = json.loads(wal("ls", data, "--json").stdout)
    assert tail == {
        "name": segment_name(18),
        "first_seq": 18,
        "last_seq": 20,
        "used_bytes": 262,
        "reserved_bytes": 700,
        "epochs": ["1.9f2c1a01"],
        "state": "tail",
        "fault": None,
    }
    assert first["fault"]["reason"] == "the segment header has no magic number"


def test_ls_tells_torn_and_damaged_segments(data: Path) -> None:
    damage(segment(data, 1), 2)
    damage(segment(data, 18), 261)
    rows = wal("ls", data).stdout.splitlines()[1:]
    assert [row.partition("1.9f2c1a01")[2].strip() for row in rows] == [
        "closed, damaged at offset 0",
        "closed",
        "tail, torn at offset 188",
    ]


def test_ls_on_a_terminal_is_a_table(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.cli.commands.wal._on_terminal", lambda: True)
    result = wal("ls", data)
    assert result.exit_code == 0
    assert "first seq" in result.stdout
    assert segment_name(18)[:20] in result.stdout


def test_ls_without_segments(data: Path) -> None:
    for first_seq in (1, 10, 18):
        segment(data, first_seq).unlink()
    result = wal("ls", data)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "the log has no segments\n")
    assert json.loads(wal("ls", data, "--json").stdout) == []


@pytest.mark.parametrize("command", ["ls", "dump", "verify", "repair"])
def test_directory_that_holds_no_log(command: str, tmp_path: Path) -> None:
    result = wal(command, tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{tmp_path}: " in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert wal(command, tmp_path / "missing").exit_code == 1


# ---- dump ------------------------------------------------------------------------------------------------------------


def test_dump_prints_entries_as_json_lines(data: Path) -> None:
    result = wal("dump", data)
    assert (result.exit_code, result.stderr) == (0, "")
    entries = lines(result)
    assert [entry["seq"] for entry in entries] == list(range(1, 21))
    assert entries[6] == {
        "seq": 7,
        "epoch": "1.9f2c1a01",
        "time": "2023-11-14T22:13:20.007Z",
        "ops": [
            {"op": "put", "key": "last", "value": 7},
            {"op": "put", "key": "k7", "value": "." * 19 + "7"},
        ],
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--from", "19"], [19, 20]), (["--to", "2"], [1, 2]), (["--from", "9", "--to", "11"], [9, 10, 11])],
)
def test_dump_of_a_part(data: Path, options: list[str], expected: list[int]) -> None:
    assert [entry["seq"] for entry in lines(wal("dump", data, *options))] == expected


@pytest.mark.parametrize("options", [["--from", "0"], ["--from", "x"], ["--from", "3", "--to", "2"]])
def test_dump_refuses_nonsense(data: Path, options: list[str]) -> None:
    assert wal("dump", data, *options).exit_code == 2


def test_dump_shows_values_as_they_were_stored(tmp_path: Path) -> None:
    rig = StorageRig()
    storage = rig.start()
    values = [b"1.0", b"12345678901234567890", b'"\\ud800"', b"[1 , 2]", '"—"'.encode(), b'{"a":\r\n\t1}']
    rig.write(storage, [[[put(b"k", value) for value in values]], [[delete("ü/\n".encode()), put(b"t", b"1", 1)]]])
    rig.crashed(KEPT).disk.dump_to(tmp_path, rig.root)
    first, second = wal("dump", tmp_path).stdout_bytes.splitlines()
    for value in values[:-1]:
        assert b'{"op":"put","key":"k","value":' + value + b"}" in first
    assert b'"value":{"a":  \t1}}' in first
    assert json.loads(second)["ops"] == [
        {"op": "delete", "key": "ü/\n"},
        {"op": "put", "key": "t", "value": 1, "expires": "1970-01-01T00:00:00.001Z"},
    ]


def test_dump_leaves_a_torn_tail_out_and_says_so(data: Path) -> None:
    damage(segment(data, 18), 261)
    result = wal("dump", data, "--from", "18")
    assert [entry["seq"] for entry in lines(result)] == [18, 19]
    assert result.exit_code == 0
    assert result.stderr == f"note: {segment(data, 18)}: offset 188: an unfinished write is left out\n"


def test_dump_ends_at_damage_with_exit_code_1(data: Path) -> None:
    damage(segment(data, 10), 600)
    result = wal("dump", data)
    assert result.exit_code == 1
    assert [entry["seq"] for entry in lines(result)] == list(range(1, 17))
    assert f"error: {segment(data, 10)}: offset 558, seq 17: " in result.stderr
    assert "--skip-damage" in result.stderr
    result = wal("dump", data, "--skip-damage")
    assert result.exit_code == 1
    assert [entry["seq"] for entry in lines(result)] == [*range(1, 17), 18, 19, 20]


def test_dump_of_a_seq_that_is_no_longer_there(data: Path) -> None:
    segment(data, 1).unlink()
    result = wal("dump", data, "--from", "3")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the log begins at seq 10, not at 3 (segments_dropped)" in result.stderr


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_verify_of_a_sound_directory(data: Path) -> None:
    before = files(data)
    result = wal("verify", data)
    assert (result.exit_code, result.stderr) == (0, "")
    said = result.stdout.splitlines()
    assert f"ok   {segment_name(1)}  seq 1 to 9, 688 of 688 bytes" in said
    assert "ok   checkpoint                LevelDB is durable up to seq 5" in said
    assert any(line.startswith("not consulted: LevelDB") for line in said)
    assert said[-1] == "sound: seq 1 to 20"
    assert files(data) == before
    assert not (data / "LOCK").exists()


def test_verify_of_a_torn_tail_ends_well_and_says_so(data: Path) -> None:
    damage(segment(data, 18), 261)
    result = wal("verify", data)
    assert result.exit_code == 0
    assert f"torn tail: {segment(data, 18)}: offset 188, seq 20: " in result.stdout
    assert result.stdout.endswith("sound: seq 1 to 19, then a torn tail\n")


def test_verify_of_corruption_names_the_place(data: Path) -> None:
    damage(segment(data, 10), 600)
    result = wal("verify", data)
    assert result.exit_code == 1
    assert (
        f"error: {segment(data, 10)}: offset 558, seq 17: the payload does not match its CRC, and later"
        in result.stdout
    )
    assert f"BAD  {segment_name(10)}" in result.stdout
    assert "NOT SOUND: 1 of the things checked" in result.stdout
    assert f"kvnode wal repair --dry-run {data}" in result.stdout


def test_verify_as_json(data: Path) -> None:
    sound = json.loads(wal("verify", data, "--json").stdout)
    assert sound["sound"] is True
    assert (sound["first_seq"], sound["last_seq"], sound["checkpoint_seq"]) == (1, 20, 5)
    assert (sound["torn_tail"], sound["faults"], sound["files"], sound["not_consulted"]) == (None, [], [], ["db"])
    damage(segment(data, 10), 600)
    damage(data / "checkpoint", 10)
    result = wal("verify", data, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["sound"]) == (1, False)
    (fault,) = found["faults"]
    assert (fault["kind"], fault["path"], fault["offset"], fault["seq"]) == ("damage", str(segment(data, 10)), 558, 17)
    (problem,) = found["files"]
    assert problem["code"] == "file_damaged"
    assert "remove the file" in problem["hint"]


def test_verify_works_while_the_directory_is_locked(data: Path) -> None:
    lock = DirectoryLock(data / "LOCK")
    try:
        for command in ("ls", "dump", "verify"):
            assert wal(command, data).exit_code == 0
    finally:
        lock.release()


# ---- repair ----------------------------------------------------------------------------------------------------------


def test_repair_of_a_sound_directory_does_nothing(data: Path) -> None:
    before = files(data)
    result = wal("repair", data)
    assert (result.exit_code, result.stdout) == (0, "nothing to repair\n")
    assert files(data) == before


def test_repair_says_what_it_will_do_and_asks(data: Path) -> None:
    damage(segment(data, 10), 600)
    before = files(data)
    result = wal("repair", data, answer="n\n")
    assert result.exit_code == 1
    assert files(data) == before
    aside = data / "wal-old" / "repair-00000000000000000017"
    damage_line, *said = result.stdout.splitlines()
    assert damage_line.startswith(
        f"damage: {segment(data, 10)}: offset 558, seq 17: the payload does not match its CRC"
    )
    assert said[:5] == [
        "The repair",
        f"  copies {segment(data, 10)} to {aside}, then cuts it to 558 bytes",
        f"  moves segment {segment_name(18)} to {aside}",
        "  leaves a log that ends at seq 16",
        "  accepts that entries 17 to 20 are not in the log; damage may hide later ones",
    ]
    assert "LOST: whichever of the entries 17 to 20 LevelDB does not hold." in result.stdout
    assert result.stdout.rstrip().endswith("Do this? [y/N]: n")


def test_repair_that_was_confirmed(data: Path) -> None:
    damage(segment(data, 10), 600)
    before = files(data)
    result = wal("repair", data, answer="y\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("done; the log ends at seq 16. The next `kvnode start` goes on from here.\n")
    after = files(data)
    aside = "wal-old/repair-00000000000000000017/"
    assert after.pop(f"wal/{segment_name(10)}") == before[f"wal/{segment_name(10)}"][:558]
    for first_seq in (10, 18):
        assert after.pop(aside + segment_name(first_seq)) == before.pop(f"wal/{segment_name(first_seq)}")
    assert after.pop("repair")
    assert after == before
    assert StateFiles(RealFs(), Layout(data)).load_repair() == Repair(16, 20)
    assert wal("verify", data).exit_code == 0
    kept = wal("dump", data / aside, "--skip-damage")
    assert [entry["seq"] for entry in lines(kept)] == [10, 11, 12, 13, 14, 15, 16, 18, 19, 20]


def test_repair_with_yes_does_not_ask(data: Path) -> None:
    damage(segment(data, 10), 600)
    result = wal("repair", data, "--yes")
    assert result.exit_code == 0
    assert "Do this?" not in result.stdout


def test_repair_dry_run_changes_nothing(data: Path) -> None:
    damage(segment(data, 10), 600)
    before = files(data)
    result = wal("repair", data, "--dry-run", "--yes")
    assert result.exit_code == 0
    assert "leaves a log that ends at seq 16" in result.stdout
    assert files(data) == before


def test_repair_tells_what_leveldb_holds_durably(tmp_path: Path) -> None:
    data = data_directory(tmp_path / "some", checkpoint_at=18)
    damage(segment(data, 18), 100)
    result = wal("repair", data, "--dry-run")
    assert "LevelDB holds the entries up to 18 durably. LOST: those of 19 to 20 that it does not hold." in result.stdout
    data = data_directory(tmp_path / "all", checkpoint_at=20)
    damage(segment(data, 18), 100)
    result = wal("repair", data, "--dry-run")
    assert f"LevelDB holds the entries up to 20 durably: nothing is lost if {data / 'db'} is whole." in result.stdout


def test_repair_of_what_nothing_needs_costs_nothing(tmp_path: Path) -> None:
    data = data_directory(tmp_path, checkpoint_at=20)
    damage(segment(data, 10), 600)
    result = wal("repair", data, "--yes")
    assert result.exit_code == 0
    assert f"moves 2 segments, {segment_name(1)} to {segment_name(10)}, to " in result.stdout
    assert "No entry is lost of which anything is known." in result.stdout
    assert sorted(path.name for path in (data / "wal").iterdir()) == [segment_name(18)]
    assert not (data / "repair").exists()


def test_repair_with_leveldb_lost(tmp_path: Path) -> None:
    data = data_directory(tmp_path, checkpoint_at=20)
    damage(segment(data, 10), 600)
    result = wal("repair", data, "--db-lost", "--yes")
    assert result.exit_code == 0
    assert "leaves a log that ends at seq 16" in result.stdout
    assert "LOST: whichever of the entries 17 to 20 LevelDB does not hold." in result.stdout


def test_repair_of_a_torn_tail_says_that_start_up_does_it(data: Path) -> None:
    damage(segment(data, 18), 261)
    result = wal("repair", data, "--dry-run")
    assert result.stdout.startswith("torn tail: ")
    assert "Start-up cuts this off by itself" in result.stdout


def test_repair_warns_of_a_history_that_is_older_than_the_log(data: Path) -> None:
    files_ = StateFiles(RealFs(), Layout(data))
    history = files_.load_history()
    assert history is not None
    files_.save_history(type(history)((history.reigns[0], type(history.reigns[0])(type(history.current).of(2, 5), 12))))
    result = wal("repair", data, "--dry-run")
    assert "not this node's history" in result.stdout
    assert f"If {data / 'history'} comes from an older copy" in result.stdout


def test_repair_refuses_while_the_node_runs(data: Path) -> None:
    damage(segment(data, 10), 600)
    before = files(data)
    lock = DirectoryLock(data / "LOCK")
    try:
        result = wal("repair", data, "--yes")
    finally:
        lock.release()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is open in another process (pid" in result.stderr
    assert files(data) == before


def test_repair_names_a_damaged_small_file_with_a_hint(data: Path) -> None:
    damage(data / "history", 10)
    result = wal("repair", data, "--yes")
    assert result.exit_code == 1
    assert f"{data / 'history'}: damaged" in result.stderr
    assert "hint: restore it from a copy" in result.stderr
