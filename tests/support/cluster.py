"""A cluster of real nodes: web1, the primary, and replicas; what clients were told by it, and checks of all together.

with Cluster(tmp_path) as cluster, Load(cluster.web1, acks=("0", "1")) as load:
    load.wait_for(100)
    cluster.web2.kill()
    ...
    load.stop()
    load.ledger.check(cluster.web1)
    cluster.agree()
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvnode.node.storage.segment import HEADER_BYTES, RECORD_HEADER_BYTES
from support.node_process import NodeProcess
from support.proxy import Proxy

#: How long a condition may take to come true. On a busy machine all takes many times as long as it should.
WAIT_S = 30.0
_POLL_S = 0.02

#: A node that was told to stop is gone after so long, by the contract.
STOP_S = 10.0

#: Makes the keys of each load its own.
_LOADS = itertools.count()

KVNODE = (sys.executable, "-P", "-m", "kvnode.cli")


def wait_until(is_true: Callable[[], object], what: str, *nodes: NodeProcess, timeout_s: float = WAIT_S) -> None:
    """Return once the condition holds; a connection that breaks while it is asked for counts as "not yet".

    Raises:
        AssertionError: it does not in time; with the ends of the nodes' logs.
    """
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if is_true():
                return
        except (OSError, HTTPException):
            pass
        if time.monotonic() >= deadline:
            logs = "".join(f"\n---- {node.data}\n{''.join(node.log[-60:])}" for node in nodes)
            raise AssertionError(f"not within {timeout_s:g} s: {what}{logs}")
        pause.wait(_POLL_S)


def events(node: NodeProcess, name: str, *containing: str) -> list[str]:
    """The log lines of an event that contain all these texts."""
    wanted = f" event={name}"
    return [
        line
        for line in list(node.log)
        if (f"{wanted} " in line or line.rstrip().endswith(wanted)) and all(text in line for text in containing)
    ]


def kvnode(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the CLI."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("KVNODE_")}
    command = [*KVNODE, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=60, check=False, env=environment, stdin=None
    )


# ---- one client ------------------------------------------------------------------------------------------------


class Broken(Exception):
    """The connection broke; `sent` says whether the request may have reached the node."""

    def __init__(self, sent: bool) -> None:
        super().__init__("the connection broke")
        self.sent = sent


class Rest:
    """One keep-alive connection to a node, made again when it broke."""

    def __init__(self, node: NodeProcess) -> None:
        self._node = node
        self._connection: HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def request(self, method: str, path: str, body: Any = None, accept: str = "*/*") -> tuple[int, bytes]:
        """(status, body) of a request.

        Raises:
            Broken: there was no answer.
        """
        if self._connection is None:
            host, _, port = self._node.url.removeprefix("http://").rpartition(":")
            connection = HTTPConnection(host, int(port), timeout=WAIT_S)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                raise Broken(sent=False) from error
            self._connection = connection
        try:
            self._connection.request(
                method, path, None if body is None else json.dumps(body), headers={"Accept": accept}
            )
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException) as error:
            self.close()
            raise Broken(sent=True) from error

    def get(self, path: str) -> tuple[int, Any]:
        """(status, decoded body) of a GET."""
        status, body = self.request("GET", path)
        return status, json.loads(body)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """(status, decoded body) of a POST."""
        status, answer = self.request("POST", path, body)
        return status, json.loads(answer)

    def put(self, key: str, value: Any, query: str = "") -> int:
        """Write, and return the seq."""
        status, answer = self.post(f"/put{query}", {"key": key, "value": value})
        assert status == 200, answer
        return int(answer["seq"])


def records_bytes(node: NodeProcess) -> bytes:
    """All that a node holds, as it sends it."""
    with Rest(node) as rest:
        status, body = rest.request("GET", "/readrange", accept="application/x-ndjson")
    assert status == 200, body
    return body


def records(node: NodeProcess) -> dict[str, Any]:
    """All that a node holds."""
    return {item["key"]: item["value"] for item in map(json.loads, records_bytes(node).splitlines())}


# ---- what was answered -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acked:
    """A write that was answered as durable.

    Attributes:
        acks: how many replicas besides the primary hold it durably, at least.
    """

    value: str
    seq: int
    acks: int


@dataclass(slots=True)
class Ledger:
    """What clients were told of writes that each have a key of their own.

    Attributes:
        prefix: of all keys.
        acked: durable on the primary, by key.
        refused: by key the code of an answer that promises that nothing was written.
        unknown: what may be there or not.
        codes: how often each code was answered; "" = success, "broken" = no answer, "unreachable" = no connection.
    """

    prefix: str
    acked: dict[str, Acked] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def check(self, *nodes: NodeProcess) -> None:
        """Check that nodes which are level with the primary hold what they must, and nothing else."""
        for node in nodes:
            held = records(node)
            lost = [key for key, acked in self.acked.items() if held.get(key) != acked.value]
            assert not lost, f"{name_of(node)} lacks {len(lost)} acknowledged writes, {lost[:5]}"
            undead = {key: self.refused[key] for key in held.keys() & self.refused.keys()}
            assert not undead, f"{name_of(node)} holds {len(undead)} writes that were refused, {list(undead)[:5]}"
            mine = {key for key in held if key.startswith(self.prefix)}
            strange = mine - self.acked.keys() - self.unknown.keys()
            assert not strange, f"{name_of(node)} holds {len(strange)} keys that nobody wrote, {list(strange)[:5]}"
            assert all(held[key] == self.unknown[key] for key in held.keys() & self.unknown.keys())

    def check_acks(self, replicas: Sequence[NodeProcess]) -> None:
        """Check, without the primary, that each write is on as many replicas as was said."""
        held = [records(node) for node in replicas]
        for key, acked in self.acked.items():
            found = sum(each.get(key) == acked.value for each in held)
            assert found >= acked.acks, f"{key}, seq {acked.seq}, is on {found} replicas, and {acked.acks} held it"


class Load:
    """Threads that put, each under keys of its own, until told to stop; whatever happens, they go on.

    Attributes:
        ledger: what they were told.
        answer_s: the longest that any answer took, in seconds.
    """

    def __init__(
        self,
        *nodes: NodeProcess,
        acks: Sequence[str] = ("0",),
        writers: int = 3,
        value_bytes: int = 100,
        reads_back: bool = False,
        pause_s: float = 0.002,
    ) -> None:
        """Begin when entered.

        Args:
            nodes: each writer has one of them.
            acks: of the writes, in turn; of `majority` it is taken that there are three members.
            reads_back: whether each acknowledged write is read from the same node at once, and must be there.
            pause_s: between two writes of one writer, to leave something of the machine to others.
        """
        self.ledger = Ledger(f"load{next(_LOADS)}/")
        self.failures: list[BaseException] = []
        self.answer_s = 0.0
        self._acks = acks
        self._value_bytes = value_bytes
        self._reads_back = reads_back
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        #: held by each writer while it writes
        self._writing = [threading.Lock() for _ in range(writers)]
        self._threads = [
            threading.Thread(target=self._write_on, args=(number, nodes[number % len(nodes)]), daemon=True)
            for number in range(writers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if kind is None:
            self._check()

    def stop(self) -> None:
        """End the writing; each write that was begun is answered first."""
        self._end()
        self._check()

    def wait_for(self, count: int, *nodes: NodeProcess, acks: int = 0) -> None:
        """Return when so many more writes with so many acks, or more, are acknowledged."""

        def acked() -> int:
            with self._lock:
                return sum(each.acks >= acks for each in self.ledger.acked.values())

        before = acked()
        wait_until(lambda: self.failures or acked() >= before + count, f"{count} writes with {acks} acks", *nodes)
        self._check()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody writes, and no write is under way, while the block lasts."""
        with contextlib.ExitStack() as held:
            for lock in self._writing:
                held.enter_context(lock)
            yield

    def _end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_S + 10)
            assert not thread.is_alive(), "a writer does not end"

    def _check(self) -> None:
        if self.failures:
            raise self.failures[0]

    def _write_on(self, writer: int, node: NodeProcess) -> None:
        number = 0
        filling = "." * self._value_bytes
        try:
            with Rest(node) as rest:
                while not self._stop.is_set():
                    number += 1
                    acks = self._acks[(number + writer) % len(self._acks)]
                    with self._writing[writer]:
                        self._write(
                            rest, f"{self.ledger.prefix}{writer}/{number:06}", f"{writer} {number} {filling}", acks
                        )
                    self._stop.wait(self._pause_s)
        except BaseException as error:
            self.failures.append(error)

    def _write(self, rest: Rest, key: str, value: str, acks: str) -> None:
        ledger = self.ledger
        began = time.monotonic()
        try:
            status, answer = rest.post(f"/put?acks={acks}&ack_timeout=2", {"key": key, "value": value})
        except Broken as broken:
            with self._lock:
                code = "broken" if broken.sent else "unreachable"
                ledger.codes[code] = ledger.codes.get(code, 0) + 1
                (ledger.unknown if broken.sent else ledger.refused)[key] = value
            self._stop.wait(0.05)
            return
        took_s = time.monotonic() - began
        code = "" if status == 200 else str(answer["error"]["code"])
        with self._lock:
            self.answer_s = max(self.answer_s, took_s)
            ledger.codes[code] = ledger.codes.get(code, 0) + 1
            if status == 200:
                held_by = 1 if acks == "majority" else int(acks)
                ledger.acked[key] = Acked(value, answer["seq"], held_by)
            elif code == "replication_timeout":
                ledger.acked[key] = Acked(value, answer["error"]["seq"], 0)
            elif code == "outcome_unknown":
                ledger.unknown[key] = value
            else:
                assert status in (503, 507), answer
                ledger.refused[key] = code
        if status == 200 and self._reads_back:
            self._read_back(rest, key, value)
        if code in ("no_primary", "draining", "syncing"):
            self._stop.wait(0.02)

    def _read_back(self, rest: Rest, key: str, value: str) -> None:
        try:
            status, answer = rest.get(f"/read/{key}")
        except Broken:
            return
        assert (status, answer.get("value")) == (200, value), f"{key} was acknowledged, but a read says {answer}"


# ---- all together ----------------------------------------------------------------------------------------------


class Cluster:
    """web1, the primary, and web2, web3 ..., which follow it, as processes with directories below one.

    Attributes:
        nodes: all, the primary first.
        links: by the name of a replica, the proxy that its connections to web1 go through.
        doors: by name, the proxy where others reach a node's peer port, which it advertises.
    """

    def __init__(
        self,
        directory: Path,
        *flags: str,
        replicas: int = 2,
        proxied: Iterable[str] = (),
        data: dict[str, Path] | None = None,
        more: dict[str, Sequence[str]] | None = None,
        start_replicas: bool = True,
        divisible: bool = False,
    ) -> None:
        """Start when entered, and return once all follow.

        Args:
            flags: more options of all nodes.
            proxied: names of replicas that are to go through a proxy.
            data: other data directories, by name.
            more: options of single nodes, by name.
            start_replicas: or begin with the primary alone.
            divisible: whether all connections between web1 and the others go through proxies, for `divide`.
        """
        self._start_replicas = start_replicas
        self.nodes: list[NodeProcess] = []
        self.links: dict[str, Proxy] = {}
        self.doors: dict[str, Proxy] = {}
        self._opened = contextlib.ExitStack()
        names = [f"web{number}" for number in range(1, replicas + 2)]
        self._proxied = frozenset(names[1:] if divisible else proxied)
        for name in names:
            path = (data or {}).get(name, directory / name)
            own = [f"--name={name}", *flags, *(more or {}).get(name, ())]
            if divisible:
                self.doors[name] = self._opened.enter_context(Proxy())
                own.append(f"--advertise={self.doors[name].address}")
            self.nodes.append(NodeProcess(path, *own))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if kind is None:
            for node in self.nodes:
                assert "Traceback" not in node.text, node.text

    @property
    def web1(self) -> NodeProcess:
        """The primary, at first."""
        return self.nodes[0]

    @property
    def web2(self) -> NodeProcess:
        """The first replica."""
        return self.nodes[1]

    @property
    def web3(self) -> NodeProcess:
        """The second replica."""
        return self.nodes[2]

    def wait_following(self, *replicas: NodeProcess, primary: NodeProcess | None = None) -> None:
        """Return when these, or all, stream from the primary."""
        names = {name_of(node) for node in replicas or self.nodes[1:]}
        leader = primary or self.web1

        def all_stream() -> bool:
            states = {each["name"]: each["state"] for each in leader.status()["replicas"]}
            return all(states.get(name) == "streaming" for name in names)

        wait_until(all_stream, f"{sorted(names)} stream", *self.nodes)

    def agree(self, *nodes: NodeProcess, dumps: bool = False) -> None:
        """Check that all nodes, the first one being the primary, reach the same state, and hold it by the same entries.

        Nobody may be writing.

        Args:
            dumps: compare what `kvnode dump` writes instead of what GET /readrange answers.
        """
        nodes = nodes or tuple(self.nodes)
        primary, replicas = nodes[0], nodes[1:]
        last_seq = primary.status()["last_seq"]
        for node in replicas:
            wait_until(lambda node=node: _is_level(node, last_seq), f"{name_of(node)} applies {last_seq}", *nodes)
        assert primary.status()["last_seq"] == last_seq, "somebody is writing"
        bodies = _dumps(nodes) if dumps else {name_of(node): records_bytes(node) for node in nodes}
        expected = bodies[name_of(primary)]
        differing = [name for name, body in bodies.items() if body != expected]
        assert not differing, f"{differing} hold other records than {name_of(primary)}"
        logs = {name_of(node): log_entries(node.data / "wal") for node in nodes}
        whole = logs[name_of(primary)]
        for name, entries in logs.items():
            different = [seq for seq in entries.keys() & whole.keys() if entries[seq] != whole[seq]]
            assert not different, f"the log of {name} has other entries at {different[:5]}"
            assert not entries or max(entries) == last_seq, f"the log of {name} ends at {max(entries)}"

    def count_full_syncs(self) -> tuple[int, int]:
        """(sent, received) of all nodes since their processes started."""
        statuses = [node.status() for node in self.nodes]
        return sum(s["full_syncs_sent"] for s in statuses), sum(s["full_syncs_received"] for s in statuses)

    def start_replicas(self) -> None:
        """Start the replicas, and return when they listen."""
        for node in self.nodes[1:]:
            node.start()
        for node in self.nodes[1:]:
            node.wait_ready()
            self._open_door(node)

    def _open_door(self, node: NodeProcess) -> None:
        if name_of(node) in self.doors:
            self.doors[name_of(node)].target = node.peer

    def divide(self) -> None:
        """Let web1 reach no other node, and none of them web1, by the addresses that it knew."""
        for proxy in (*self.links.values(), *self.doors.values()):
            proxy.refuse()

    def unite(self) -> None:
        """End what `divide` did."""
        for proxy in (*self.links.values(), *self.doors.values()):
            proxy.heal()

    def _start(self) -> None:
        primary = self.web1
        primary.start()
        primary.wait_ready()
        self._open_door(primary)
        for node in self.nodes[1:]:
            name = name_of(node)
            if name in self._proxied:
                self.links[name] = self._opened.enter_context(Proxy(primary.peer))
            node.join = self.links[name].address if name in self.links else primary.peer
        if self._start_replicas and len(self.nodes) > 1:
            self.start_replicas()
            self.wait_following()

    def _stop(self) -> None:
        for node in reversed(self.nodes):
            if node.is_running:
                node.kill()
        self._opened.close()


def name_of(node: NodeProcess) -> str:
    """What a node of a cluster is called."""
    return next(flag for flag in node.flags if flag.startswith("--name=")).partition("=")[2]


def _is_level(node: NodeProcess, last_seq: int) -> bool:
    status = node.status()
    return bool(status["applied_seq"] == status["last_seq"] == last_seq and "sync" not in status)


def _dumps(nodes: Sequence[NodeProcess]) -> dict[str, bytes]:
    command = [*KVNODE, "dump", "--url"]
    running = {name_of(node): subprocess.Popen([*command, node.url], stdout=subprocess.PIPE) for node in nodes}
    dumped = {name: process.communicate(timeout=60)[0] for name, process in running.items()}
    assert {process.returncode for process in running.values()} == {0}
    return dumped


def log_entries(directory: Path) -> dict[int, bytes]:
    """The entries in a log, by seq, as they are in its files; nothing is checked."""
    found: dict[int, bytes] = {}
    for path in sorted(directory.glob("*.wal")):
        seq, offset = int(path.stem), HEADER_BYTES
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # the node is dropping it
        while offset < len(data) and (length := int.from_bytes(data[offset : offset + 4]) & 0x7FFF_FFFF):
            found[seq] = data[offset + RECORD_HEADER_BYTES : offset + RECORD_HEADER_BYTES + length]
            seq, offset = seq + 1, offset + RECORD_HEADER_BYTES + length
    return found
