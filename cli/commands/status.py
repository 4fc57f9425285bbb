"""`kvnode status`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kvnode.cli.client import Client, Status
from kvnode.cli.errors import Unanswered, Unreachable
from kvnode.cli.jsontext import to_json
from kvnode.cli.nodestatus import read_status
from kvnode.cli.options import Seconds, json_option, nodes_options
from kvnode.cli.outlet import ended_with_reader
from kvnode.cli.quantities import duration_text
from kvnode.cli.statusview import ReplicaTable, fenced_notice, live_view, summary
from kvnode.cli.tables import make_console, plain
from kvnode.cli.terminal import restored_at_end
from kvnode.cli.watching import Look, looks

_INTERVAL_S = 2.0


@click.command(
    epilog="""\b
Examples:
  kvnode status
  kvnode status --url http://127.0.0.1:5002
  kvnode status --json | jq .applied_seq
  kvnode status --watch
  kvnode status --watch --interval 1 --json | jq -c '[.watch.time, .watch.writes_per_s]'
"""
)
@click.option("-w", "--watch", is_flag=True, help="Show it again and again, with rates, until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=Seconds(min=0.1),
    metavar="SECONDS",
    help=f"Time from one look of --watch to the next.  [default: {_INTERVAL_S:g}]",
)
@json_option("Print the node's own JSON object; with --watch one a line.")
@nodes_options
def status(watch: bool, interval_s: float | None, as_json: bool, urls: tuple[str, ...], timeout_s: float) -> None:
    """Show how a node is doing.

    Its role and epoch, how far its log is durable and applied, what its log and cache hold, and its
    replicas or its primary. Of several nodes, the first that answers is shown. A primary that a later one has
    replaced says so first, as FENCED: it takes no writes.

    With --watch it is a table that stays and is kept up to date. It also shows what has happened since the last look:
    the entries written to the log a second (a batch is one entry), the keys read a second, and how many of those the
    cache answered. A node that does not answer is said to be unreachable, since when and why, and asked on. Where
    stdout is no terminal, every look is printed: as a block of lines, or with --json as a line. That is the node's
    object with one member more, "watch": {"time", "reachable", "seconds", "writes_per_s", "reads_per_s", "hit_rate"};
    of a node that does not answer, only {"watch": {"time", "reachable", "since", "error"}}.

    Ctrl-C ends --watch with exit code 130, as a shell has it for every command that it ends.
    """
    if not watch:
        if interval_s is not None:
            raise click.UsageError("--interval is for --watch")
        _print(asyncio.run(_ask(urls, timeout_s)), as_json)
        return
    if len(urls) != 1:
        raise click.UsageError("--watch is about one node, as its rates are: name that one with --url")
    asyncio.run(_watch(urls[0], timeout_s, _INTERVAL_S if interval_s is None else interval_s, as_json))


async def _ask(urls: tuple[str, ...], timeout_s: float) -> Status:
    async with Client(urls, timeout_s=timeout_s) as client:
        return await client.status()


def _print(answer: Status, as_json: bool) -> None:
    if as_json:
        click.echo(answer.text)
        return
    node = read_status(answer.fields)
    console = make_console()
    if notice := fenced_notice(node):
        console.print(notice)
    console.print(summary(node, answer.url))
    if node.replicas:
        console.print(ReplicaTable(node.replicas))


# ---- --watch -------------------------------------------------------------------------------------------------------


async def _watch(url: str, timeout_s: float, interval_s: float, as_json: bool) -> None:
    async with Client(url, timeout_s=timeout_s) as client:
        with ended_with_reader():
            async with aclosing(looks(client, interval_s)) as seen:
                console = make_console()
                if as_json:
                    await _print_lines(seen)
                elif console.is_terminal and not console.is_dumb_terminal:
                    await _show(seen, url, interval_s, console)
                else:
                    await _print_blocks(seen, url, console)


async def _print_lines(seen: AsyncIterator[Look]) -> None:
    async for look in seen:
        sys.stdout.write(to_json(look.to_json()).decode() + "\n")
        sys.stdout.flush()


async def _print_blocks(seen: AsyncIterator[Look], url: str, console: Console) -> None:
    async for look in seen:
        console.print(plain(look.when.astimezone().isoformat(sep=" ", timespec="seconds"), "bold"))
        console.print(_view(look, url))
        console.print()
        sys.stdout.flush()


async def _show(seen: AsyncIterator[Look], url: str, interval_s: float, console: Console) -> None:
    """Keep the screen up to date; leave the terminal as it was."""
    # The screen is drawn when there is something new, by this thread alone.
    live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with restored_at_end(resized=live.refresh), live:
        async for look in seen:
            clock = f"{look.when.astimezone():%H:%M:%S}, every {interval_s:g} s, Ctrl-C ends it"
            live.update(Group(Text(clock, style="dim", no_wrap=True), Text(), _view(look, url)), refresh=True)


def _view(look: Look, url: str) -> RenderableType:
    return Group(*_parts(look, url))


def _parts(look: Look, url: str) -> Iterator[RenderableType]:
    if look.error is not None:
        assert look.silent_since is not None
        since = f"{look.silent_since.astimezone():%H:%M:%S}"
        lasting = duration_text((look.when - look.silent_since).total_seconds())
        what = "UNREACHABLE" if isinstance(look.error, Unreachable | Unanswered) else "NO STATUS"
        yield plain(f"{what}: {url}, since {since}, for {lasting}", "bold red")
        yield plain(f"{look.error.message} ({look.error.code})", "red")
        if look.error.hint:
            yield plain(f"hint: {look.error.hint}")
        if look.status is None:
            return
        yield Text("\nThis is what it said last:")
    node = look.status
    assert node is not None
    yield live_view(node, url, look.rates)
