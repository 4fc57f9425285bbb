"""The peers as processes on free loopback ports: started, asked once whether they really store, and ended by pid.

Each syncs every write to the disk if it can. What cannot be started raises `Missing`, which says how to get it.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.dialects import ETCD, KVNODE, WEBDIS, Dialect

_HERE = Path(__file__).parent
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0


class Missing(Exception):
    """A peer is not there, or does not work; the text says what to do about it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server.

    Attributes:
        url: base URL of its HTTP side.
        version: the program and how it runs, for the report.
    """

    name: str
    url: str
    dialect: Dialect
    version: str


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(command: Sequence[str | Path], log: Path, *, stdout: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A child that writes to `log`; its end is waited for.

    Args:
        stdout: whether its stdout is a pipe instead.
    """
    file: IO[str]
    with log.open("w") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout else file,
            stderr=file,
            text=True,
            cwd=log.parent,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def exchange(url: str, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to one request as it goes over the wire."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


def _wait_until_it_stores(peer: Peer, child: subprocess.Popen[str], log: Path) -> None:
    """Return once the peer gives back what was put.

    Raises:
        Missing: it does not in time.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    why = "it does not listen"
    while time.monotonic() < deadline and child.poll() is None:
        try:
            put, _ = exchange(peer.url, peer.dialect.put("probe", "a value"))
            got, body = exchange(peer.url, peer.dialect.get("probe"))
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
        else:
            if put == got == 200:
                with contextlib.suppress(ValueError, LookupError):
                    if peer.dialect.shows(body, "a value"):
                        return
            why = f"it answers {put} to a put, and {got} {body[:200]!r} to a read"
        time.sleep(0.05)
    raise Missing(f"{peer.name} was started and does not work: {why}; {log.read_text()[-500:]}")


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed: apt-get install --no-install-recommends {package}")
    return found


def _version(command: Sequence[str]) -> str:
    """The first line a program says of its version."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


@contextlib.contextmanager
def fastapi(folder: Path) -> Iterator[Peer]:
    """FastAPI, uvicorn, plyvel; does not sync."""
    modules = ("fastapi", "uvicorn", "cachetools")
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Missing(f"not installed: {', '.join(missing)}: compose/python-env bench")
    from importlib.metadata import version

    folder.mkdir()
    log = folder / "log"
    parser = "httptools" if importlib.util.find_spec("httptools") else "h11"
    with process([sys.executable, "-P", _HERE / "fastapi_app.py", folder / "data"], log, stdout=True) as child:
        assert child.stdout is not None
        port = child.stdout.readline().strip()
        if not port:
            raise Missing(f"the FastAPI application did not start: {log.read_text()[-500:]}")
        what = f"FastAPI {version('fastapi')}, uvicorn {version('uvicorn')} (uvloop, {parser}), plyvel, no fsync"
        peer = Peer("FastAPI", f"http://127.0.0.1:{port}", KVNODE, what)
        _wait_until_it_stores(peer, child, log)
        yield peer


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[Peer]:
    """etcd's JSON gateway; it syncs every write."""
    program = _program("etcd", "etcd-server")
    folder.mkdir()
    log = folder / "log"
    url, peers = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    addresses = {
        "--data-dir": str(folder / "data"),
        "--listen-client-urls": url,
        "--advertise-client-urls": url,
        "--listen-peer-urls": peers,
        "--initial-advertise-peer-urls": peers,
        "--initial-cluster": f"default={peers}",
    }
    flags = [text for pair in addresses.items() for text in pair]
    with process([program, *flags, "--logger", "zap", "--log-level", "error"], log) as child:
        what = f"{_version([program, '--version'])}, JSON gateway, fsync of every write"
        peer = Peer("etcd", url, ETCD, what)
        _wait_until_it_stores(peer, child, log)
        yield peer


@contextlib.contextmanager
def webdis(folder: Path) -> Iterator[Peer]:
    """Redis that syncs every write, behind webdis."""
    redis_program, webdis_program = _program("redis-server", "redis-server"), _program("webdis", "webdis")
    folder.mkdir()
    redis_port, http_port = free_port(), free_port()
    redis_flags = (
        *("--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
    )
    settings = {
        "redis_host": "127.0.0.1",
        "redis_port": redis_port,
        "http_host": "127.0.0.1",
        "http_port": http_port,
        "threads": 2,
        "pool_size": 10,
        "daemonize": False,
        "database": 0,
        "verbosity": 0,
        "logfile": str(folder / "webdis.log"),
    }
    (folder / "webdis.json").write_text(json.dumps(settings))
    log = folder / "log"
    with (
        process([redis_program, *redis_flags], folder / "redis-log"),
        process([webdis_program, folder / "webdis.json"], log) as child,
    ):
        redis_version = _version([redis_program, "--version"]).partition(" sha=")[0]
        what = (
            f"{redis_version} (appendonly, appendfsync always) behind webdis {_package_version('webdis')} (2 threads)"
        )
        peer = Peer("webdis + redis", f"http://127.0.0.1:{http_port}", WEBDIS, what)
        _wait_until_it_stores(peer, child, log)
        yield peer


def _package_version(package: str) -> str:
    """A Debian package's version; webdis does not tell its own."""
    if shutil.which("dpkg-query") is None:
        return "(unknown version)"
    return _version(["dpkg-query", "--show", "--showformat=${Version}", package])


#: Every peer by the name that the report uses.
PEERS = {"FastAPI": fastapi, "etcd": etcd, "webdis + redis": webdis}


@contextlib.contextmanager
def running_peers(folder: Path) -> Iterator[tuple[list[Peer], dict[str, str]]]:
    """All peers that can be started, and why the others cannot, by name."""
    with contextlib.ExitStack() as stack:
        running, missing = [], {}
        for index, (name, start) in enumerate(PEERS.items()):
            try:
                running.append(stack.enter_context(start(folder / f"peer{index}")))
            except Missing as error:
                missing[name] = str(error)
        yield running, missing
