"""Puts and reads one at a time, from 64 connections: kvnode, the no-op application, and the peers that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import limits
from bench.dialects import KVNODE, Dialect, fills, gets, puts
from bench.filling import fill, resident_mib, wait_settled
from bench.harness import kvnode
from bench.load import Load, from_pool, measure
from bench.peers.servers import Peer, exchange
from bench.results import OURS, Facts, Measure, take_turns

#: The sides that are no peers.
NOOP_GET = "no-op GET"
NOOP_POST = "no-op POST, body unread"
NOOP_POST_JSON = "no-op POST, body read as JSON"

CONNECTIONS = 64
PUT_KEYS = 100_000
HOT_KEYS = 1_000

#: Requests of a cold round: so many that few keys come twice.
_COLD_POOL = 200_000

#: Caches that hold next to nothing of the data.
_SMALL_CACHES = ("--cache-bytes", "1MiB", "--engine-block-cache-bytes", "8MiB")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take.

    Attributes:
        rounds: that are counted.
        seconds: of one side's load in a round.
    """

    rounds: int
    seconds: float


@contextmanager
def loaded(url: str, requests: Sequence[bytes], seconds: float) -> Iterator[Callable[[int], Load]]:
    """What runs one round of these requests; they are made once."""
    with from_pool(requests) as script:
        yield lambda _: measure(url, script=script, connections=CONNECTIONS, seconds=seconds)


def as_json_put(request: bytes) -> bytes:
    """A put of kvnode's, for the no-op that reads it as JSON."""
    return request.replace(b"POST /put ", b"POST /put-json ", 1)


def durable_puts(node_url: str, noop_url: str, peers: Sequence[Peer], pace: Pace) -> Measure:
    """Puts of random keys with values of 20 to 100 bytes."""
    with ExitStack() as stack:

        def side(url: str, requests: list[bytes]) -> Callable[[int], Load]:
            return stack.enter_context(loaded(url, requests, pace.seconds))

        ours = puts(KVNODE, PUT_KEYS, 1)
        json_puts = [as_json_put(request) for request in ours]
        sides = {
            OURS: side(node_url, ours),
            NOOP_POST: side(noop_url, ours),
            NOOP_POST_JSON: side(noop_url, json_puts),
            **{peer.name: side(peer.url, puts(peer.dialect, PUT_KEYS, 1)) for peer in peers},
        }
        return take_turns("put", "durable POST /put", "requests/s", sides, pace.rounds, warm=True)


def hot_gets(node_url: str, noop_url: str, peers: Sequence[Peer], pace: Pace) -> Measure:
    """Reads of 1,000 keys, which every cache holds."""
    _put_all(node_url, KVNODE)
    for peer in peers:
        _put_all(peer.url, peer.dialect)
    with ExitStack() as stack:

        def side(url: str, dialect: Dialect) -> Callable[[int], Load]:
            return stack.enter_context(loaded(url, gets(dialect, HOT_KEYS, 2), pace.seconds))

        sides = {
            OURS: side(node_url, KVNODE),
            NOOP_GET: side(noop_url, KVNODE),
            **{peer.name: side(peer.url, peer.dialect) for peer in peers},
        }
        return take_turns("get-hot", "GET /read, hot", "requests/s", sides, pace.rounds, warm=True)


def _put_all(url: str, dialect: Dialect) -> None:
    """Put every hot key."""
    for request in fills(dialect, HOT_KEYS):
        status, body = exchange(url, request)
        if status != 200:
            raise RuntimeError(f"{url} answered {status} to a put: {body[:200]!r}")


def cold_gets(data: Path, noop_url: str, keys: int, pace: Pace) -> tuple[Measure, Facts]:
    """Reads of random keys out of many, from LevelDB; and what the node needed of memory.

    Args:
        data: a new data directory; left there, stopped cleanly.
    """
    with kvnode(data) as node:
        fill(node.url, 0, keys)
        wait_settled(data / "db")
    with kvnode(data, *_SMALL_CACHES) as node:
        memory: list[float] = []

        def ours(number: int) -> Load:
            # Other keys in every round: what the last one read is in the kernel's cache, but not in the node's.
            with from_pool(gets(KVNODE, keys, 100 + number, _COLD_POOL)) as script:
                found = measure(node.url, script=script, connections=CONNECTIONS, seconds=pace.seconds)
            memory.append(resident_mib(node.pid)["RssAnon"])
            return found

        with loaded(noop_url, gets(KVNODE, keys, 3), pace.seconds) as theirs:
            title = f"GET /read, cold, {keys:,} keys"
            sides = {OURS: ours, NOOP_GET: theirs}
            found = take_turns("get-cold", title, "requests/s", sides, pace.rounds, warm=True)
    return found, Facts("get-cold-memory", "GET /read, cold: memory", "MiB", {"RssAnon": memory})


def disk_limits(folder: Path, seconds: float) -> Facts:
    """What the disk's sync alone allows, one record at a time and in groups as large as 64 clients make them."""
    folder.mkdir(exist_ok=True)
    groups = (1, 32, 64)
    figures: dict[str, list[float]] = {f"{size} a sync": [] for size in groups}
    for _ in range(3):
        for size in groups:
            figures[f"{size} a sync"].append(limits.synced_writes(folder, size, seconds))
    return Facts("disk", "write + fdatasync of records of 128 bytes", "records/s", figures)
