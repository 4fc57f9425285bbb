"""The begin of a node's process: what must be set before the rest of the node, which is a lot, is imported."""

from __future__ import annotations

import gc

from kvnode.node.config import Address, Config, import_environment

#: Container objects made between two collections of the youngest generation. The cache is a large number of objects
#: without cycles, which the default of 700 makes the collector walk through again and again; so are the modules, and
#: the entries of a log that is replayed.
_GC_THRESHOLD = 20_000


def launch(config: Config, join: Address | None = None) -> int:
    """Run a node until it is told to stop; see `kvnode.node.service.run`."""
    gc.set_threshold(_GC_THRESHOLD)
    with import_environment():
        from kvnode.node.service import run

    return run(config, join)
