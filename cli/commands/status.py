"""`kvnode status`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from kvnode.cli.client import Client, Status
from kvnode.cli.options import json_option, node_options
from kvnode.cli.tables import make_console, make_table

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

#: Columns of the table of replicas: heading, and the member that each shows. `lag` is made of two.
_REPLICA_COLUMNS = {
    "name": "name",
    "address": "address",
    "state": "state",
    "sent": "sent_seq",
    "acked": "acked_seq",
    "applied": "applied_seq",
    "lag": "lag_entries",
    "retention": "retention",
}


@click.command(
    epilog="""\b
Examples:
  kvnode status
  kvnode status --url http://127.0.0.1:5002
  kvnode status --json | jq .applied_seq
"""
)
@json_option("Print the node's own JSON object.")
@node_options
def status(as_json: bool, url: str, timeout_s: float) -> None:
    """Show how a node is doing.

    Its role and epoch, how far its log is durable and applied, what its log and cache hold, and its
    replicas or its primary. A primary that a later one has replaced says so first, as FENCED: it takes no writes.
    """
    answer = asyncio.run(_status(url, timeout_s))
    if as_json:
        click.echo(answer.text)
        return
    console = make_console()
    if fenced := answer.fields.get("fenced"):
        console.print(Text(f"FENCED: {fenced}", style="bold red"))
    console.print(_summary(answer.fields, url))
    if answer.fields.get("replicas"):
        console.print(_replicas(answer.fields["replicas"]))


async def _status(url: str, timeout_s: float) -> Status:
    async with Client(url, timeout_s=timeout_s) as client:
        return await client.status()


def _summary(fields: dict[str, Any], url: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in _lines(fields, url):
        # As plain text: what a node sends is no markup.
        table.add_row(label, Text(text))
    return table


def _lines(fields: dict[str, Any], url: str) -> Iterator[tuple[str, str]]:
    """The summary's lines; what a node of another version does not send is left out."""
    yield "node", f"{fields.get('name', '?')} at {url}"
    yield "role", str(fields.get("role", "?"))
    for label, name in (("cluster", "cluster_id"), ("epoch", "epoch")):
        if name in fields:
            yield label, str(fields[name])
    seqs = [
        f"{word} {fields[name]:,}"
        for word, name in (("last", "last_seq"), ("durable", "durable_seq"), ("applied", "applied_seq"))
        if name in fields
    ]
    if seqs:
        yield "seq", ", ".join(seqs)
    if primary := fields.get("primary"):
        link = "connected" if primary.get("connected") else "not connected"
        yield "primary", f"{primary.get('address', '?')}, {link}, {_lag(primary)}"
        if error := primary.get("error"):
            yield "last error", f"{error.get('message', '?')} ({error.get('code', '?')})"
    if sync := fields.get("sync"):
        so_far = f", {_count(sync['keys'], 'key')} so far" if "keys" in sync else ""
        yield "full sync", f"{sync.get('state', 'under way')}{so_far}"
    if diverged := fields.get("diverged"):
        yield "diverged", f"entries that its primary does not have are in diverged/: {', '.join(map(str, diverged))}"
    if wal := fields.get("wal"):
        yield "log", f"{_span(wal)}, {_size(wal.get('bytes', 0))} in {_count(wal.get('segments', 0), 'segment')}"
    if cache := fields.get("cache"):
        yield "cache", f"{_count(cache.get('entries', 0), 'entry', 'entries')}, {_size(cache.get('bytes', 0))}"
        yield "cache hits", _hit_rate(cache.get("hits", 0), cache.get("misses", 0))
    syncs = fields.get("full_syncs_sent", 0), fields.get("full_syncs_received", 0)
    if any(syncs):
        yield "full syncs", f"{syncs[0]} sent, {syncs[1]} received"
    if "uptime_s" in fields:
        yield "up for", _duration(fields["uptime_s"])
    if "version" in fields:
        yield "version", str(fields["version"])


def _span(wal: dict[str, Any]) -> str:
    first, last = wal.get("first_seq", "?"), wal.get("last_seq", "?")
    # Of a node that is new, or fresh from a full sync.
    is_empty = type(first) is int and type(last) is int and last < first
    return f"empty, the next entry is seq {first}" if is_empty else f"seq {first} to {last}"


def _replicas(replicas: list[dict[str, Any]]) -> Table:
    """The replicas, with the columns of which at least one has something."""
    columns = {
        heading: name for heading, name in _REPLICA_COLUMNS.items() if any(name in replica for replica in replicas)
    }
    rows = [[_cell(replica, heading, name) for heading, name in columns.items()] for replica in replicas]
    return make_table(list(columns), rows, title="replicas")


def _cell(replica: dict[str, Any], heading: str, name: str) -> object:
    value = replica.get(name)
    if type(value) is not int:
        return value
    return _lag(replica, "") if heading == "lag" else f"{value:,}"


def _lag(link: dict[str, Any], unit: str = " entries behind") -> str:
    entries, seconds = link.get("lag_entries"), link.get("lag_s")
    behind = "lag unknown" if entries is None else f"{entries:,}{unit}"
    return behind if seconds is None else f"{behind} ({seconds:.1f} s)"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _hit_rate(hits: int, misses: int) -> str:
    rate = f" ({100 * hits / (hits + misses):.1f}%)" if hits + misses else ""
    return f"{hits:,} of {hits + misses:,} reads{rate}"


def _size(number: float) -> str:
    unit = 0
    while number >= 1024 and unit + 1 < len(_UNITS):
        number /= 1024
        unit += 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{number:.0f} B"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))]
    while len(parts) > 1 and parts[0].startswith("0 "):
        del parts[0]
    return " ".join(parts[:2])
