"""What to try next: a line below an error, of what is true and can be done."""

import errno
import os
import socket
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import _ELSEWHERE, SECTIONS, main
from kvnode.cli.reporting import reported
from kvnode.node.config import SETTINGS

COMMANDS = [name for commands in SECTIONS.values() for name in commands]


def kvnode(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin, catch_exceptions=False)


def hint_of(result: Result, exit_code: int) -> str:
    """The one hint that was given, on a line of its own at the end."""
    assert result.exit_code == exit_code
    (hint,) = [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
    assert result.stderr.endswith(f"{hint}\n")
    return hint.removeprefix("hint: ")


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("stats", "that is `kvnode status --watch` here"),
        ("statsu", "did you mean status or start?"),
        ("pu", "did you mean put?"),
        ("xyzzy", "`kvnode --help` lists the commands"),
        *((word, f"that is `kvnode {meant}` here") for word, meant in _ELSEWHERE.items()),
    ],
)
def test_an_unknown_command(typed: str, hint: str) -> None:
    result = kvnode(typed)
    assert f"No such command '{typed}'." in result.stderr
    assert hint_of(result, 2) == hint


def test_what_is_called_otherwise_elsewhere_is_there() -> None:
    for word, meant in _ELSEWHERE.items():
        assert word not in COMMANDS
        name, *options = meant.split()
        shown = kvnode(name, "--help").stdout
        assert all(option in shown for option in options)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["start", "--wal-keep-byte", "1"], "did you mean --wal-keep-bytes"),
        (["status", "--wach"], "did you mean --watch?"),
        (["bench", "--conections", "3"], "did you mean --connections"),
        (["wal", "verify", "--jsn", "."], "did you mean --json?"),
    ],
)
def test_an_unknown_option(arguments: list[str], hint: str) -> None:
    result = kvnode(*arguments)
    assert hint in hint_of(result, 2)
    # Once: not in the message as well.
    assert result.stderr.lower().count("did you mean") == 1


def test_an_option_that_is_like_no_other_has_the_usual_line() -> None:
    result = kvnode("status", "--xyzzy")
    assert result.exit_code == 2
    assert "hint:" not in result.stderr
    assert "--help' for help." in result.stderr


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `start` that gets so far fails the test."""
    monkeypatch.setitem(sys.modules, "kvnode.node.service", ModuleType("kvnode.node.service"))
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)


@pytest.mark.usefixtures("_no_node")
@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("wal_keep_byte = 1", "did you mean wal_keep_bytes"),
        ("wal-kep-bytes = 1", "did you mean wal_keep_bytes"),
        ("xyzzy = 1", "`kvnode start --help` lists the settings"),
        ("wal_keep_bytes = true", 'write wal_keep_bytes = "..."'),
        ("wal_keep_bytes", "it is TOML"),
        (None, "it is what --config, or else KVNODE_CONFIG, names"),
    ],
)
def test_a_file_of_settings(tmp_path: Path, content: str | None, hint: str) -> None:
    path = tmp_path / "node.toml"
    if content is not None:
        path.write_text(content)
    assert hint in hint_of(kvnode("start", "--config", str(path)), 2)


@pytest.mark.usefixtures("_no_node")
@pytest.mark.parametrize(
    ("setting", "value"), [("max-value-bytes", "1GiB"), ("max-frame-bytes", "1MiB"), ("max-queued-bytes", "1")]
)
def test_limits_that_contradict_each_other_say_by_how_much(setting: str, value: str) -> None:
    hint = hint_of(kvnode("start", f"--{setting}", value), 2)
    raised, _, number = hint.removeprefix("set ").partition(" to ")
    assert raised in ("--max-frame-bytes", "--max-queued-bytes")
    # It is followed: that setting is no reason any more.
    flags = [f"--{setting}", value] if raised != f"--{setting}" else []
    again = CliRunner().invoke(main, ["start", *flags, raised, number.split()[0]])
    assert f"{raised} {number.split()[0]} cannot" not in again.stderr


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name", "hint"),
    [
        (errno.ENOENT, "/srv/x/file", "hint: `ls -la /srv/x` shows what is there\n"),
        (errno.EACCES, "/srv/x/file", "hint: `ls -ld /srv/x/file` shows who may use it\n"),
        (errno.ENOSPC, "/srv/x/file", "hint: `df -h /srv/x/file` shows how much room there is\n"),
        (errno.EIO, "/srv/x/file", ""),
        (errno.ENOENT, None, ""),
    ],
)
def test_an_error_of_the_operating_system(
    capsys: pytest.CaptureFixture[str], number: int, name: str | None, hint: str
) -> None:
    context = click.Context(click.Command("x"))
    with pytest.raises(click.exceptions.Exit), reported(context):
        raise OSError(number, os.strerror(number), name) if name else OSError(number, os.strerror(number))
    said = capsys.readouterr().err
    assert said.endswith(f"(os_error)\n{hint}")


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    assert "`ls -la" in hint_of(kvnode("wal", "ls", str(tmp_path / "none")), 1)
    assert "--data" in hint_of(kvnode("wal", "ls", str(tmp_path)), 1)


# ---- the peer port -------------------------------------------------------------------------------------------------


class Speaking:
    """Somebody who is no kvnode, and says this to whoever comes."""

    def __init__(self, said: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._speak, args=(said,), daemon=True)
        self._thread.start()

    def _speak(self, said: bytes) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.sendall(said)
            connection.recv(1024)

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


@pytest.mark.parametrize("said", [b"\0\0\0\3abc", b"SSH-2.0-OpenSSH_9.2\r\n"])
@pytest.mark.parametrize("command", [["tail"]])
def test_who_answers_on_the_peer_port_is_no_kvnode(said: bytes, command: list[Any]) -> None:
    with closing(Speaking(said)) as other:
        result = kvnode(*command, other.address)
    assert "peer port" in hint_of(result, 1)


@pytest.mark.parametrize("arguments", [["frame", "--encode"]])
def test_a_line_that_is_no_frame(arguments: list[str]) -> None:
    assert "protocol/FORMAT.md" in hint_of(kvnode(*arguments, stdin=b"x\n"), 1)


@pytest.mark.parametrize("stdin", [b"\0", b"\0\0\0\1\0", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_bytes_that_are_no_frame(stdin: bytes) -> None:
    assert hint_of(kvnode("frame", "--decode", stdin=stdin), 1)
