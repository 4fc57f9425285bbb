"""`kvnode wal`: the log of a node's data directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvnode.cli.entryjson import entry_line
from kvnode.cli.errors import EXIT_FAILED, CommandFailed
from kvnode.cli.options import json_option
from kvnode.node.fs import RealFs
from kvnode.node.storage.audit import Audit, Checked
from kvnode.node.storage.datadir import DirectoryLock, Layout
from kvnode.node.storage.loglist import ListedSegment, list_log
from kvnode.node.storage.logview import Fault, FaultKind, LogWalk, NoLog, find_log, view_log
from kvnode.node.storage.repair import RepairPlan, apply_repair, plan_repair
from kvnode.node.storage.segment import segment_name

_HEADINGS = ("segment", "first seq", "last seq", "used", "reserved", "epochs", "state")

_NOT_CONSULTED = (
    "not consulted: LevelDB. Opening it would write to db/. Start-up asks it, too, and refuses what looks like a torn "
    "tail here if LevelDB says that the entry was durable"
)

_directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.group(
    epilog="""\b
Examples:
  kvnode wal ls /srv/n1
  kvnode wal dump /srv/n1 --from 1000 | jq -c '{seq, time}'
  kvnode wal verify /srv/n1 && echo sound
  kvnode wal repair /srv/n1
"""
)
def wal() -> None:
    """Look into the log of a node's data directory, check or repair it.

    DIR is the directory that the node was started with (--data). ls, dump and verify also work while the node runs, and
    on a directory of segments that was set aside (wal-old/..., diverged/...). repair wants the node stopped.
    """


@wal.command()
@_directory_argument
@json_option("Print an array of objects.")
def ls(directory: Path, as_json: bool) -> None:
    """List the segments.

    Of each the entries, the bytes used and reserved on disk, the epochs, and whether it is closed or the tail, which is
    written to.
    """
    fs = RealFs()
    segments = list(list_log(fs, find_log(fs, directory)))
    if as_json:
        click.echo(json.dumps([_segment_object(segment) for segment in segments], indent=2))
    elif not segments:
        click.echo("the log has no segments", err=True)
    elif _on_terminal():
        _print_table(segments)
    else:
        rows = [_HEADINGS, *map(_cells, segments)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@wal.command()
@_directory_argument
@click.option("--from", "first", type=click.IntRange(min=1), metavar="SEQ", help="Begin at this entry.")
@click.option("--to", "last", type=click.IntRange(min=1), metavar="SEQ", help="End with this entry.")
@click.option("--skip-damage", is_flag=True, help="Go on with the intact entries behind damage.")
@click.pass_context
def dump(ctx: click.Context, directory: Path, first: int | None, last: int | None, skip_damage: bool) -> None:
    """Print the log's entries as JSON lines.

    Each is {"seq","epoch","time","ops"}; an operation is {"op":"put","key","value"} or {"op":"delete","key"}. Times are
    ISO 8601, UTC, with milliseconds; values stand as they were stored.

    A torn tail ends the output and is told on stderr; damage ends it with exit code 1.
    """
    if first is not None and last is not None and first > last:
        raise click.UsageError("--from is above --to")
    fs = RealFs()
    reader = LogWalk(view_log(fs, find_log(fs, directory)))
    out = sys.stdout.buffer
    for record in reader.records(first, last, skip_damage=skip_damage):
        out.write(entry_line(record.entry))
    out.flush()
    damaged = False
    for fault in reader.faults:
        if fault.kind is FaultKind.TORN_TAIL:
            click.echo(f"note: {fault.path}: offset {fault.offset}: an unfinished write is left out", err=True)
        else:
            damaged = True
            click.echo(f"error: {fault}", err=True)
    if damaged:
        hint = f"look at it with `kvnode wal verify {directory}`"
        click.echo(f"hint: {hint}" if skip_damage else f"hint: {hint}; --skip-damage shows what is behind it", err=True)
        ctx.exit(EXIT_FAILED)


@wal.command()
@_directory_argument
@json_option("Print one object with all that was found.")
@click.pass_context
def verify(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """Check the log and the small files.

    Every byte of the log is looked at, and all files are compared with each other. Exit code 0: all is sound, or the
    log has a torn tail, which start-up cuts off. Exit code 1: something is damaged or missing; each finding names the
    file, the offset, the seq expected there and the reason.
    """
    fs = RealFs()
    place = find_log(fs, directory)
    audit = Audit(fs, place)
    checks = []
    for checked in audit.run():
        checks.append(checked)
        if not as_json:
            click.echo(f"{'ok ' if checked.sound else 'BAD'}  {checked.subject:<24}  {checked.found}")
    if as_json:
        click.echo(json.dumps(_audit_object(audit, checks), indent=2))
    else:
        _print_verdict(audit, directory, is_node=place.layout is not None)
    if not audit.sound:
        ctx.exit(EXIT_FAILED)


@wal.command()
@_directory_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option(
    "--db-lost",
    is_flag=True,
    help="LevelDB (db/) is damaged beyond use: keep of the log what it can be rebuilt from.",
)
def repair(directory: Path, yes: bool, dry_run: bool, db_lost: bool) -> None:
    """Cut the log where start-up refuses it.

    What is cut off, the rest of the damaged segment and all later ones, is kept below wal-old/. LevelDB is not touched:
    the next start goes on with what it holds, or what the log still has, whichever reaches further. The entries that
    neither has are lost; the command says which they may be and asks before it changes anything.

    Damage in old segments whose entries LevelDB holds durably costs nothing: those segments are moved aside instead.
    """
    fs = RealFs()
    layout = Layout(directory)
    if find_log(fs, directory).layout is None or not fs.exists(layout.node):
        raise NoLog(f"{directory}: not a node's data directory: it has no {layout.node.name}")
    with _locked(layout):
        plan = plan_repair(fs, layout, db_lost=db_lost)
        if not plan.needed:
            click.echo("nothing to repair")
            return
        for line in _describe_plan(plan, layout):
            click.echo(line)
        if dry_run:
            return
        if not yes:
            click.confirm("Do this?", abort=True)
        apply_repair(fs, layout, plan)
        if plan_repair(fs, layout, db_lost=db_lost).needed:
            raise CommandFailed("the log is still not whole; run `kvnode wal verify` to see why")
    click.echo(f"done; the log ends at seq {plan.log_last_seq}. The next `kvnode start` goes on from here.")


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    lock = DirectoryLock(layout.lock)
    try:
        yield
    finally:
        lock.release()


# ---- ls ----------------------------------------------------------------------------------------------------------


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _segment_object(segment: ListedSegment) -> dict[str, Any]:
    return {
        "name": segment.name,
        "first_seq": segment.first_seq,
        "last_seq": segment.last_seq,
        "used_bytes": segment.used_bytes,
        "reserved_bytes": segment.reserved_bytes,
        "epochs": None if segment.epochs is None else [str(epoch) for epoch in segment.epochs],
        "state": "tail" if segment.is_tail else "closed",
        "fault": None if segment.fault is None else _fault_object(segment.fault),
    }


def _cells(segment: ListedSegment) -> tuple[str, ...]:
    state = "tail" if segment.is_tail else "closed"
    if segment.fault is not None:
        what = "torn" if segment.fault.kind is FaultKind.TORN_TAIL else "damaged"
        state += f", {what} at offset {segment.fault.offset}"
    return (
        segment.name,
        str(segment.first_seq),
        str(segment.last_seq) if segment.last_seq >= segment.first_seq else "-",
        str(segment.used_bytes),
        str(segment.reserved_bytes),
        "?" if segment.epochs is None else " ".join(map(str, segment.epochs)) or "-",
        state,
    )


def _print_table(segments: Sequence[ListedSegment]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in _HEADINGS:
        is_number = heading in ("first seq", "last seq", "used", "reserved")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for segment in segments:
        style = "red" if segment.fault is not None and segment.fault.kind is not FaultKind.TORN_TAIL else None
        table.add_row(*map(Text, _cells(segment)), style=style)
    Console(highlight=False).print(table)


# ---- verify ------------------------------------------------------------------------------------------------------


def _fault_object(fault: Fault) -> dict[str, Any]:
    return {
        "kind": fault.kind.value,
        "path": str(fault.path),
        "offset": fault.offset,
        "seq": fault.seq,
        "reason": fault.reason,
    }


def _audit_object(audit: Audit, checks: Sequence[Checked]) -> dict[str, Any]:
    return {
        "sound": audit.sound,
        "first_seq": audit.segments[0].first_seq if audit.segments else None,
        "last_seq": audit.last_seq,
        "checkpoint_seq": audit.checkpoint_seq,
        "known_durable_seq": audit.known_durable,
        "torn_tail": None if audit.torn is None else _fault_object(audit.torn),
        "faults": [_fault_object(fault) for fault in audit.faults],
        "files": [{"code": each.code, "message": each.message, "hint": each.hint} for each in audit.problems],
        "checked": [{"subject": each.subject, "found": each.found, "sound": each.sound} for each in checks],
        "not_consulted": ["db"],
    }


def _print_verdict(audit: Audit, directory: Path, *, is_node: bool) -> None:
    for problem in audit.problems:
        click.echo(f"error: {problem.message}")
        if problem.hint:
            click.echo(f"hint: {problem.hint}")
    for fault in audit.faults:
        click.echo(f"error: {fault}")
    if audit.torn is not None:
        click.echo(
            f"torn tail: {audit.torn}. It looks like an unfinished write, which start-up cuts off; a running node "
            "may be just making it"
        )
    if is_node:
        click.echo(_NOT_CONSULTED)
    span = f"seq {audit.segments[0].first_seq} to {audit.last_seq}" if audit.segments else "no segments"
    if audit.sound:
        click.echo(f"sound: {span}" + ("" if audit.torn is None else ", then a torn tail"))
        return
    click.echo(f"NOT SOUND: {len(audit.problems) + len(audit.faults)} of the things checked are wrong")
    if is_node and any(fault.kind is not FaultKind.TIME for fault in audit.faults):
        click.echo(f"hint: `kvnode wal repair --dry-run {directory}` shows what a repair would cost")


# ---- repair ------------------------------------------------------------------------------------------------------


def _describe_plan(plan: RepairPlan, layout: Layout) -> Iterator[str]:
    """What a plan is for, does and costs, line by line."""
    if plan.damage is not None:
        yield f"{'torn tail' if plan.only_torn else 'damage'}: {plan.damage}"
    if plan.only_torn:
        yield "Start-up cuts this off by itself, unless LevelDB says that the entry was durable."
    if plan.damage is not None and plan.damage.kind is FaultKind.EPOCH:
        yield (
            f"If {layout.history} comes from an older copy of the directory, put the right one back instead: the log "
            "may be whole."
        )
    yield "The repair"
    if plan.unneeded:
        yield f"  moves {_segments(plan.unneeded)} to {plan.aside}: damaged or before damage, not needed by LevelDB"
    if plan.cut is not None:
        path = layout.wal / segment_name(plan.cut.first_seq)
        yield f"  copies {path} to {plan.aside}, then cuts it to {plan.cut.offset} bytes"
    if plan.removed:
        yield f"  moves {_segments(plan.removed)} to {plan.aside}"
    yield f"  leaves a log that ends at seq {plan.log_last_seq}" if plan.log_last_seq else "  leaves an empty log"
    if not plan.loses_entries:
        yield "No entry is lost of which anything is known."
        return
    first, last, held = plan.lost_first, plan.lost_last, plan.checkpoint_seq
    yield f"  accepts that entries {first} to {last} are not in the log; damage may hide later ones"
    if held >= last:
        yield f"LevelDB holds the entries up to {held} durably: nothing is lost if {layout.db} is whole."
    elif held >= first:
        safe = f"LevelDB holds the entries up to {held} durably."
        yield f"{safe} LOST: those of {held + 1} to {last} that it does not hold."
    else:
        yield f"LOST: whichever of the entries {first} to {last} LevelDB does not hold."


def _segments(first_seqs: Sequence[int]) -> str:
    if len(first_seqs) == 1:
        return f"segment {segment_name(first_seqs[0])}"
    return f"{len(first_seqs)} segments, {segment_name(first_seqs[0])} to {segment_name(first_seqs[-1])},"
