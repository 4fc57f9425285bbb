"""Memory stays bounded by the settings, whatever the size of the data: what is allocated, and what is mapped."""

import subprocess
import sys
from pathlib import Path

import pytest

_MEASURE = """
import sys
from pathlib import Path
from random import Random
from kvnode.node.api import KeyRange
from kvnode.node.storage.leveldb import LevelDbFactory
from support.engines import entry, opened, put

MIB = 1 << 20
COUNT = 144 * 1024
factory = LevelDbFactory(write_buffer_bytes=4 * MIB, block_cache_bytes=2 * MIB, open_files=74)

def resident():
    with open("/proc/self/status") as lines:
        sizes = dict(line.split(":") for line in lines if line.startswith("Rss"))
    return [int(sizes[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")]

start = resident()
peak = [0.0, 0.0]

def sample():
    peak[:] = [max(high, now - then) for high, now, then in zip(peak, resident(), start)]

rng = Random(1)
with opened(factory, Path(sys.argv[1]) / "db") as engine:
    for seq in range(1, COUNT // 256 + 1):
        numbers = [number * 7919 % COUNT for number in range(256 * seq - 256, 256 * seq)]
        engine.write([entry(seq, [put(b"%06d" % number, rng.randbytes(1024)) for number in numbers])], synced=True)
        sample()
    engine.flush()
    scan = engine.scan(KeyRange())
    found = chunks = 0
    while items := scan.next_items(256, 256 * 1024):
        found += len(items)
        chunks += 1
        if chunks % 16 == 0:
            sample()
    scan.close()
    assert found == COUNT, found
    engine.read([b"%06d" % rng.randrange(COUNT) for _ in range(2000)])
    sample()
print(*peak)
"""


@pytest.mark.slow
def test_memory_is_bounded_while_a_large_database_is_loaded_and_read(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {tests!r})\n{_MEASURE}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    allocated, mapped = map(float, done.stdout.split())
    # Two write buffers, the block cache, a compaction's buffers, a chunk of items.
    assert allocated < 24
    # 64 tables, of which the twelve at level 0 may have 4 MiB and the others 1 MiB; the database has 144 MiB.
    assert mapped < 112
