"""The process's limit of open files: raised as far as it needs and may, and what it leaves for REST connections."""

from __future__ import annotations

import resource

from kvnode.node.config import Config

#: Files of the log, of full syncs, of threads and loops; and the peer port's connections at their most.
_OTHER_FILES = 200
_PEER_CONNECTIONS = 1000


def own_files(config: Config) -> int:
    """What the node has to be able to open beside REST connections."""
    return config.engine_open_files + _OTHER_FILES + _PEER_CONNECTIONS


def raise_open_files(wanted: int) -> int:
    """Raise the soft limit to the hard one if it is under `wanted`; returns the soft limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, target), hard))
    return max(soft, target)


def share(limit: int, config: Config, max_surplus: int) -> tuple[int, int]:
    """(connections to serve, surplus connections to take) under this limit of open files.

    The node's own files come first: a log that cannot open its next segment is worse than a client that is refused.
    """
    left = max(limit - own_files(config), limit // 4)
    if left >= config.max_connections + max_surplus:
        return config.max_connections, max_surplus
    served = max(1, min(config.max_connections, left * 3 // 4))
    return served, max(1, min(max_surplus, left - served))
