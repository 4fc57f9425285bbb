"""What GET /status says, as typed values, and what two answers say about the time between them.

What a node of another release does not send is None, zero, or empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from kvnode.cli.errors import BadAnswer


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """The node's own log."""

    first_seq: int | None = None
    last_seq: int | None = None
    segments: int = 0
    size_bytes: int = msgspec.field(name="bytes", default=0)

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing: of a node that is new, or fresh from a full sync."""
        return self.first_seq is not None and self.last_seq is not None and self.last_seq < self.first_seq


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """The read cache, since the process started."""

    entries: int = 0
    size_bytes: int = msgspec.field(name="bytes", default=0)
    hits: int = 0
    misses: int = 0

    @property
    def reads(self) -> int:
        """Reads of single keys."""
        return self.hits + self.misses


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """A member other than the primary, as its primary sees it."""

    name: str | None = None
    address: str | None = None
    state: str | None = None
    sent_seq: int | None = None
    acked_seq: int | None = None
    applied_seq: int | None = None
    lag_entries: int | None = None
    lag_s: float | None = None
    retention: str | None = None


class LinkError(msgspec.Struct, frozen=True, kw_only=True):
    """Why the last attempt to follow failed."""

    code: str = "?"
    message: str = "?"


class Primary(msgspec.Struct, frozen=True, kw_only=True):
    """The primary, as its replica sees it."""

    address: str = "?"
    connected: bool = False
    lag_entries: int | None = None
    lag_s: float | None = None
    error: LinkError | None = None


class FullSync(msgspec.Struct, frozen=True, kw_only=True):
    """A full sync that a replica is receiving, or replaying."""

    state: str = "under way"
    keys: int | None = None


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer as a whole."""

    name: str | None = None
    role: str | None = None
    cluster_id: str | None = None
    epoch: str | None = None
    last_seq: int | None = None
    durable_seq: int | None = None
    applied_seq: int | None = None
    uptime_s: float | None = None
    version: str | None = None
    wal: Log | None = None
    cache: Cache | None = None
    replicas: tuple[Replica, ...] = ()
    primary: Primary | None = None
    sync: FullSync | None = None
    diverged: tuple[str, ...] = ()
    fenced: str | None = None
    full_syncs_sent: int = 0
    full_syncs_received: int = 0


class Rates(NamedTuple):
    """What a node did between two answers.

    Attributes:
        seconds: between them, by the node's clock.
        writes_per_s: entries that came into its log; a batch is one. None where that cannot be told.
        reads_per_s: reads of single keys; likewise.
        hit_rate: share of those that the cache answered, 0 to 1; None also where there was none.
    """

    seconds: float
    writes_per_s: float | None
    reads_per_s: float | None
    hit_rate: float | None


def read_status(fields: dict[str, Any]) -> NodeStatus:
    """The decoded answer as typed values.

    Raises:
        BadAnswer: a member is not what it has to be.
    """
    try:
        return msgspec.convert(fields, type=NodeStatus)
    except msgspec.ValidationError as error:
        raise BadAnswer(
            f"a status that cannot be read: {error}", hint="`kvnode status --json` prints it as it is"
        ) from error


def rates_between(before: NodeStatus, after: NodeStatus) -> Rates | None:
    """What happened between two answers of a node; None where nothing can be said, as it has restarted."""
    if before.uptime_s is None or after.uptime_s is None or after.uptime_s <= before.uptime_s:
        return None
    seconds = after.uptime_s - before.uptime_s
    writes = None
    # A replica whose history was replaced may have fewer entries than before.
    if before.last_seq is not None and after.last_seq is not None and after.last_seq >= before.last_seq:
        writes = (after.last_seq - before.last_seq) / seconds
    if before.cache is None or after.cache is None or after.cache.reads < before.cache.reads:
        return Rates(seconds, writes, None, None)
    reads, hits = after.cache.reads - before.cache.reads, after.cache.hits - before.cache.hits
    return Rates(seconds, writes, reads / seconds, hits / reads if reads else None)
