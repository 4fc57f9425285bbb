"""`kvnode range`."""

from __future__ import annotations

import asyncio
import shlex
import sys
from contextlib import aclosing

import click

from kvnode.cli.client import Client, RangeItem
from kvnode.cli.client.results import RangeQuery
from kvnode.cli.jsontext import item_text, to_json
from kvnode.cli.options import json_option, nodes_options, text_callback

#: What would break a line of the table, or reach the terminal as a command; each is shown as an escape.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES = {**_CONTROLS, ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}

#: The only control characters that JSON text can hold unescaped are blanks between its tokens, and those from 7F.
_VALUE_BLANKS = bytes.maketrans(b"\t\n\r", b"   ")


@click.command(
    "range",
    epilog="""\b
Examples:
  kvnode range                                    everything
  kvnode range --prefix user/ --limit 10
  kvnode range --start 2024-01 --end 2024-06      both ends are included
  kvnode range --reverse --limit 1                the highest key
  kvnode range --prefix user/ --json | jq -r .key
""",
)
@click.option("--start", callback=text_callback, metavar="KEY", help="Lowest key wanted, included.")
@click.option("--end", callback=text_callback, metavar="KEY", help="Highest key wanted, included.")
@click.option("--prefix", callback=text_callback, default="", metavar="TEXT", help="Only keys that begin with TEXT.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N records; says so if there are more.")
@click.option("--reverse", is_flag=True, help="Highest key first.")
@json_option('Print {"key", "value"}, one record a line.')
@nodes_options
def range_(
    start: str | None,
    end: str | None,
    prefix: str,
    limit: int | None,
    reverse: bool,
    as_json: bool,
    urls: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Print the keys and values of a range, in key order.

    One record a line: the key, a tab, the value as JSON. Keys are ordered by their bytes in UTF-8. All records
    come from one snapshot of the node, and are printed as they arrive.
    """
    query = RangeQuery(start=start, end=end, prefix=prefix, limit=limit, reverse=reverse)
    next_key = asyncio.run(_print_range(query, as_json, urls, timeout_s))
    if next_key is not None:
        option = "--end" if reverse else "--start"
        more = f"more: continue with {option} {shlex.quote(next_key)}"
        click.echo(to_json({"next_key": next_key}) if as_json else more, err=True)


async def _print_range(query: RangeQuery, as_json: bool, urls: tuple[str, ...], timeout_s: float) -> str | None:
    """Print the range; return the first key that its limit left out, or None."""
    # One more than wanted tells whether, and with which key, the range goes on.
    limit = None if query.limit is None else query.limit + 1
    show = _json_line if as_json else _table_line
    out = sys.stdout.buffer
    count = 0
    async with Client(urls, timeout_s=timeout_s, retries=0) as client:
        found = client.range(start=query.start, end=query.end, prefix=query.prefix, limit=limit, reverse=query.reverse)
        async with aclosing(found) as items:
            async for item in items:
                if count == query.limit:
                    return item.key
                out.write(show(item))
                count += 1
    return None


def _json_line(item: RangeItem) -> bytes:
    return item_text(item.key, item.text) + b"\n"


def _table_line(item: RangeItem) -> bytes:
    key = item.key.translate(_ESCAPES).encode("utf-8")
    return b"%b\t%b\n" % (key, item.text.translate(_VALUE_BLANKS))
