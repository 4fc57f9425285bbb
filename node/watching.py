"""What those who watch a node are shown, over and over: its status with counters and the cluster, and new entries.

Nothing here is done unless somebody watches, and nothing of it on the way of a write: the counters are there anyway,
and so are the newest records, in memory, for replicas.
"""

from __future__ import annotations

from typing import Any

from kvnode.node.api import NewestEntries
from kvnode.node.clock import Clock
from kvnode.node.replication.logtail import LogTail
from kvnode.node.store import Store
from kvnode.protocol.entry import decode_beginning
from kvnode.protocol.follow import is_prefix
from kvnode.protocol.types import Position

#: Entries that one look shows at most, and operations of each.
MAX_ENTRIES = 50
MAX_OPS = 5


def counters(store: Store, clock: Clock) -> dict[str, Any]:
    """What charts are made of: counts since the process started, and when they were taken.

    `entries` counts what was appended to this node's log, `reads` what was asked by key (found or not, by cache or
    LevelDB), `range_items` what range reads were given.
    """
    counted, cache = store.counters, store.cache
    return {
        "time_ms": clock.now_ms(),
        "monotonic_s": round(clock.monotonic_s(), 6),
        "counters": {
            "writes": counted.writes,
            "entries": counted.entries,
            "reads": cache.hits + cache.misses,
            "range_items": counted.range_items,
            "cache_hits": cache.hits,
            "cache_misses": cache.misses,
        },
    }


def newest_entries(store: Store, tail: LogTail, after: Position | None) -> NewestEntries:
    """The newest entries after one; see `NodeApi.newest_entries`."""
    last = store.applied
    is_known = after is not None and is_prefix(store.history, last.seq, after)
    after_seq = after.seq if after is not None and is_known else 0
    records = tail.newest(after_seq, last.seq, MAX_ENTRIES)
    left_out = last.seq - after_seq - len(records) if is_known else 0
    return NewestEntries([decode_beginning(record.payload, MAX_OPS) for record in records], left_out, last)
