"""Commands that are started with closed descriptors: refused where they are there to print, and never out of order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode.cli.__main__ import SECTIONS, main
from support.stub_server import StubServer

_QUIET = {"start", "join"}
_PRINTING = [name for commands in SECTIONS.values() for name in commands if name not in _QUIET]


def started_with(closed: str, *arguments: str, url: str) -> subprocess.CompletedProcess[bytes]:
    """Run `kvnode ARGUMENTS` behind redirections of a shell."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-P", "-m", "kvnode.cli", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, "KVNODE_URL": url}, timeout=50, check=False)


def test_a_closed_stdout_is_told(stub: StubServer) -> None:
    done = started_with(">&-", "status", url=stub.url)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: stdout is closed (failed)\nhint: ")
    assert not stub.requests


def test_a_closed_stderr_stops_nothing(stub: StubServer) -> None:
    done = started_with("2>&-", "bench", "--requests", "5", "--warmup", "0", "--keys", "5", url=stub.url)
    assert done.returncode == 0
    assert b"operation" in done.stdout


@pytest.mark.parametrize("name", _PRINTING)
def test_what_is_there_to_print_is_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(SystemExit) as ended:
            main.main([name])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: stdout is closed (failed)\n")


@pytest.mark.parametrize("name", sorted(_QUIET))
def test_a_node_needs_no_stdout(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(SystemExit) as ended:
            main.main([name, "--help"])
    assert ended.value.code == 0


def test_what_is_closed_becomes_the_null_device(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import os, sys
from kvnode.cli.descriptors import keep_standard_descriptors
keep_standard_descriptors()
sys.stderr.write("lost")
said = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in range(3)], [os.get_inheritable(fd) for fd in range(3)]
with open({str(out)!r}, "w") as file:
    print(said, sys.stdout, file.fileno(), file=file)
"""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-P", "-c", code]
    subprocess.run(command, timeout=50, check=True)
    null = ["/dev/null"] * 3
    assert out.read_text() == f"({null}, [True, True, True]) None 3\n"
