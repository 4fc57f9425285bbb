"""compose/entrypoint: what a container becomes, by its command, KVNODE_JOIN and the data directory."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from support.project import ROOT

ENTRYPOINT = ROOT / "compose" / "entrypoint"

#: Stands for the command: says how it was called.
KVNODE = '#!/bin/sh\nprintf "%s|" kvnode "$@"\nulimit -S -n\n'


class Container:
    """A data directory, and a PATH on which `kvnode` only says how it was called."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.data = folder / "the data"
        self.bin.mkdir()
        self.data.mkdir()
        (self.bin / "kvnode").write_text(KVNODE)
        (self.bin / "kvnode").chmod(0o755)

    def run(self, *command: str, **environment: str) -> list[str]:
        """What the command was in the end, and the number of files that it may open."""
        done = subprocess.run(
            [ENTRYPOINT, *command],
            env={"PATH": f"{self.bin}:{os.defpath}", "KVNODE_DATA": str(self.data), **environment},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.rstrip("\n").split("|")

    def command(self, *command: str, **environment: str) -> list[str]:
        return self.run(*command, **environment)[:-1]


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_new_directory_joins_where_it_is_told_to(container: Container) -> None:
    wanted = ["kvnode", "join", "web1:7001"]
    assert container.command("kvnode", "start", KVNODE_JOIN="web1:7001") == wanted
    # What a join leaves that was ended before it reached the primary.
    (container.data / "LOCK").touch()
    assert container.command("kvnode", "start", KVNODE_JOIN="web1:7001") == wanted


def test_arguments_are_kept_as_they_are(container: Container) -> None:
    given = ["--log-format", "json", "--name", "a b"]
    assert container.command("kvnode", "start", *given) == ["kvnode", "start", *given]
    joined = ["kvnode", "join", "web1:7001", *given]
    assert container.command("kvnode", "start", *given, KVNODE_JOIN="web1:7001") == joined


def test_known_directory_is_what_it_says_that_it_is(container: Container) -> None:
    (container.data / "node.json").touch()
    assert container.command("kvnode", "start", KVNODE_JOIN="web1:7001") == ["kvnode", "start"]


def test_without_a_primary_to_join_it_starts(container: Container) -> None:
    assert container.command("kvnode", "start") == ["kvnode", "start"]
    assert container.command("kvnode", "start", KVNODE_JOIN="") == ["kvnode", "start"]


@pytest.mark.parametrize("command", [["kvnode", "status", "--json"], ["kvnode", "join", "web2:7001"], ["kvnode"]])
def test_other_commands_are_left_alone(container: Container, command: list[str]) -> None:
    assert container.command(*command, KVNODE_JOIN="web1:7001") == command


def test_as_many_files_as_allowed_may_be_open(container: Container) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        allowed = container.run("kvnode", "start")[-1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert allowed == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard))


def test_it_is_executable_and_sound() -> None:
    assert os.access(ENTRYPOINT, os.X_OK)
    assert ENTRYPOINT.read_text("utf-8").startswith("#!/bin/sh\n")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    done = subprocess.run(["shellcheck", ENTRYPOINT], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "")
