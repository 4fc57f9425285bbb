"""The peer port of real nodes, and whatever may come in there: nobody who misbehaves costs others more than a log line.

One primary and its replica serve all tests. After each, both have to be at it still, and in bounded memory.
"""

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvnode.node.config import Address
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import (
    Entries,
    Error,
    FrameType,
    Hello,
    HistoryFrame,
    Message,
    Ping,
    Purpose,
    Read,
    Status,
    StatusResult,
    Subscribe,
    Welcome,
    Write,
    WriteResult,
)
from kvnode.protocol.types import Epoch, put
from support.frames import SAMPLES
from support.node_process import NodeProcess
from support.peers import HISTORY, MEMBERS, Peer, PeerServer, hello, observe_from, record, records, welcome

KVNODE = [sys.executable, "-P", "-m", "kvnode.cli"]

#: How long anything here may take on a busy machine. What takes long by design is bounded by its own time.
PATIENCE_S = 30.0

#: How much more a node may hold after a test than before: what clients that take nothing may cost, and some for the
#: allocator.
GROWTH_KIB = 48 * 1024

IDLE_CONNECTIONS = 300


class Raw:
    """A connection on which a test says what it likes, and reads when it likes."""

    def __init__(self, address: str) -> None:
        at = Address.parse(address)
        self.socket = socket.create_connection((at.host, at.port), timeout=PATIENCE_S)
        self._decoder = FrameDecoder()

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, *what: Message | bytes) -> None:
        """Send frames, or bytes as they are; that the other side has closed is for `rest` to find out."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(b"".join([each if isinstance(each, bytes) else encode(each) for each in what]))

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def next(self) -> Message | None:
        """The next frame; None at the end."""
        while True:
            for message in self._decoder:
                return message
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionError:
                return None
            if not data:
                return None
            self._decoder.feed(data)

    def take(self, kind: type[Message]) -> Any:
        """The next frame of a kind, others being skipped."""
        while (message := self.next()) is not None:
            if isinstance(message, kind):
                return message
        raise AssertionError(f"the connection ended, and {kind.__name__} was expected")

    def rest(self) -> list[Message]:
        """All frames up to the end, PINGs left out."""
        found: list[Message] = []
        while (message := self.next()) is not None:
            found.append(message)
        return [each for each in found if not isinstance(each, Ping)]

    def refused(self) -> Error:
        """The ERROR frame that is the last one."""
        error = self.rest()[-1]
        assert isinstance(error, Error)
        return error


class Nodes:
    """The primary and its replica."""

    def __init__(self, primary: NodeProcess, replica: NodeProcess) -> None:
        self.primary = primary
        self.replica = replica
        self._puts = 0

    @property
    def both(self) -> tuple[NodeProcess, NodeProcess]:
        return self.primary, self.replica

    @property
    def cluster_id(self) -> bytes:
        return bytes.fromhex(self.primary.status()["cluster_id"])

    def hello(self, purpose: Purpose, **changes: Any) -> Hello:
        """Of somebody who is nobody's double."""
        said = {"node_id": os.urandom(16), "name": "somebody", "cluster_id": b"", **changes}
        return hello(purpose, **said)

    @contextlib.contextmanager
    def session(self, node: NodeProcess, purpose: Purpose, **changes: Any) -> Iterator[Raw]:
        """A session of somebody, up to WELCOME."""
        with Raw(node.peer) as raw:
            raw.send(self.hello(purpose, **changes))
            raw.take(Welcome)
            yield raw

    def check(self) -> None:
        """Both serve: a write through the replica is ordered by the primary, acked by the replica, and read there."""
        self._puts += 1
        body = {"key": "proof", "value": self._puts}
        assert ask(self.primary, "/put?acks=1&ack_timeout=20", body)[0] == 200
        status, answer = ask(self.replica, "/put?ack_timeout=20", body)
        assert status == 200, answer
        assert ask(self.replica, f"/read/proof?min_seq={answer['seq']}&wait=20")[1]["value"] == self._puts
        with self.session(self.replica, Purpose.PROBE) as raw:
            raw.send(Status(1))
            assert json.loads(raw.take(StatusResult).status)["primary"]["connected"]


def ask(node: NodeProcess, path: str, body: Any = None) -> tuple[int, Any]:
    """(status, decoded body) of a request to REST."""
    request = urllib.request.Request(node.url + path, None if body is None else json.dumps(body).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def resident_kib(node: NodeProcess) -> int:
    """A process's resident memory."""
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("there is no VmRSS")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    data = tmp_path_factory.mktemp("peer-port")
    with (
        NodeProcess(data / "n1", "--name=n1") as primary,
        NodeProcess(data / "n2", "--name=n2", join=primary.peer) as replica,
    ):
        made = Nodes(primary, replica)
        wait_until(lambda: replica.status()["primary"]["connected"])
        made.check()
        yield made
        assert primary.status()["role"] == "primary"
        assert [each["name"] for each in primary.status()["members"]] == ["n1", "n2"], "nobody else became one"
        for node in (replica, primary):
            assert node.stop() == 0
            assert "Traceback" not in node.text
            assert "level=error" not in node.text


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        select.select([], [], [], 0.02)


@pytest.fixture(scope="module", autouse=True)
def idle(nodes: Nodes) -> Iterator[list[Raw]]:
    """Connections that say nothing, or not even a whole frame, while everything else goes on."""
    half = encode(nodes.hello(Purpose.OBSERVE))[:9]
    made = []
    for number in range(IDLE_CONNECTIONS):
        made.append(Raw(nodes.both[number % 2].peer))
        made[-1].send(b"" if number % 3 else half)
    yield made
    for raw in made:
        raw.socket.close()


@pytest.fixture(autouse=True)
def _proof(nodes: Nodes, idle: list[Raw]) -> Iterator[None]:
    before = {node.pid: resident_kib(node) for node in nodes.both}
    yield
    nodes.check()
    for node in nodes.both:
        assert resident_kib(node) < before[node.pid] + GROWTH_KIB


# ---- what is no frame ------------------------------------------------------------------------------------------


def test_random_bytes(nodes: Nodes) -> None:
    rng = Random(5)
    for number in range(60):
        with Raw(nodes.both[number % 2].peer) as raw:
            if number % 3 == 0:
                raw.send(nodes.hello(Purpose.OBSERVE))
            raw.send(rng.randbytes(rng.choice([1, 5, 100, 5000, 200_000])))
            raw.half_close()
            error = raw.refused()
            assert error.code == "protocol_error", error


def test_random_frames_of_msgpack(nodes: Nodes) -> None:
    rng = Random(6)
    for number in range(60):
        size = rng.choice([1, 2, 10, 200])
        with Raw(nodes.both[number % 2].peer) as raw:
            raw.send(
                size.to_bytes(4, "big") + bytes([0x90 | rng.randrange(16), rng.randrange(20)]) + rng.randbytes(size)
            )
            raw.half_close()
            assert raw.refused().code == "protocol_error"


def test_http(nodes: Nodes) -> None:
    for node in nodes.both:
        with Raw(node.peer) as raw:
            raw.send(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            error = raw.refused()
            assert "these bytes look like HTTP, which has a port of its own" in error.message


@pytest.mark.parametrize("after_hello", [False, True])
def test_a_frame_that_announces_four_gibibytes(nodes: Nodes, after_hello: bool) -> None:
    for node in nodes.both:
        with Raw(node.peer) as raw:
            if after_hello:
                raw.send(nodes.hello(Purpose.CLIENT))
            raw.send(b"\xff\xff\xff\xff", b"x" * 1_000_000)
            assert "a frame announces 4294967295 bytes" in raw.refused().message


def test_a_deep_frame_and_a_wide_one(nodes: Nodes) -> None:
    for body in (
        b"\x91" * 15_000 + b"\x01",
        b"\xdd\xff\xff\xff\xff" + b"\x01" * 10_000,
        b"\xdc\x3a\x98" + b"\x01" * 15_000,
    ):
        with Raw(nodes.primary.peer) as raw:
            raw.send(len(body).to_bytes(4, "big") + body)
            assert raw.refused().code == "protocol_error"


# ---- frames in the wrong state ---------------------------------------------------------------------------------


def test_valid_frames_where_they_do_not_belong(nodes: Nodes) -> None:
    for node in nodes.both:
        for kind, message in SAMPLES.items():
            if kind is not FrameType.HELLO:
                with Raw(node.peer) as raw:
                    raw.send(message)
                    assert raw.refused() == Error("protocol_error", f"{kind.name} came before HELLO")
            for purpose in Purpose:
                if kind is FrameType.SUBSCRIBE and purpose is Purpose.REPLICA:
                    # A replica may say it, and this one would tell of a later primary.
                    continue
                with nodes.session(node, purpose, name=f"somebody-{kind.name}") as raw:
                    raw.send(message, Status(99))
                    while not isinstance(answer := raw.next(), Error | None):
                        assert isinstance(answer, StatusResult | WriteResult | Ping), answer
                        if isinstance(answer, StatusResult) and answer.request_id == 99:
                            break
                    assert answer is not None or kind is FrameType.ERROR, "an ERROR needs no answer"


def test_a_stream_of_bytes_one_by_one(nodes: Nodes) -> None:
    with Raw(nodes.primary.peer) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for each in encode(nodes.hello(Purpose.OBSERVE)) + encode(Status(3)):
            raw.send(bytes([each]))
        assert raw.take(StatusResult).request_id == 3


def test_thousands_of_tiny_frames(nodes: Nodes) -> None:
    with nodes.session(nodes.primary, Purpose.CLIENT) as raw:
        for start in range(0, 3000, 500):
            numbers = range(start, start + 500)
            raw.send(*[Write(number, (put(b"tiny", b"%d" % number),), 0, 0) for number in numbers])
            raw.send(*[Ping(0, 0)] * 2000, *[Status(number) for number in range(100)])
            answers = {raw.take(WriteResult).request_id for _ in numbers}
            assert answers == set(numbers)
        raw.half_close()
        raw.rest()
    assert ask(nodes.primary, "/read/tiny")[1]["value"] == 2999


# ---- who takes nothing -----------------------------------------------------------------------------------------


def flood(raw: Raw, frames: bytes, max_bytes: int) -> int:
    """Send frames again and again until the other side takes no more for a while; returns the bytes it took."""
    raw.socket.setblocking(False)
    sent = 0
    while sent < max_bytes:
        if not select.select([], [raw.socket], [], 0.3)[1]:
            break
        with contextlib.suppress(BlockingIOError):
            sent += raw.socket.send(frames)
    raw.socket.setblocking(True)
    raw.socket.settimeout(PATIENCE_S)
    return sent


def test_clients_that_never_read_their_answers(nodes: Nodes) -> None:
    """Each may cost what the transport may hold back, and no more, however much it asks."""
    before = resident_kib(nodes.primary)
    with contextlib.ExitStack() as stack:
        statuses = b"".join([encode(Status(number)) for number in range(1000)])
        for _ in range(4):
            raw = stack.enter_context(nodes.session(nodes.primary, Purpose.CLIENT))
            assert flood(raw, statuses, 64 << 20) < 64 << 20, "it was asked to wait"
        assert resident_kib(nodes.primary) < before + GROWTH_KIB
        nodes.check()


@pytest.mark.parametrize(("seq", "sessions"), [(0, 2), (2**60, 1)], ids=["large values", "waits of an hour"])
def test_readers_that_never_read_their_answers(nodes: Nodes, seq: int, sessions: int) -> None:
    status, written = ask(nodes.primary, "/put?acks=1&ack_timeout=20", {"key": "large", "value": "x" * 100_000})
    assert status == 200
    assert ask(nodes.replica, f"/read/large?min_seq={written['seq']}&wait=20")[0] == 200
    before = {node.pid: resident_kib(node) for node in nodes.both}
    reads = b"".join([encode(Read(number, b"large", Epoch(0), seq, 3_600_000)) for number in range(1000)])
    with contextlib.ExitStack() as stack:
        for node in nodes.both[-sessions:]:
            for _ in range(sessions):
                raw = stack.enter_context(nodes.session(node, Purpose.CLIENT))
                assert flood(raw, reads, 64 << 20) < 64 << 20, "it was asked to wait"
        for node in nodes.both:
            assert resident_kib(node) < before[node.pid] + GROWTH_KIB
        nodes.check()


def test_observers_that_never_read_what_they_asked_for(nodes: Nodes) -> None:
    for number in range(8):
        items = [{"key": f"large-{number}-{each}", "value": "x" * 100_000} for each in range(10)]
        assert ask(nodes.primary, "/batchput?acks=1&ack_timeout=20", items)[0] == 200
    before = {node.pid: resident_kib(node) for node in nodes.both}
    with contextlib.ExitStack() as stack:
        for node in nodes.both:
            for _ in range(6):
                raw = stack.enter_context(nodes.session(node, Purpose.OBSERVE))
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                raw.send(observe_from(1))
        nodes.check()
        for node in nodes.both:
            assert resident_kib(node) < before[node.pid] + GROWTH_KIB


# ---- a primary that sends nonsense -----------------------------------------------------------------------------


class FakePrimary:
    """Takes the sessions of one replica: its probes and forwarding are answered, the one that follows is the test's."""

    def __init__(self, server: PeerServer) -> None:
        self.server = server
        self.following: asyncio.Queue[Peer] = asyncio.Queue()
        self._task = asyncio.create_task(self._serve())
        self._peers: list[Peer] = []

    async def _serve(self) -> None:
        while True:
            peer = await self.server._accepted.get()
            said = await peer.take(Hello)
            peer.send(welcome(9, HISTORY))
            if said.purpose is Purpose.REPLICA:
                self.following.put_nowait(peer)
            else:
                self._peers.append(peer)

    async def stream(self) -> tuple[Peer, int]:
        """The next session, up to HISTORY; and after which seq it subscribed."""
        peer = await asyncio.wait_for(self.following.get(), PATIENCE_S)
        subscribe = await peer.take(Subscribe)
        peer.send(HistoryFrame(HISTORY, MEMBERS))
        return peer, subscribe.position.seq

    def stop(self) -> None:
        self._task.cancel()


@contextlib.asynccontextmanager
async def deceived(data: Path) -> AsyncIterator[tuple[NodeProcess, FakePrimary]]:
    """A replica of a primary that the test plays."""
    async with PeerServer() as server:
        primary = FakePrimary(server)
        node = NodeProcess(data, "--name=r1", join=str(server.address))
        try:
            node.start()
            await asyncio.to_thread(node.wait_ready)
            yield node, primary
        finally:
            primary.stop()
            if node.is_running:
                await asyncio.to_thread(node.kill)


async def test_a_primary_that_sends_damaged_entries_and_gaps(tmp_path: Path) -> None:
    async with deceived(tmp_path / "r1") as (node, primary):
        before = resident_kib(node)
        good = record(4)
        changed = good.payload.replace(b"k4", b"k5")
        for sent, code in (
            (Entries((record(4), LogRecord(record(5).crc, changed))), "entry_damaged"),
            (Entries((record(4), record(6))), "protocol_error"),
            (Entries((record(5),)), "protocol_error"),
            (Entries((LogRecord(good.crc ^ 1, good.payload),)), "entry_damaged"),
            (b"\xff\xff\xff\xff" + b"x" * 100_000, "protocol_error"),
            (os.urandom(3) + b"\x00", None),
        ):
            peer, seq = await primary.stream()
            assert seq in (0, 3)
            if seq == 0:
                peer.send(Entries(records(1, 3)))
            peer.send(sent)
            if code is None:
                peer.reset()
                continue
            _, error = await peer.take_until(Error)
            assert error.code == code
        peer, seq = await primary.stream()
        assert seq == 3, "nothing of all that was taken over"
        peer.send(Entries(records(4, 9)))
        status, answer = await asyncio.to_thread(ask, node, "/read/k9?min_seq=9&wait=20")
        assert (status, answer["value"]) == (200, 1)
        shown = await asyncio.to_thread(node.status)
        assert (shown["applied_seq"], shown["primary"]["connected"]) == (9, True)
        assert resident_kib(node) < before + GROWTH_KIB
        assert "Traceback" not in node.text


# ---- netcat and the commands -----------------------------------------------------------------------------------


def kvnode(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `kvnode ARGS...` to its end."""
    return subprocess.run(
        [*KVNODE, *arguments], input=stdin, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


def netcat_args() -> list[str]:
    """The arguments that make this machine's netcat half-close at the end of its input, if it is OpenBSD's."""
    if shutil.which("nc") is None:
        pytest.skip("there is no nc here")
    shown = subprocess.run(["nc", "-h"], capture_output=True, text=True, timeout=20, check=False)
    if "OpenBSD" not in shown.stdout + shown.stderr:
        pytest.skip("this nc is not OpenBSD's, whose options these are")
    return ["-N"]


@pytest.mark.parametrize("half_closes", [True, False])
def test_the_one_liner_with_netcat(nodes: Nodes, half_closes: bool) -> None:
    arguments = netcat_args()
    options = arguments if half_closes else []
    node = nodes.both[half_closes]
    host, port = node.peer.rsplit(":", 1)
    kvnode_command = " ".join(KVNODE)
    netcat = " ".join(["nc", *options, host, port])
    shell = f"{kvnode_command} frame observe --from 1 | {netcat} | {kvnode_command} frame --decode"
    with subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            frames = map(json.loads, iter(process.stdout.readline, b""))
            assert next(frames)["type"] == "welcome"
            assert next(frames)["type"] == "history"
            entries = (each for frame in frames if frame["type"] == "entries" for each in frame["records"])
            assert next(entries)["seq"] == 1
            # What is written now comes, too, though nothing more is sent there.
            value = f"live-{half_closes}"
            assert ask(nodes.primary, "/put", {"key": "netcat", "value": value})[0] == 200
            op = {"op": "put", "key": "netcat", "value": value}
            assert next(each for each in entries if op in each["ops"])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_tail_shows_what_was_written_on_both(nodes: Nodes) -> None:
    for number in range(5):
        ask(nodes.primary, "/put", {"key": f"tail-{number}", "value": {"n": number}})
    seq = ask(nodes.primary, "/delete?acks=1&ack_timeout=20", {"key": "tail-0"})[1]["seq"]
    ask(nodes.replica, f"/read/tail-1?min_seq={seq}&wait=20")
    shown = []
    for node in nodes.both:
        done = kvnode("tail", node.peer, "--from", str(seq - 5))
        assert (done.returncode, done.stderr) == (0, "")
        shown.append([json.loads(line) for line in done.stdout.splitlines()][:6])
    assert shown[0] == shown[1]
    assert [each["seq"] for each in shown[0]] == list(range(seq - 5, seq + 1))
    assert shown[0][0]["ops"] == [{"op": "put", "key": "tail-0", "value": {"n": 0}}]
    assert shown[0][5]["ops"] == [{"op": "delete", "key": "tail-0"}]
    past = kvnode("tail", nodes.primary.peer, "--from", "1000000000")
    assert (past.returncode, past.stdout) == (0, "")


def test_nc_writes_and_reads_as_a_client(nodes: Nodes) -> None:
    write = {
        "type": "write",
        "request_id": 7,
        "ops": [{"op": "put", "key": "by-hand", "value": [1, 2]}],
        "acks": 1,
        "ack_timeout_ms": 20000,
    }
    done = kvnode("nc", nodes.primary.peer, "--purpose", "client", stdin=json.dumps(write) + "\n")
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["type"] for each in said] == ["welcome", "write_result"]
    assert (said[1]["request_id"], said[1]["error_code"]) == (7, None)
    assert ask(nodes.replica, f"/read/by-hand?min_seq={said[1]['seq']}&wait=20")[1]["value"] == [1, 2]
    read = {
        "type": "read",
        "request_id": 8,
        "key": "by-hand",
        "min_epoch": said[1]["epoch"],
        "min_seq": said[1]["seq"],
        "wait_ms": 20000,
    }
    done = kvnode("nc", nodes.replica.peer, "--purpose", "client", stdin=json.dumps(read) + "\n")
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["request_id"], answer["value"], answer["error_code"]) == (8, [1, 2], None)
    assert (answer["epoch"], answer["seq"]) == (said[1]["epoch"], said[1]["seq"])
    refused = kvnode("nc", nodes.replica.peer, "--purpose", "client", stdin=json.dumps(write) + "\n")
    assert json.loads(refused.stdout.splitlines()[-1])["error_code"] == "not_primary"


# ---- the idle ones ---------------------------------------------------------------------------------------------


def test_idle_connections_were_told_and_closed_after_ten_seconds(idle: list[Raw]) -> None:
    """The last one: all the others went on while these were there."""
    assert len(idle) == IDLE_CONNECTIONS
    for raw in idle:
        assert raw.refused() == Error("hello_timeout", "no HELLO came within 10 s")
