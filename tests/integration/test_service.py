"""`kvnode start` as an operator meets it: real processes, signals, occupied addresses, foreign and full directories."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from zlib import crc32

import aiohttp
import pytest

from kvnode.node.fs import RealFs
from kvnode.node.storage.segment import encode_header, segment_name
from kvnode.node.storage.statefile import encode_state, load_state
from support.node_process import NodeProcess
from support.small_disk import fill

#: The time in which a node that was told to stop has to be gone, by the contract.
STOP_S = 10.0


class Client:
    """One keep-alive connection to a node."""

    def __init__(self, node: NodeProcess) -> None:
        host, _, port = node.url.removeprefix("http://").rpartition(":")
        self._connection = HTTPConnection(host, int(port), timeout=30)

    def __enter__(self) -> "Client":
        self._connection.connect()
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    @property
    def socket(self) -> socket.socket:
        """The connection's socket, for requests sent by hand."""
        assert isinstance(self._connection.sock, socket.socket)
        return self._connection.sock

    def get(self, path: str) -> tuple[int, Any]:
        """(status, decoded body) of a GET."""
        self._connection.request("GET", path)
        return self._answer()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """(status, decoded body) of a POST."""
        self._connection.request("POST", path, json.dumps(body))
        return self._answer()

    def put(self, key: str, value: Any) -> int:
        """Write, and return the seq."""
        status, answer = self.post("/put", {"key": key, "value": value})
        assert status == 200, answer
        return int(answer["seq"])

    def records(self) -> dict[str, Any]:
        """Everything the node has."""
        status, answer = self.get("/readrange")
        assert status == 200, answer
        return {item["key"]: item["value"] for item in answer["items"]}

    def _answer(self) -> tuple[int, Any]:
        response = self._connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.headers["Content-Type"] == "application/json" else body


def events(node: NodeProcess, name: str) -> list[str]:
    """The log lines of an event."""
    return [line for line in node.log if f" event={name} " in line or line.rstrip().endswith(f" event={name}")]


def refused(node: NodeProcess) -> str:
    """Start a node that must not come up; returns the line in which it says why."""
    before = len(node.log)
    node.start()
    assert node.wait() == 1
    text = "".join(node.log[before:])
    assert "Traceback" not in text
    (line,) = [line for line in node.log[before:] if "level=error" in line]
    return line


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "data") as running:
        yield running


# ---- starting and stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_clean_stop_is_soon_leaves_its_marker_and_nothing_to_replay(
    node: NodeProcess, number: signal.Signals
) -> None:
    with Client(node) as client:
        for index in range(20):
            client.put(f"k{index}", index)
    assert not (node.data / "clean").exists()
    os.kill(node.pid, number)
    assert node.wait(STOP_S) == 0
    assert (node.data / "clean").exists()
    assert f"reason={number.name}" in events(node, "stopping")[0]
    node.restart()
    assert "clean=true replayed=0 last_seq=20" in events(node, "storage_opened")[-1]
    assert not (node.data / "clean").exists()
    with Client(node) as client:
        assert client.records() == {f"k{index}": index for index in range(20)}
        assert client.put("more", 1) == 21


def test_a_second_signal_changes_nothing(node: NodeProcess) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        if node.is_running:
            os.kill(node.pid, number)
    assert node.wait(STOP_S) == 0
    assert len(events(node, "stopping")) == 1


def test_after_a_kill_the_log_is_replayed(node: NodeProcess) -> None:
    with Client(node) as client:
        for index in range(20):
            client.put(f"k{index}", index)
        node.kill()
    assert not (node.data / "clean").exists()
    node.restart()
    assert "clean=false replayed=20 last_seq=20" in events(node, "storage_opened")[-1]
    with Client(node) as client:
        assert client.records() == {f"k{index}": index for index in range(20)}
        assert client.get("/status")[1]["epoch"].startswith("2.")
        assert client.put("more", 1) == 21


def test_every_start_has_a_new_epoch_and_the_same_identity(node: NodeProcess) -> None:
    seen = [node.status()]
    for _ in range(2):
        node.restart()
        seen.append(node.status())
    assert [each["epoch"].partition(".")[0] for each in seen] == ["1", "2", "3"]
    assert len({each["epoch"] for each in seen}) == 3
    assert len({(each["cluster_id"], each["name"], each["role"]) for each in seen}) == 1


def test_a_second_process_is_refused_and_the_first_undisturbed(node: NodeProcess) -> None:
    second = NodeProcess(node.data)
    line = refused(second)
    assert "event=start_refused code=directory_locked" in line
    assert f"{node.data} is open in another process (pid {node.pid})" in line
    assert "hint=" in line
    with Client(node) as client:
        assert client.put("a", 1) == 1
    assert node.stop(STOP_S) == 0
    with second:
        assert second.status()["last_seq"] == 1


def test_an_occupied_address_leaves_a_clean_directory(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as occupied:
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        node = NodeProcess(tmp_path / "data", f"--http={address}")
        line = refused(node)
        assert f"event=listen_failed http={address}" in line
        assert "address already in use" in line
        assert (node.data / "clean").exists()
    with NodeProcess(node.data) as free:
        assert "clean=true replayed=0" in events(free, "storage_opened")[0]


def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "data", "--http=host.invalid:0")
    assert "event=listen_failed http=host.invalid:0 reason=" in refused(node)
    assert (node.data / "clean").exists()


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "event=start_refused code=os_error" in refused(NodeProcess(tmp_path / "file"))
    assert "event=start_refused code=os_error" in refused(NodeProcess(tmp_path / "file" / "below"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_node_can_be_renamed(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data", "--name=first") as node:
        assert node.status()["name"] == "first"
        cluster_id = node.status()["cluster_id"]
    with NodeProcess(tmp_path / "data", environment={"KVNODE_NAME": "second"}) as node:
        assert (node.status()["name"], node.status()["cluster_id"]) == ("second", cluster_id)
    with NodeProcess(tmp_path / "data") as node:
        assert node.status()["name"] == "second"


def test_the_log_as_json_lines_and_the_warning_of_an_open_door(tmp_path: Path) -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as occupied:
        address = f"0.0.0.0:{occupied.getsockname()[1]}"
        node = NodeProcess(tmp_path / "data ü", "--log-format=json", f"--http={address}")
        node.start()
        assert node.wait() == 1
    by_event = {line["event"]: line for line in map(json.loads, node.log)}
    assert by_event["open_without_credentials"]["level"] == "warning"
    assert by_event["open_without_credentials"]["http"] == address
    assert by_event["listen_failed"]["level"] == "error"
    assert by_event["storage_opened"]["data"] == str(node.data)
    assert by_event["storage_opened"]["clean"] is False


def test_a_loopback_address_is_no_open_door(node: NodeProcess) -> None:
    assert events(node, "open_without_credentials") == []


def test_metrics_of_a_running_node(node: NodeProcess) -> None:
    with Client(node) as client:
        client.put("a", 1)
        client.post("/delete", {"key": "missing"})
        client.get("/read/a")
        status, text = client.get("/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    assert float(values["kvnode_writes_total"]) == 2
    assert float(values["kvnode_entries_total"]) == 1
    assert float(values["kvnode_applied_seq"]) == float(values["kvnode_wal_last_seq"]) == 1
    assert float(values["kvnode_cache_hits_total"]) == 1
    assert float(values["kvnode_epoch_term"]) == 1
    assert float(values["kvnode_wal_append_duration_seconds_count"]) == 1


# ---- stopping under load ---------------------------------------------------------------------------------------


async def test_a_stop_under_load_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "data", "--wal-segment-bytes=256KiB")
    acknowledged: dict[str, int] = {}
    refusals: set[tuple[int, str]] = set()
    enough = asyncio.Event()

    async def write(session: aiohttp.ClientSession, name: str) -> None:
        for number in range(1_000_000):
            try:
                async with session.post("/put", json={"key": f"{name}/{number}", "value": number}) as answer:
                    body = await answer.json()
            except aiohttp.ClientError:
                # It came when the doors were closed, or was on its way when its idle connection was.
                return
            if answer.status != 200:
                refusals.add((answer.status, body["error"]["code"]))
                return
            acknowledged[f"{name}/{number}"] = number
            if len(acknowledged) == 500:
                enough.set()

    with node:
        connector = aiohttp.TCPConnector(limit=40)
        async with aiohttp.ClientSession(node.url, connector=connector) as session, asyncio.TaskGroup() as writers:
            for index in range(32):
                writers.create_task(write(session, f"w{index}"))
            await enough.wait()
            os.kill(node.pid, signal.SIGTERM)
            assert await asyncio.to_thread(node.wait, STOP_S) == 0
        assert refusals <= {(503, "draining")}
        node.restart()
        assert "clean=true replayed=0" in events(node, "storage_opened")[-1]
        with Client(node) as client:
            records = client.records()
    assert {key: records.get(key) for key in acknowledged} == acknowledged
    # At most the one request of each writer that was never answered.
    assert len(records) - len(acknowledged) <= 32


def test_requests_that_came_before_the_stop_are_answered(node: NodeProcess) -> None:
    """The process sleeps while they arrive, and finds them and the signal at once when it wakes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(node)) for _ in range(50)]
        for client in clients:
            # The connection is accepted.
            assert client.get("/health")[0] == 200
        os.kill(node.pid, signal.SIGSTOP)
        for index, client in enumerate(clients):
            body = json.dumps({"key": f"k{index}", "value": index})
            client.socket.sendall(
                f"POST /put HTTP/1.1\r\nHost: n\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
        os.kill(node.pid, signal.SIGTERM)
        os.kill(node.pid, signal.SIGCONT)
        statuses = [read_status(client.socket) for client in clients]
        assert set(statuses) <= {200, 503}
    assert node.wait(STOP_S) == 0
    node.restart()
    with Client(node) as client:
        assert client.records() == {f"k{index}": index for index, status in enumerate(statuses) if status == 200}


def read_status(connection: socket.socket) -> int:
    """The status of the answer on a socket, of which the rest is left."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        assert more, f"the connection was closed without an answer, after {received!r}"
        received += more
    return int(received.split(b" ", 2)[1])


def test_a_write_whose_body_was_on_its_way_is_answered(node: NodeProcess) -> None:
    body = b'{"key":"slow","value":1}'
    with Client(node) as slow:
        slow.socket.sendall(b"POST /put HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5])
        slow.socket.sendall(body[5:9])
        with Client(node) as other:
            # The node, which has one loop, has taken what was sent before this.
            assert other.get("/health")[0] == 200
        os.kill(node.pid, signal.SIGTERM)
        wait_until_it_accepts_no_more(node)
        slow.socket.sendall(body[9:])
        assert read_status(slow.socket) == 503
    assert node.wait(STOP_S) == 0
    node.restart()
    with Client(node) as client:
        assert client.records() == {}


def wait_until_it_accepts_no_more(node: NodeProcess) -> None:
    """Connect until that is refused, as it is from the beginning of a stop on."""
    for _ in range(1_000_000):
        try:
            with Client(node) as client:
                client.get("/health")
        except ConnectionRefusedError:
            return
        except OSError:
            # It was in the queue of the listening socket when that was closed.
            continue
    raise AssertionError("the node goes on accepting")


# ---- files of another version ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["node.json", "history", "members", "checkpoint", "clean"])
def test_a_file_of_an_unknown_format_is_refused_naming_both_versions(node: NodeProcess, name: str) -> None:
    with Client(node) as client:
        client.put("a", 1)
    assert node.stop(STOP_S) == 0
    path = node.data / name
    known = path.read_bytes()
    state = load_state(RealFs(), path)
    assert state is not None
    path.write_bytes(encode_state({**state, "format": 2}))
    line = refused(node)
    assert "code=unknown_format" in line
    assert f"{path}: format version 2, this program knows version 1" in line
    assert "hint=" in line
    path.write_bytes(known)
    node.restart()
    with Client(node) as client:
        assert client.records() == {"a": 1}


def test_a_segment_of_an_unknown_format_is_refused_naming_both_versions(node: NodeProcess) -> None:
    with Client(node) as client:
        client.put("a", 1)
    cluster_id = bytes.fromhex(node.status()["cluster_id"])
    node.kill()
    path = node.data / "wal" / segment_name(1)
    known = path.read_bytes()
    header = encode_header(cluster_id, 1)
    assert known.startswith(header)
    foreign = bytearray(header[:-4])
    assert foreign[8:12] == b"\x00\x00\x00\x01"
    foreign[11] = 2
    path.write_bytes(bytes(foreign) + crc32(foreign).to_bytes(4, "big") + known[len(header) :])
    assert f"{path}: format version 2, this program knows version 1" in refused(node)
    path.write_bytes(known)
    node.restart()
    with Client(node) as client:
        assert client.records() == {"a": 1}


# ---- a full disk -----------------------------------------------------------------------------------------------


class Writer:
    """Writes values of 1 KiB, and knows what was acknowledged and what may be there."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.acknowledged: dict[str, str] = {}
        self.unknown: dict[str, str] = {}
        self.count = 0

    def write(self) -> str:
        """Write once; returns the code of the answer, "" for success."""
        self.count += 1
        key, value = f"k{self.count:06}", f"{self.count:06}" + "x" * 1018
        status, answer = self.client.post("/put", {"key": key, "value": value})
        if status == 200:
            self.acknowledged[key] = value
            return ""
        code = str(answer["error"]["code"])
        assert (status, code) in {(507, "storage_full"), (504, "outcome_unknown"), (503, "syncing")}, answer
        if code == "outcome_unknown":
            self.unknown[key] = value
        return code

    def write_until(self, code: str, at_most: int = 100_000) -> None:
        """Write until that is answered."""
        for _ in range(at_most):
            if self.write() == code:
                return
        raise AssertionError(f"no write was answered with {code!r}")

    def check(self, records: dict[str, Any]) -> None:
        """Check that all that was acknowledged is there, and nothing that cannot be."""
        assert {key: records.get(key) for key in self.acknowledged} == self.acknowledged
        rest = records.keys() - self.acknowledged.keys()
        assert rest <= self.unknown.keys()
        assert all(records[key] == self.unknown[key] for key in rest)


def test_the_log_runs_out_of_space_and_gets_it_back(small_disk: Path) -> None:
    # The next segment needs more than what is left, while LevelDB gets along with that.
    with NodeProcess(small_disk / "data", "--wal-segment-bytes=4MiB", "--wal-keep-bytes=0", "--cache-bytes=0") as node:
        with Client(node) as client:
            writer = Writer(client)
            while client.get("/status")[1]["wal"]["bytes"] < 3_600_000:
                assert writer.write() == ""
            ballast = fill(small_disk, 2 * 1024 * 1024)
            writer.write_until("storage_full")
            last_seq = client.get("/status")[1]["last_seq"]
            for _ in range(5):
                assert writer.write() == "storage_full"
            # Reads go on, nothing was used up, and the node is ready.
            assert writer.unknown == {}
            writer.check(client.records())
            assert client.get("/read/k000001")[1]["value"] == writer.acknowledged["k000001"]
            status = client.get("/status")[1]
            assert status["last_seq"] == status["applied_seq"] == last_seq == len(writer.acknowledged)
            assert client.get("/ready")[0] == 200
            ballast.unlink()
            for _ in range(50):
                assert writer.write() == ""
            assert client.get("/status")[1]["last_seq"] == last_seq + 50
            writer.check(client.records())
        node.kill()
        node.restart()
        with Client(node) as client:
            writer.check(client.records())
            assert client.get("/status")[1]["last_seq"] == last_seq + 50
        assert node.stop(STOP_S) == 0


def test_leveldb_runs_out_of_space_and_gets_it_back(small_disk: Path) -> None:
    # The log has its segment reserved; LevelDB finds no room to grow into.
    flags = ("--wal-segment-bytes=8MiB", "--wal-keep-bytes=0", "--engine-write-buffer-bytes=64KiB")
    with NodeProcess(small_disk / "data", *flags, "--cache-bytes=0") as node:
        with Client(node) as client:
            writer = Writer(client)
            for _ in range(200):
                assert writer.write() == ""
            ballast = fill(small_disk, 200 * 1024)
            writer.write_until("outcome_unknown", 5000)
            # LevelDB is closed and cannot be opened; reads and writes say why.
            assert writer.write() in {"storage_full", "syncing"}
            writer.write_until("storage_full", 100_000)
            assert client.get("/ready") == (503, client.get("/ready")[1])
            assert client.get("/ready")[1]["error"]["code"] == "syncing"
            status, answer = client.get("/read/k000001")
            assert (status, answer["error"]["code"]) == (503, "syncing")
            ballast.unlink()
            writer.write_until("", 1_000_000)
            assert client.get("/ready")[0] == 200
            for _ in range(50):
                assert writer.write() == ""
            writer.check(client.records())
            # What was logged when LevelDB failed has happened.
            assert len(client.records()) == client.get("/status")[1]["last_seq"]
        assert "engine_rebuilt" in node.text
        node.kill()
        node.restart()
        with Client(node) as client:
            writer.check(client.records())
        assert node.stop(STOP_S) == 0
        node.restart()
        assert "clean=true replayed=0" in events(node, "storage_opened")[-1]
        with Client(node) as client:
            writer.check(client.records())


def test_a_stop_while_the_disk_is_full_loses_nothing(small_disk: Path) -> None:
    flags = ("--wal-segment-bytes=8MiB", "--wal-keep-bytes=0", "--engine-write-buffer-bytes=64KiB")
    with NodeProcess(small_disk / "data", *flags) as node:
        with Client(node) as client:
            writer = Writer(client)
            for _ in range(200):
                assert writer.write() == ""
            ballast = fill(small_disk, 200 * 1024)
            writer.write_until("storage_full")
        # It cannot be a clean one, and says so; but it ends in time.
        assert node.stop(STOP_S) == 1
        assert "event=stop_incomplete" in node.text
        assert "Traceback" not in node.text
        # Nor can it start when somebody takes what the log gave back.
        fill(small_disk, 0, "more ballast")
        line = refused(node)
        assert "code=storage_full" in line
        assert "free some space" in line
        ballast.unlink()
        node.start()
        node.wait_ready()
        with Client(node) as client:
            writer.check(client.records())


def test_a_new_node_on_a_full_disk_is_refused(small_disk: Path) -> None:
    ballast = fill(small_disk, 64 * 1024)
    line = refused(NodeProcess(small_disk / "data"))
    assert "code=storage_full" in line
    ballast.unlink()
    with NodeProcess(small_disk / "data", "--wal-segment-bytes=4MiB") as node, Client(node) as client:
        assert client.put("a", 1) == 1
