"""Completion in real shells, at a terminal where they need one."""

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: How long a shell may take for anything on a busy machine.
_PATIENCE_S = 30.0

#: How each shell begins without anybody's settings, and learns to complete.
_BEGIN = {
    "bash": (["bash", "--noprofile", "--norc", "-i"], "source ./script"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -D -u; source ./script"),
}


def shell_path(name: str) -> str:
    """Where the shell is; the test is skipped if it is not there."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a `kvnode` in bin/ that completes, and else prints its arguments; a file and a directory."""
    program = tmp_path / "bin" / "kvnode"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
        if [ "$1" != completion ] && [ -z "$_KVNODE_COMPLETE" ]; then echo "args: $*;"; exit; fi
        exec "{sys.executable}" -P -m kvnode.cli "$@"
        """
    )
    program.chmod(0o755)
    (tmp_path / "settings.toml").touch()
    (tmp_path / "data").mkdir()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("KVNODE_")}
    return {**kept, "PATH": f"{place / 'bin'}:{kept['PATH']}", "HOME": str(place), "TERM": "dumb"}


def write_script(place: Path, shell: str) -> None:
    done = subprocess.run(
        ["kvnode", "completion", shell], env=environment(place), capture_output=True, timeout=60, check=True
    )
    (place / "script").write_bytes(done.stdout)


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, command: list[str], place: Path) -> None:
        self.seen = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(place)
            os.execvpe(command[0], command, environment(place))

    def press(self, keys: str, then: str) -> str:
        """Press these, and return what is written up to this text, which they make appear."""
        os.write(self._fd, keys.encode())
        since = ""
        deadline = time.monotonic() + _PATIENCE_S
        while then not in since:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {then!r} in {since!r}; before: {self.seen!r}"
            since += os.read(self._fd, 65536).decode(errors="replace")
        self.seen += since
        return since

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._fd)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_at_a_terminal(place: Path, shell: str) -> None:
    shell_path(shell)
    write_script(place, shell)
    command, learn = _BEGIN[shell]
    terminal = Terminal(command, place)
    try:
        terminal.press(f"{learn}; echo lear''ned\r", "learned")
        # The line is sent off as it was completed: what a terminal shows of it on the way is another matter.
        terminal.press("kvnode prom\t\r", "args: promote;")
        terminal.press("kvnode start --fsync=alw\t\r", "args: start --fsync=always;")
        terminal.press("kvnode start --config sett\t\r", "args: start --config settings.toml;")
        terminal.press("kvnode start --data da\t\r", "args: start --data data")
        # A URL is several words for bash.
        url = "http://127.0.0.1:5001"
        terminal.press(f"kvnode status --url {url} --wat\t\r", f"args: status --url {url} --watch;")
    finally:
        terminal.close()
    assert "Traceback" not in terminal.seen


def test_in_fish(place: Path) -> None:
    fish = shell_path("fish")
    write_script(place, "fish")
    lines = [
        "kvnode sta",
        "kvnode start --fsync=a",
        "kvnode start --config=sett",
        "kvnode start --data d",
    ]
    asked = "; echo -; ".join(f"complete -C '{line}'" for line in lines)
    done = subprocess.run(
        [fish, "--no-config", "-c", f"source ./script; {asked}"],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    answers = [[line.split("\t")[0] for line in part.splitlines()] for part in done.stdout.split("-\n")]
    assert answers == [
        ["start", "status"],
        ["--fsync=always"],
        ["--config=settings.toml"],
        ["data/"],
    ]
