"""The cache against a list model, under any sequence of calls."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.node.api import Record
from kvnode.node.storage.cache import ENTRY_BYTES, LruCache
from kvnode.protocol.types import Epoch, Position

_MAX_BYTES = 10 * (ENTRY_BYTES + 50)

_KEYS = st.sampled_from([b"a", b"bb", b"ccc", b"d" * 20] + [b"key%d" % number for number in range(12)])
_CALLS = st.one_of(
    st.tuples(st.sampled_from(["put", "ask"]), _KEYS, st.integers(0, _MAX_BYTES // 8)),
    st.tuples(st.sampled_from(["get", "get", "discard"]), _KEYS, st.just(0)),
    st.tuples(st.just("clear"), st.just(b""), st.just(0)),
)


class Model:
    """The least recently used record stands first."""

    def __init__(self) -> None:
        self.items: list[tuple[bytes, Record]] = []

    @property
    def size(self) -> int:
        return sum(ENTRY_BYTES + len(key) + len(record.value) for key, record in self.items)

    def take(self, key: bytes) -> Record | None:
        for index, (each, record) in enumerate(self.items):
            if each == key:
                del self.items[index]
                return record
        return None

    def put(self, key: bytes, record: Record) -> None:
        self.take(key)
        if ENTRY_BYTES + len(key) + len(record.value) <= _MAX_BYTES // 8:
            self.items.append((key, record))
        while self.size > _MAX_BYTES:
            del self.items[0]


@settings(deadline=None, max_examples=300)
@given(st.lists(_CALLS, max_size=80))
def test_cache_agrees_with_the_model(calls: list[tuple[str, bytes, int]]) -> None:
    cache, model = LruCache(_MAX_BYTES), Model()
    hits = misses = 0
    for seq, (call, key, size) in enumerate(calls, 1):
        record = Record(Position(Epoch(1), seq), 0, b"x" * size)
        match call:
            case "get":
                expected = model.take(key)
                if expected is None:
                    misses += 1
                else:
                    hits += 1
                    model.items.append((key, expected))
                assert cache.get(key) is expected
            case "put":
                cache.put(key, record)
                model.put(key, record)
            case "ask":
                assert (key in cache) == any(each == key for each, _ in model.items)
            case "discard":
                cache.discard(key)
                model.take(key)
            case _:
                cache.clear()
                model.items.clear()
        assert cache.bytes == model.size <= _MAX_BYTES
        assert cache.entries == len(model.items)
    assert (cache.hits, cache.misses) == (hits, misses)
    # What is left is the same, in any case.
    for key, expected in model.items:
        assert cache.get(key) is expected
