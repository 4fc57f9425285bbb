"""The read cache: order of leaving, accounting, counters."""

import subprocess
import sys

import pytest

from kvnode.node.api import Record
from kvnode.node.storage.cache import ENTRY_BYTES, LruCache
from kvnode.protocol.types import Position
from support.engines import EPOCH


def record(value: bytes, seq: int = 1) -> Record:
    return Record(Position(EPOCH, seq), 0, value)


def room_for(entries: int) -> LruCache:
    """A cache that holds so many entries of a one-byte key and ten bytes of value."""
    return LruCache(entries * (ENTRY_BYTES + 11))


def test_new_cache_is_empty() -> None:
    cache = LruCache(10_000)
    assert (cache.entries, cache.bytes, cache.hits, cache.misses) == (0, 0, 0, 0)


def test_get_gives_what_was_put_and_counts() -> None:
    cache = LruCache(10_000)
    cache.put(b"a", record(b"1"))
    assert cache.get(b"a") == record(b"1")
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert (cache.hits, cache.misses) == (2, 1)


def test_put_replaces_and_accounts_for_the_difference() -> None:
    cache = LruCache(10_000)
    cache.put(b"key", record(b"1" * 100))
    assert cache.bytes == ENTRY_BYTES + 103
    cache.put(b"key", record(b"22", seq=2))
    assert cache.bytes == ENTRY_BYTES + 5
    assert cache.get(b"key") == record(b"22", seq=2)
    assert cache.entries == 1


def test_least_recently_used_leaves_first() -> None:
    cache = room_for(8)
    for key in b"abcdefgh":
        cache.put(bytes([key]), record(b"x" * 10))
    assert cache.entries == 8
    cache.get(b"a")
    cache.put(b"b", record(b"y" * 10))
    cache.put(b"i", record(b"x" * 10))
    cache.put(b"j", record(b"x" * 10))
    assert [key for key in b"abcdefghij" if cache.get(bytes([key])) is None] == list(b"cd")


def test_one_large_record_pushes_out_as_many_as_it_needs() -> None:
    cache = room_for(24)
    for key in range(24):
        cache.put(bytes([key]), record(b"x" * 10))
    cache.put(b"L", record(b"x" * (2 * ENTRY_BYTES)))
    assert cache.bytes <= 24 * (ENTRY_BYTES + 11)
    assert cache.get(b"L") is not None
    assert [key for key in range(24) if cache.get(bytes([key])) is None] == [0, 1, 2]


def test_largest_record_is_an_eighth_of_the_cache() -> None:
    cache = LruCache(80_000)
    largest = 10_000 - ENTRY_BYTES - 1
    cache.put(b"a", record(b"x" * largest))
    cache.put(b"b", record(b"x" * (largest + 1)))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


def test_record_that_is_too_large_leaves_no_older_one_behind() -> None:
    cache = LruCache(80_000)
    cache.put(b"a", record(b"old"))
    cache.put(b"a", record(b"x" * 10_000, seq=2))
    assert cache.get(b"a") is None
    assert (cache.entries, cache.bytes) == (0, 0)


def test_asking_whether_a_key_is_there_is_no_use_of_it() -> None:
    cache = LruCache(8 * (ENTRY_BYTES + 2))
    for key in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"):
        cache.put(key, record(b"1"))
    assert b"a" in cache
    assert b"z" not in cache
    cache.put(b"i", record(b"1"))
    assert b"a" not in cache
    assert (cache.hits, cache.misses) == (0, 0)


def test_discard_and_clear_give_the_bytes_back() -> None:
    cache = LruCache(10_000)
    for key in (b"a", b"b", b"c"):
        cache.put(key, record(b"1"))
    cache.discard(b"b")
    cache.discard(b"b")
    assert (cache.entries, cache.bytes) == (2, 2 * (ENTRY_BYTES + 2))
    cache.get(b"a")
    cache.clear()
    assert (cache.entries, cache.bytes, cache.hits) == (0, 0, 1)
    assert cache.get(b"a") is None


def test_cache_of_no_bytes_caches_nothing() -> None:
    cache = LruCache(0)
    cache.put(b"a", record(b""))
    assert b"a" not in cache
    assert cache.get(b"a") is None
    assert (cache.entries, cache.bytes, cache.misses) == (0, 0, 1)


_MEASURE = """
import random, sys
from kvnode.node.api import Record
from kvnode.node.storage.cache import LruCache
from kvnode.protocol.types import Epoch, Position

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

smallest, largest = map(int, sys.argv[1:])
cache, rng, body, epoch = LruCache(16 << 20), random.Random(1), bytes(5000), Epoch.of(1, 2)
seq, before = 100_000, resident()

def put():
    global seq
    seq += 1
    # A seq and a position of its own, as of a single write.
    key = b"user:%010d" % rng.randrange(10**10)
    cache.put(key, Record(Position(epoch, seq), 0, body[: rng.randint(smallest, largest)]))

while cache.bytes < 0.99 * (16 << 20):
    put()
print((resident() - before) / cache.bytes)
for _ in range(4 * cache.entries):
    put()
print((resident() - before) / cache.bytes)
"""


@pytest.mark.parametrize(("smallest", "largest"), [(2, 300), (800, 1200)])
def test_accounted_bytes_are_resident_bytes(smallest: int, largest: int) -> None:
    """Both when the cache is just full and after its entries were exchanged several times."""
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(smallest), str(largest)], capture_output=True, text=True, check=True
    )
    filled, exchanged = map(float, measured.stdout.split())
    assert filled == pytest.approx(1, abs=0.2)
    assert exchanged == pytest.approx(1, abs=0.2)
