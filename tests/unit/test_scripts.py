"""The shell scripts: their syntax, how compose/python-env chooses an interpreter and prepares .venv, what the others
share, and tests/run.

The interpreters are shell scripts that answer as the real ones do and note what they were told to do, so nothing
is installed and every sort of interpreter can be had.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode.node.fs import RealFs
from kvnode.node.storage.datadir import Identity, Layout, StateFiles
from kvnode.protocol.types import Epoch, History
from support.project import PARTS, ROOT

COMMANDS = (
    "compose/up",
    "compose/down",
    "compose/python-env",
    "tests/run",
    "tests/bench/run",
    "tests/debian-packages",
    ".ci/run",
)
SOURCED = ("compose/nodes.sh",)

GOOD = "CPython {version} linux x86_64 64 yes"

#: What compose/python-env may count on: bash, coreutils, sed and util-linux, which every Debian has.
TOOLS = (
    *("bash", "sed", "flock"),
    *("cat", "cp", "cut", "dirname", "env", "id", "ln", "mkdir", "readlink", "rm", "sha256sum", "tail", "timeout"),
)

#: Answers the probe; as `-m venv DIR`, copies itself to DIR/bin/python; as `-m pip` and as a step of tests/run, only
#: notes it, and fails when told to.
INTERPRETER = """#!/bin/bash
case "$*" in
    *platform*) echo "{facts}" ;;
    '-m venv '*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    '-m pip '*) echo "$*" >>"$PIP_CALLS"; exit {pip_exit} ;;
    '-I -c import pip') ;;
    '-P -m '*) echo "${{*:3}}" >>"$STEPS"; [[ -z $FAILING || "$*" != *" $FAILING"* ]] ;;
    *) exit 99 ;;
esac
"""


class Sandbox:
    """A project folder with compose/python-env in it, and a PATH on which only given interpreters are."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "a project"
        self.bin = tmp_path / "bin"
        self.pip_calls = tmp_path / "pip-calls"
        self.pip_calls.touch()
        self.steps = tmp_path / "steps"
        self.bin.mkdir()
        for name in (
            "setup.cfg",
            "pyproject.toml",
            "compose/python-env",
            "tests/run",
            "tests/debian-packages",
            ".ci/run",
        ):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)

    @property
    def venv_python(self) -> Path:
        return self.root / ".venv" / "bin" / "python"

    def install(self, name: str, facts: str, *, folder: Path | None = None, pip_exit: int = 0) -> Path:
        """Puts an interpreter on the PATH."""
        return self.script(folder or self.bin, name, INTERPRETER.format(facts=facts, pip_exit=pip_exit))

    def script(self, folder: Path, name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(
        self, *args: str, script: str = "compose/python-env", path: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script of the project from a folder that is not the project's."""
        own = {"PATH": path or str(self.bin), "PIP_CALLS": str(self.pip_calls), "STEPS": str(self.steps)}
        return subprocess.run(
            [self.root / script, *args],
            cwd=self.bin,
            env={**own, **env},
            capture_output=True,
            text=True,
            timeout=50,
        )

    def prepare(self, *args: str, **env: str) -> str:
        """Runs it where it must succeed; returns what it said."""
        done = self.run(*args, **env)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return done.stderr

    def installs(self) -> list[str]:
        """What pip was told to install, since the last time this was asked."""
        calls = [line.rpartition(" ")[2] for line in self.pip_calls.read_text().splitlines()]
        self.pip_calls.write_text("")
        return calls


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.mark.parametrize("name", COMMANDS + SOURCED)
def test_syntax(name: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_executable_and_names_bash(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text("utf-8").startswith("#!/usr/bin/env bash\n")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    done = subprocess.run(
        ["shellcheck", "-x", *COMMANDS, *SOURCED], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (0, "")


class TestFind:
    """Which interpreter is taken."""

    @pytest.mark.parametrize("name", ["python3.12", "python3.11", "python3"])
    @pytest.mark.parametrize("version", ["3.11.0", "3.11.14", "3.12.1", "3.12.0rc1"])
    def test_supported_version(self, sandbox: Sandbox, name: str, version: str) -> None:
        python = sandbox.install(name, GOOD.format(version=version))
        done = sandbox.run("--find")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{python}\n", "")

    def test_newest_supported_first(self, sandbox: Sandbox) -> None:
        sandbox.install("python3", GOOD.format(version="3.11.2"))
        sandbox.install("python3.11", GOOD.format(version="3.11.2"))
        newest = sandbox.install("python3.12", GOOD.format(version="3.12.1"))
        assert sandbox.run("--find").stdout == f"{newest}\n"

    @pytest.mark.parametrize(
        "broken",
        [
            "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n",
            "#!/nowhere/python3.12\n",
            "#!/bin/sh\nexit 0\n",
            "#!/bin/sh\nkill -SEGV $$\n",
            "",
        ],
        ids=["shim", "no interpreter", "silent", "crashes", "empty"],
    )
    def test_broken_one_is_skipped(self, sandbox: Sandbox, broken: str) -> None:
        sandbox.script(sandbox.bin, "python3.12", broken)
        sound = sandbox.install("python3.11", GOOD.format(version="3.11.2"))
        done = sandbox.run("--find")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{sound}\n", "")

    def test_sound_one_behind_a_broken_shim_of_the_same_name(self, sandbox: Sandbox, tmp_path: Path) -> None:
        shims = tmp_path / "shims"
        shims.mkdir()
        sandbox.script(shims, "python3.12", "#!/bin/sh\nexit 127\n")
        sound = sandbox.install("python3.12", GOOD.format(version="3.12.1"))
        assert sandbox.run("--find", path=f"{shims}:{sandbox.bin}").stdout == f"{sound}\n"

    @pytest.mark.parametrize(
        ("facts", "why"),
        [
            ("CPython 3.13.0 linux x86_64 64 yes", "is Python 3.13.0"),
            ("CPython 3.10.13 linux x86_64 64 yes", "is Python 3.10.13"),
            ("CPython 3.1.5 linux x86_64 64 yes", "is Python 3.1.5"),
            ("PyPy 3.11.13 linux x86_64 64 yes", "is PyPy, not CPython"),
            ("CPython 3.11.2 linux aarch64 64 yes", "is for linux on aarch64, 64 bits"),
            ("CPython 3.11.2 linux x86_64 32 yes", "is for linux on x86_64, 32 bits"),
            ("CPython 3.11.2 darwin x86_64 64 yes", "is for darwin on x86_64, 64 bits"),
            ("CPython 3.11.2 linux x86_64 64 no", "apt install python3.11-venv"),
        ],
    )
    def test_unsupported_one_is_skipped_and_named_with_the_reason(self, sandbox: Sandbox, facts: str, why: str) -> None:
        unfit = sandbox.install("python3.12", facts)
        alone = sandbox.run("--find")
        assert (alone.returncode, alone.stdout) == (1, "")
        assert f"{unfit}: " in alone.stderr
        assert why in alone.stderr
        assert "python3.11: not found" in alone.stderr
        assert "CPython 3.11 or 3.12 on x86-64 Linux" in alone.stderr

        fit = sandbox.install("python3", GOOD.format(version="3.11.2"))
        assert sandbox.run("--find").stdout == f"{fit}\n"

    def test_override_goes_first(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.install("python3.12", GOOD.format(version="3.12.1"))
        mine = sandbox.install("my python", GOOD.format(version="3.11.2"), folder=tmp_path)
        assert sandbox.run("--find", KVNODE_PYTHON=str(mine)).stdout == f"{mine}\n"

    def test_override_may_be_a_name(self, sandbox: Sandbox) -> None:
        sandbox.install("python3.12", GOOD.format(version="3.12.1"))
        named = sandbox.install("python3.11", GOOD.format(version="3.11.2"))
        assert sandbox.run("--find", KVNODE_PYTHON="python3.11").stdout == f"{named}\n"

    def test_unfit_override_is_an_error_not_a_hint(self, sandbox: Sandbox) -> None:
        sandbox.install("python3.12", GOOD.format(version="3.12.1"))
        unfit = sandbox.install("python3.13", GOOD.format(version="3.13.0"))
        done = sandbox.run("--find", KVNODE_PYTHON=str(unfit))
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{unfit}: is Python 3.13.0" in done.stderr

    def test_the_real_probe(self, sandbox: Sandbox) -> None:
        """The interpreter that runs this test is a supported one and says so itself."""
        done = sandbox.run("--find", KVNODE_PYTHON=sys.executable)
        assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n"), done.stderr


class TestPrepare:
    """When .venv is made, replaced, filled, and left alone."""

    @pytest.fixture
    def sandbox(self, tmp_path: Path) -> Sandbox:
        sandbox = Sandbox(tmp_path)
        sandbox.install("python3.12", GOOD.format(version="3.12.1"))
        return sandbox

    def test_first_run_makes_and_fills_it_and_the_second_does_nothing(self, sandbox: Sandbox) -> None:
        assert "making .venv" in sandbox.prepare()
        assert sandbox.installs() == ["."]
        assert sandbox.prepare() == ""
        assert sandbox.installs() == []

    def test_test_tools_are_added_once_and_are_enough_for_a_node(self, sandbox: Sandbox) -> None:
        sandbox.prepare()
        assert sandbox.installs() == ["."]
        assert "test tools" in sandbox.prepare("test")
        assert sandbox.installs() == [".[test]"]
        assert sandbox.prepare("test") == sandbox.prepare() == ""
        assert sandbox.installs() == []

    def test_tools_of_two_kinds_stay_beside_each_other(self, sandbox: Sandbox) -> None:
        assert "bench tools" in sandbox.prepare("bench")
        assert sandbox.installs() == [".[bench]"]
        sandbox.prepare("test")
        assert sandbox.installs() == [".[bench,test]"]
        assert sandbox.prepare("test") == sandbox.prepare("bench") == sandbox.prepare() == ""
        with (sandbox.root / "setup.cfg").open("a") as file:
            file.write("\n# changed\n")
        sandbox.prepare("test")
        assert sandbox.installs() == [".[bench,test]"]

    @pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
    def test_changed_setting_installs_again(self, sandbox: Sandbox, name: str) -> None:
        sandbox.prepare("test")
        sandbox.installs()
        with (sandbox.root / name).open("a") as file:
            file.write("\n# changed\n")
        assert "making" not in sandbox.prepare("test")
        assert sandbox.installs() == [".[test]"]

    def test_failed_install_says_so_and_is_tried_again(self, sandbox: Sandbox) -> None:
        sandbox.install("python3.12", GOOD.format(version="3.12.1"), pip_exit=1)
        done = sandbox.run()
        assert done.returncode == 1
        assert "installing (it needs a package index" in done.stderr
        assert sandbox.installs() == ["."]
        sandbox.install("python", GOOD.format(version="3.12.1"), folder=sandbox.venv_python.parent)
        sandbox.prepare()
        assert sandbox.installs() == ["."]

    def test_failed_reinstall_does_not_look_finished(self, sandbox: Sandbox) -> None:
        """Not even when the change that asked for it is taken back."""
        sandbox.prepare()
        before = (sandbox.root / "setup.cfg").read_bytes()
        (sandbox.root / "setup.cfg").write_bytes(before + b"# changed\n")
        sandbox.install("python", GOOD.format(version="3.12.1"), folder=sandbox.venv_python.parent, pip_exit=1)
        assert sandbox.run().returncode == 1
        (sandbox.root / "setup.cfg").write_bytes(before)
        assert sandbox.run().returncode == 1

    def test_venv_that_does_not_run_is_replaced(self, sandbox: Sandbox) -> None:
        sandbox.prepare()
        sandbox.venv_python.unlink()
        sandbox.venv_python.symlink_to("/nowhere/python3.12")
        assert "replacing .venv: it is broken" in sandbox.prepare()
        assert sandbox.installs() == [".", "."]

    def test_venv_of_an_unsupported_version_is_replaced(self, sandbox: Sandbox) -> None:
        sandbox.prepare()
        sandbox.install("python", GOOD.format(version="3.13.0"), folder=sandbox.venv_python.parent)
        assert "replacing .venv: it is Python 3.13.0" in sandbox.prepare()
        assert "3.12.1" in sandbox.venv_python.read_text()

    def test_venv_that_moved_with_its_folder_is_replaced(self, sandbox: Sandbox) -> None:
        sandbox.prepare()
        sandbox.root = sandbox.root.rename(sandbox.root.with_name("moved"))
        assert "replacing .venv: it was made for another folder" in sandbox.prepare()

    def test_override_with_another_version_replaces_it(self, sandbox: Sandbox) -> None:
        other = sandbox.install("python3.11", GOOD.format(version="3.11.2"))
        sandbox.prepare()
        assert "another interpreter" in sandbox.prepare(KVNODE_PYTHON=str(other))
        assert "3.11.2" in sandbox.venv_python.read_text()
        assert sandbox.prepare(KVNODE_PYTHON=str(other)) == ""

    def test_venv_stays_when_there_is_nothing_to_replace_it_with(self, sandbox: Sandbox) -> None:
        sandbox.prepare()
        done = sandbox.run(KVNODE_PYTHON="/nowhere/python")
        assert done.returncode == 1
        assert "/nowhere/python: not found" in done.stderr
        assert sandbox.prepare() == ""

    def test_active_venv_is_not_made_from_itself(self, sandbox: Sandbox) -> None:
        sandbox.prepare()
        active = sandbox.venv_python.parent
        sandbox.install("python3.12", GOOD.format(version="3.12.1"), folder=active)
        sandbox.venv_python.unlink()
        done = sandbox.run(path=f"{active}:{sandbox.bin}")
        assert f"making .venv with {sandbox.bin}/python3.12" in done.stderr

    def test_two_at_once_install_once(self, sandbox: Sandbox) -> None:
        env = {"PATH": str(sandbox.bin), "PIP_CALLS": str(sandbox.pip_calls)}
        script = sandbox.root / "compose/python-env"
        runs = [subprocess.Popen([script], env=env, stderr=subprocess.DEVNULL) for _ in range(4)]
        assert [run.wait(timeout=50) for run in runs] == [0, 0, 0, 0]
        assert sandbox.installs() == ["."]

    def test_unknown_argument(self, sandbox: Sandbox) -> None:
        done = sandbox.run("tset")
        assert done.returncode == 1
        assert "usage: " in done.stderr
        assert not sandbox.venv_python.exists()


class TestNodes:
    """compose/nodes.sh: which process is a node's, and what its directory says of it."""

    @staticmethod
    def ask(data: Path, script: str) -> list[str]:
        """Runs lines of a script that has sourced it; returns the lines that it printed."""
        done = subprocess.run(
            ["bash", "-euc", f'source "$0"; data=$1; {script}', ROOT / "compose/nodes.sh", data],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    @pytest.fixture
    def kvnode(self, tmp_path: Path) -> Path:
        """A program of that name which waits for its stdin to end."""
        path = tmp_path / "bin" / "kvnode"
        path.parent.mkdir()
        path.write_text("#!/bin/bash\nread -r\n")
        path.chmod(0o755)
        return path

    @pytest.mark.parametrize("command", [["start"], ["join", "127.0.0.1:7001"]], ids=" ".join)
    @pytest.mark.parametrize(
        ("node", "program", "found"),
        [("web2", "kvnode", True), ("web3", "kvnode", False), ("web22", "kvnode", False), ("web2", "kvnod", False)],
    )
    def test_find_node(
        self, tmp_path: Path, kvnode: Path, command: list[str], node: str, program: str, found: bool
    ) -> None:
        """Of all that web2.pid may name, only a kvnode on web2's own directory is web2."""
        data = tmp_path / "the data"
        data.mkdir()
        kvnode = kvnode.rename(kvnode.with_name(program))
        flags = ["--data", data / node, "--http", "127.0.0.1:5002", "--peer", "127.0.0.1:7002", "--name", node]
        with subprocess.Popen([kvnode, *command, *flags], stdin=subprocess.PIPE) as process:
            (data / "web2.pid").write_text(f"{process.pid}\n")
            said = self.ask(data, 'find_node web2 && echo "$pid $http $peer" || echo no')
        assert said == ([f"{process.pid} 127.0.0.1:5002 127.0.0.1:7002"] if found else ["no"])
        assert self.ask(data, "find_node web2 || echo no") == ["no"]

    def role(self, data: Path) -> str:
        (said,) = self.ask(data, 'read_role web1; echo "<$role> <$follows> <$term>"')
        return said

    def test_read_role(self, tmp_path: Path) -> None:
        assert self.role(tmp_path) == "<> <> <0>"
        files = StateFiles(RealFs(), Layout(tmp_path / "web1"))
        (tmp_path / "web1").mkdir()
        replica = Identity("0" * 32, "web1", "1" * 32, "replica", "127.0.0.1:7001")
        files.save_identity(replica)
        assert self.role(tmp_path) == "<replica> <127.0.0.1:7001> <0>"
        primary = dataclasses.replace(replica, role="primary", primary=None)
        for identity in (primary, dataclasses.replace(primary, superseded_term=99)):
            files.save_identity(identity)
            assert self.role(tmp_path) == "<primary> <> <0>"
        history = History()
        for term in (1, 9, 12):
            history = history.begin(Epoch.of(term, 0xABCDEF00), term)
            files.save_history(history)
            assert self.role(tmp_path) == f"<primary> <> <{term}>"

    @pytest.mark.parametrize("text", ["", "{}", '{"role":3}', "\0"])
    def test_read_role_of_a_damaged_directory(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "web1").mkdir()
        (tmp_path / "web1" / "node.json").write_text(text)
        (tmp_path / "web1" / "history").write_text(text)
        assert self.role(tmp_path) == "<unreadable> <> <0>"


class TestRun:
    """tests/run, and .ci/run, which calls it."""

    STEPS = (
        *("ruff check .", "ruff format --check .", "mypy"),
        "pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder",
    )

    @pytest.fixture
    def sandbox(self, tmp_path: Path) -> Sandbox:
        sandbox = Sandbox(tmp_path)
        sandbox.install("python3.12", GOOD.format(version="3.12.1"))
        return sandbox

    @pytest.mark.parametrize("script", ["tests/run", ".ci/run"])
    def test_all_steps_pass(self, sandbox: Sandbox, script: str) -> None:
        done = sandbox.run(script=script)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("tests/run: OK after ")
        assert sandbox.steps.read_text().splitlines() == list(self.STEPS)
        assert sandbox.installs() == [".[test]"]

    @pytest.mark.parametrize("failing", ["ruff check", "ruff format", "mypy", "pytest"])
    def test_failed_step_is_named_and_the_others_still_run(self, sandbox: Sandbox, failing: str) -> None:
        done = sandbox.run(script="tests/run", FAILING=failing)
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1].startswith("tests/run: FAILED after ")
        assert done.stdout.splitlines()[-1].endswith(f": [{failing}]")
        assert sandbox.steps.read_text().splitlines() == list(self.STEPS)

    def test_arguments_go_to_pytest(self, sandbox: Sandbox) -> None:
        assert sandbox.run("tests/unit", "-k", "a or b", script="tests/run").returncode == 0
        assert sandbox.steps.read_text().splitlines() == [*self.STEPS[:-1], f"{self.STEPS[-1]} tests/unit -k a or b"]

    def test_type_checkers_get_the_layout_of_the_import_names(self, sandbox: Sandbox) -> None:
        for part in PARTS:
            (sandbox.root / part).mkdir()
        stale = sandbox.root / "build/types/kvnode/node"
        stale.parent.mkdir(parents=True)
        stale.symlink_to("/nowhere")
        for _ in range(2):
            assert sandbox.run(script="tests/run").returncode == 0
            seen = {link.name: link.resolve() for link in stale.parent.iterdir()}
            assert seen == {part: sandbox.root / part for part in PARTS}

    def test_without_an_environment_nothing_is_run(self, sandbox: Sandbox) -> None:
        done = sandbox.run(script="tests/run", KVNODE_PYTHON="/nowhere/python")
        assert done.returncode == 1
        assert "/nowhere/python: not found" in done.stderr
        assert not sandbox.steps.exists()


class TestDebianPackages:
    """With an apt-get and a dpkg-query that only note what they are asked."""

    @pytest.fixture
    def sandbox(self, tmp_path: Path) -> Sandbox:
        sandbox = Sandbox(tmp_path)
        for tool in ("mktemp", "rm"):
            if not (sandbox.bin / tool).exists():
                found = shutil.which(tool)
                assert found is not None, tool
                (sandbox.bin / tool).symlink_to(found)
        sandbox.script(
            sandbox.bin, "apt-get", '#!/bin/bash\necho "$*" >>"$STEPS"\n[[ -z $FAILING || $* != $FAILING* ]]\n'
        )
        sandbox.script(sandbox.bin, "dpkg-query", '#!/bin/bash\n[[ " $THERE " == *" ${!#} "* ]] && echo -n installed\n')
        return sandbox

    def packages(self, sandbox: Sandbox) -> list[str]:
        return sandbox.run("--list", script="tests/debian-packages").stdout.split()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages")
    def test_only_what_is_missing_is_installed(self, sandbox: Sandbox) -> None:
        packages = self.packages(sandbox)
        assert {"docker.io", "chromium", "prometheus"} <= set(packages)
        done = sandbox.run(script="tests/debian-packages", THERE=" ".join(packages[2:]))
        assert done.returncode == 0, done.stderr
        wanted = f"install --yes --no-install-recommends {packages[0]} {packages[1]}"
        assert sandbox.steps.read_text().splitlines() == ["update", wanted]

    def test_nothing_is_asked_when_all_is_there(self, sandbox: Sandbox) -> None:
        done = sandbox.run(script="tests/debian-packages", THERE=" ".join(self.packages(sandbox)))
        assert (done.returncode, done.stderr, sandbox.steps.exists()) == (0, "", False)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages")
    def test_a_failure_is_said(self, sandbox: Sandbox) -> None:
        done = sandbox.run(script="tests/debian-packages", FAILING="install")
        assert done.returncode == 1
        assert "could not install" in done.stderr

    def test_it_knows_no_other_argument(self, sandbox: Sandbox) -> None:
        assert sandbox.run("--lst", script="tests/debian-packages").returncode == 2
