"""A Docker engine of a test's own from Debian's packages, and a base image that is made here: nothing is ever pulled.

@pytest.fixture(scope="module")
def engine(pytestconfig: pytest.Config) -> Iterator[DockerEngine]:
    with open_engine() as engine:
        import_base(engine, "python:3.11-slim-bookworm", Path(pytestconfig.cache.mkdir("docker")))
        yield engine
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

#: Debian's package of each program that is needed.
PROGRAMS = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "docker-compose": "docker-compose",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}

#: What the engine would leave in folders of the host.
_HOST_FOLDERS = ("/etc/docker", "/run/docker", "/run/containerd")

#: $1 is the engine's folder, the rest its flags. Images and volumes are in memory, and gone with the last process.
_START = f"""
set -e
folder=$1
shift
for private in {" ".join(_HOST_FOLDERS)} "$folder/data"; do
    mkdir -p "$private"
    mount -t tmpfs tmpfs "$private"
done
exec dockerd --host "unix://$folder/socket" --pidfile "$folder/pid" --data-root "$folder/data" \\
    --exec-root "$folder/exec" --storage-driver overlay2 --exec-opt native.cgroupdriver=cgroupfs "$@"
"""

#: On the host's network it makes bridges of the networks that are asked for, but no default bridge, and no rules of the
#: firewall. So it gets along with an engine that is there already. Ports are published by its proxies; a container that
#: has to get out, as in a build, needs the network "host".
_FLAGS = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

#: Makes a root file system that is to python:3.11-slim-bookworm what a test can tell: python and pip in /usr/local, and
#: nothing to build with. A package index is believed where the host believes it.
_MAKE_BASE = (
    *("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3,python3-venv"),
    '--customize-hook=chroot "$1" python3 -m venv /usr/local',
    f"--customize-hook=upload {_CERTIFICATES} {_CERTIFICATES}",
    "bookworm",
)

#: On a busy machine all takes many times as long as it should.
_START_S = 30.0
_STOP_S = 20.0
_COMMAND_S = 120.0
_MAKE_BASE_S = 200.0
_POLL_S = 0.05


class EngineUnavailable(Exception):
    """No engine, or no image for it, can be had here."""


class DockerEngine:
    """One engine. All that it starts is in namespaces of its own and ends with it, and so when the tests are killed.

    Attributes:
        folder: all that it keeps.
        environment: for programs that are to talk to it; nothing of the user's settings of Docker and of nodes.
    """

    def __init__(self, folder: Path) -> None:
        """An engine that will be started; the path has to be short, as it becomes part of a socket's."""
        self.folder = folder
        self.environment = {
            name: text for name, text in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_", "KVNODE_"))
        } | {"DOCKER_HOST": f"unix://{folder}/socket", "DOCKER_CONFIG": str(folder / "config"), "DOCKER_BUILDKIT": "0"}
        self._cgroup = folder.name
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def objection() -> str | None:
        """Why there can be none here; None = it can be tried."""
        missing = {program: package for program, package in PROGRAMS.items() if shutil.which(program) is None}
        if missing:
            packages = " ".join(sorted(set(missing.values())))
            return f"no {', no '.join(missing)}: install Debian's packages {packages}"
        if os.geteuid() != 0:
            return "only root starts a Docker engine"
        if platform.machine() != "x86_64":
            return f"the image is for x86-64, this machine is {platform.machine()}"
        return None

    def start(self) -> None:
        """Return once it answers.

        Raises:
            EngineUnavailable: it does not; with the end of its log.
        """
        with (self.folder / "log").open("wb") as log:
            # Killed with the thread that started it, and all of its processes with the first one.
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", _START, "sh", str(self.folder), *_FLAGS, "--cgroup-parent", f"/{self._cgroup}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        pause = threading.Event()
        deadline = time.monotonic() + _START_S
        while (answer := self.run("docker", "version")).returncode != 0:
            if self._process.poll() is not None or time.monotonic() >= deadline:
                end = "".join((self.folder / "log").read_text("utf-8", "replace").splitlines(keepends=True)[-5:])
                raise EngineUnavailable(f"dockerd does not start: {answer.stderr.strip()}\n{end}")
            pause.wait(_POLL_S)

    def stop(self) -> None:
        """End it and all containers, and leave nothing behind but its folder."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                containers = self.run("docker", "ps", "--all", "--quiet").stdout.split()
                if containers:
                    self.run("docker", "rm", "--force", "--volumes", *containers)
                # Takes the bridges away.
                self.run("docker", "network", "prune", "--force")
                if pid := self._pid():
                    os.kill(pid, 15)
                process.wait(_STOP_S)
        process.kill()
        process.wait()
        _remove_cgroups(self._cgroup)

    def run(
        self, *command: str, cwd: Path | None = None, timeout_s: float = _COMMAND_S, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that talks to the engine."""
        return subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def docker(self, *arguments: str) -> str:
        """What `docker` says, where it must succeed; its errors too, as `docker logs` needs."""
        done = self.run("docker", *arguments)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def inspect(self, name: str, template: str) -> str:
        """A field of a container, an image or a volume."""
        return self.docker("inspect", "--format", template, name).strip()

    def kill_behind_its_back(self, container: str) -> None:
        """Kill a container's first process as the kernel would, without `docker kill`, which is a stop on purpose."""
        pid = self.inspect(container, "{{.State.Pid}}")
        subprocess.run(
            ["nsenter", "--target", str(self._pid()), "--pid", "sh", "-c", f"kill -KILL {pid}"],
            check=True,
            timeout=_COMMAND_S,
        )

    def _pid(self) -> int | None:
        """Of dockerd, which is the only child of `unshare`; None when it has ended."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None


@contextlib.contextmanager
def open_engine() -> Iterator[DockerEngine]:
    """Start an engine, and end it behind the block.

    Where there can be none, or the block raises `EngineUnavailable`, the tests are skipped; where CI=true says that
    there has to be one, they fail.
    """
    unavailable = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    if (reason := DockerEngine.objection()) is not None:
        unavailable(reason)
    folder = Path(tempfile.mkdtemp(prefix="kvnode-docker-"))
    engine = DockerEngine(folder)
    try:
        engine.start()
        yield engine
    except EngineUnavailable as error:
        unavailable(str(error))
    finally:
        engine.stop()
        shutil.rmtree(folder)


def import_base(engine: DockerEngine, tag: str, cache: Path) -> None:
    """Give the engine a stand-in for an official Python image.

    Args:
        cache: a folder that keeps it for the runs of this day: it takes as long as all else together.

    Raises:
        EngineUnavailable: it cannot be made, as without a network.
    """
    recipe = hashlib.sha256(repr(_MAKE_BASE).encode() + _CERTIFICATES.read_bytes())
    base = cache / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{recipe.hexdigest()[:16]}.tar"
    if not base.exists():
        for old in cache.glob("*.tar"):
            old.unlink(missing_ok=True)
        _make_base(base)
    engine.docker("import", str(base), tag)


def _make_base(base: Path) -> None:
    with tempfile.TemporaryDirectory(dir=base.parent) as folder:
        made = Path(folder) / base.name
        command: Sequence[str] = (*_MAKE_BASE, str(made))
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_BASE_S, check=False)
        if done.returncode != 0:
            raise EngineUnavailable(f"no base image can be made: {done.stderr[-2000:]}")
        made.replace(base)


def _remove_cgroups(name: str) -> None:
    """Remove the control groups of an engine that has ended: one of version 2, or one of each controller."""
    root = Path("/sys/fs/cgroup")
    for top in (*root.glob(name), *root.glob(f"*/{name}")):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)
