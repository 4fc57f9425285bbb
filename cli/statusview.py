"""How a node's status looks on a screen: a summary, and a table of the replicas that fits the width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvnode.cli.nodestatus import Log, NodeStatus, Primary, Rates, Replica
from kvnode.cli.quantities import count_text, duration_text, rate_text, size_text
from kvnode.cli.tables import make_summary, make_table, plain

#: The style of a link's state. Each is also told apart by its word, and the bad one by its weight.
_STATE_STYLES = {
    "streaming": "green",
    "connecting": "yellow",
    "catching_up": "yellow",
    "full_sync": "yellow",
    "disconnected": "bold red",
}
_RETENTION_STYLES = {"extended": "yellow", "lost": "bold red"}


#: The lines of the summary that are worth a look every second.
_LIVE = frozenset({"node", "role", "seq", "writes", "reads", "primary", "last error", "full sync", "diverged"})


class _Column(NamedTuple):
    """A column of the table of replicas.

    Attributes:
        cell: what it shows of a replica.
        is_number: whether it is aligned to the right.
        rank: the column with the highest goes first where there is not room for all.
    """

    cell: Callable[[Replica], object]
    is_number: bool = False
    rank: int = 0


_COLUMNS: dict[str, _Column] = {
    "name": _Column(lambda replica: replica.name),
    "address": _Column(lambda replica: replica.address, rank=3),
    "state": _Column(lambda replica: _styled(replica.state, _STATE_STYLES)),
    "sent": _Column(lambda replica: _seq(replica.sent_seq), is_number=True, rank=5),
    "acked": _Column(lambda replica: _seq(replica.acked_seq), is_number=True, rank=4),
    "applied": _Column(lambda replica: _seq(replica.applied_seq), is_number=True, rank=2),
    "lag": _Column(lambda replica: _lag(replica.lag_entries, replica.lag_s, ""), is_number=True),
    "retention": _Column(lambda replica: _styled(replica.retention, _RETENTION_STYLES), rank=1),
}


def summary(status: NodeStatus, url: str) -> Table:
    """Label and text of all but the replicas; what the node does not send is left out."""
    return make_summary(_lines(status, url, None))


def live_view(status: NodeStatus, url: str, rates: Rates | None) -> RenderableType:
    """All that is known of a node, what changes first: a small screen shows the top only.

    Args:
        rates: since the last look, where it is not the first.
    """
    parts: list[RenderableType] = []
    if notice := fenced_notice(status):
        parts.append(notice)
    lines = list(_lines(status, url, rates))
    width = max(len(label) for label, _ in lines)
    parts.append(make_summary((line for line in lines if line[0] in _LIVE), label_columns=width))
    if status.replicas:
        parts += [Text(), ReplicaTable(status.replicas)]
    if rest := [line for line in lines if line[0] not in _LIVE]:
        parts += [Text(), make_summary(rest, label_columns=width)]
    return Group(*parts)


def fenced_notice(status: NodeStatus) -> Text | None:
    """What has to be seen first: that the node takes no writes, as a later primary reigns."""
    return None if status.fenced is None else plain(f"FENCED: {status.fenced}", "bold red")


class ReplicaTable:
    """The replicas, with the columns of which at least one has something, and for which there is room."""

    def __init__(self, replicas: tuple[Replica, ...]) -> None:
        self._replicas = replicas

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = {
            heading: column
            for heading, column in _COLUMNS.items()
            if any(_is_told(column.cell(replica)) for replica in self._replicas)
        }
        table = self._table(columns)
        while _natural_width(console, options, table) > options.max_width:
            heading = max(columns, key=lambda heading: columns[heading].rank)
            if columns[heading].rank == 0:
                break
            del columns[heading]
            table = self._table(columns)
        yield table

    def _table(self, columns: dict[str, _Column]) -> Table:
        rows = [[column.cell(replica) for column in columns.values()] for replica in self._replicas]
        numbers = [heading for heading, column in columns.items() if column.is_number]
        return make_table(list(columns), rows, title="replicas", numbers=numbers)


def _natural_width(console: Console, options: ConsoleOptions, table: Table) -> int:
    """The width at which no cell of a table has to be folded."""
    return Measurement.get(console, options.update(width=10_000), table).maximum


def _lines(status: NodeStatus, url: str, rates: Rates | None) -> Iterator[tuple[str, object]]:
    yield "node", f"{status.name or '?'} at {url}"
    yield "role", status.role or "?"
    if status.cluster_id is not None:
        yield "cluster", status.cluster_id
    if status.epoch is not None:
        yield "epoch", status.epoch
    seqs = {"last": status.last_seq, "durable": status.durable_seq, "applied": status.applied_seq}
    if told := [f"{word} {seq:,}" for word, seq in seqs.items() if seq is not None]:
        yield "seq", ", ".join(told)
    if rates is not None:
        yield "writes", "?" if rates.writes_per_s is None else rate_text(rates.writes_per_s)
        yield "reads", _reads(rates)
    if status.primary is not None:
        yield from _primary_lines(status.primary)
    if status.sync is not None:
        so_far = "" if status.sync.keys is None else f", {count_text(status.sync.keys, 'key')} so far"
        yield "full sync", plain(f"{status.sync.state}{so_far}", "yellow")
    if status.diverged:
        listed = ", ".join(status.diverged)
        yield "diverged", plain(f"entries that its primary does not have are in diverged/: {listed}", "yellow")
    if (log := status.wal) is not None:
        yield "log", f"{_span(log)}, {size_text(log.size_bytes)} in {count_text(log.segments, 'segment')}"
    if (cache := status.cache) is not None:
        yield "cache", f"{count_text(cache.entries, 'entry', 'entries')}, {size_text(cache.size_bytes)}"
        share = f" ({100 * cache.hits / cache.reads:.1f}%)" if cache.reads else ""
        yield "cache hits", f"{cache.hits:,} of {cache.reads:,} reads{share}"
    if status.full_syncs_sent or status.full_syncs_received:
        yield "full syncs", f"{status.full_syncs_sent} sent, {status.full_syncs_received} received"
    if status.uptime_s is not None:
        yield "up for", duration_text(status.uptime_s)
    if status.version is not None:
        yield "version", status.version


def _primary_lines(primary: Primary) -> Iterator[tuple[str, object]]:
    line = plain(f"{primary.address}, ")
    line.append_text(Text("connected", "green") if primary.connected else Text("not connected", "bold red"))
    line.append_text(plain(f", {_lag(primary.lag_entries, primary.lag_s, ' entries behind') or 'lag unknown'}"))
    yield "primary", line
    if primary.error is not None:
        yield "last error", f"{primary.error.message} ({primary.error.code})"


def _reads(rates: Rates) -> str:
    if rates.reads_per_s is None:
        return "?"
    hits = "" if rates.hit_rate is None else f", {100 * rates.hit_rate:.1f}% from the cache"
    return f"{rate_text(rates.reads_per_s)}{hits}"


def _span(log: Log) -> str:
    if log.is_empty:
        return f"empty, the next entry is seq {log.first_seq}"
    first, last = (("?" if seq is None else seq) for seq in (log.first_seq, log.last_seq))
    return f"seq {first} to {last}"


def _styled(word: str | None, styles: dict[str, str]) -> Text | None:
    return None if word is None else plain(word, styles.get(word, ""))


def _seq(seq: int | None) -> str | None:
    return None if seq is None else f"{seq:,}"


def _lag(entries: int | None, seconds: float | None, unit: str) -> str | None:
    if entries is None:
        return None
    return f"{entries:,}{unit}" if seconds is None else f"{entries:,}{unit} ({seconds:.1f} s)"


def _is_told(cell: object) -> bool:
    return cell is not None and cell != ""
