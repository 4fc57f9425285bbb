"""`kvnode bench`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from kvnode.cli.bench.loop import run, run_until_told
from kvnode.cli.bench.processes import measure
from kvnode.cli.bench.report import BenchReport
from kvnode.cli.bench.runner import Outcome, Plan, clean_up, fill, targets
from kvnode.cli.bench.workload import Distribution, Kind, Workload
from kvnode.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED
from kvnode.cli.jsontext import to_json
from kvnode.cli.options import json_option, nodes_options, text_callback
from kvnode.cli.reporting import warn
from kvnode.cli.tables import make_console
from kvnode.node.config import parse_size
from kvnode.protocol.errors import KvError

_T = TypeVar("_T")

#: What is measured where neither --seconds nor --requests says so.
_SECONDS = 10.0

_DEFAULT_MIX = "put=50,get=50"

#: What deletes the keys that a run left.
_CLEAN_UP_HINT = "run it again with the same options, --cleanup, --no-fill and --requests 1: it deletes what is left"


def _parsed(parse: Callable[[str], _T]) -> Callable[[click.Context, click.Parameter, str], _T]:
    """A callback that takes an option's text for what `parse` makes of it."""

    def callback(ctx: click.Context, param: click.Parameter, text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return callback


def parse_mix(text: str) -> dict[Kind, float]:
    """Read ``put=50,get=45,range=5``; weights are any numbers, and one may be left out: ``get`` alone is ``get=1``.

    Raises:
        ValueError: it is not of that form, or all weights are 0.
    """
    mix: dict[Kind, float] = {}
    for part in text.split(","):
        name, equals, weight_text = (piece.strip() for piece in part.partition("="))
        try:
            kind = Kind(name)
        except ValueError:
            raise ValueError(f"there is no operation {name!r}, only {', '.join(each.value for each in Kind)}") from None
        if kind in mix:
            raise ValueError(f"{name} is there twice")
        try:
            weight = float(weight_text) if equals else 1.0
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            raise ValueError(f"expected a number of at least 0 behind {name}=, got {weight_text!r}")
        mix[kind] = weight
    wanted = {kind: weight for kind, weight in mix.items() if weight}
    if not wanted:
        raise ValueError("all weights are 0")
    return wanted


def parse_sizes(text: str) -> tuple[int, int]:
    """Read ``100``, ``4KiB`` or ``10-1KiB`` as (shortest, longest).

    Raises:
        ValueError: it is not of that form, or the first is above the second.
    """
    first, dash, last = text.partition("-")
    shortest = parse_size(first)
    longest = parse_size(last) if dash else shortest
    if shortest > longest:
        raise ValueError(f"{first} is above {last}")
    return shortest, longest


def _prefix_callback(ctx: click.Context, param: click.Parameter, text: str) -> str | None:
    if not text:
        raise click.BadParameter("without a prefix it would write among your own keys", ctx, param)
    return text_callback(ctx, param, text)


@click.command(
    epilog="""\b
Examples:
  kvnode bench
  kvnode bench --mix get --keys 100000 --distribution zipf --connections 64 --processes 2
  kvnode bench --mix put=50,get=45,range=5 --value-size 10-4KiB --seconds 60 --cleanup
  kvnode bench --mix put --rate 500 --seconds 30      latency at a load that the node has room for
  kvnode bench --url http://127.0.0.1:5001,http://127.0.0.1:5002 --json | jq .all.latency_ms
"""
)
@click.option(
    "--mix",
    callback=_parsed(parse_mix),
    default=_DEFAULT_MIX,
    show_default=True,
    metavar="NAME=WEIGHT,...",
    help="Operations and how often each is chosen: put, get, delete, batch, range.",
)
@click.option(
    "--keys",
    type=click.IntRange(1, 2_000_000_000),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Number of different keys.",
)
@click.option(
    "--prefix",
    callback=_prefix_callback,
    default="bench/",
    show_default=True,
    metavar="TEXT",
    help="What all keys begin with.",
)
@click.option(
    "--key-size",
    "key_bytes",
    callback=_parsed(parse_size),
    default="24",
    show_default=True,
    metavar="SIZE",
    help="Length of a key, with its prefix.",
)
@click.option(
    "--value-size",
    "value_bytes",
    callback=_parsed(parse_sizes),
    default="100",
    show_default=True,
    metavar="SIZE|MIN-MAX",
    help="Length of a value, the characters of a string.",
)
@click.option(
    "--distribution",
    type=click.Choice([each.value for each in Distribution]),
    default=Distribution.UNIFORM.value,
    show_default=True,
    help="uniform: all keys alike. zipf: few keys most of the time, with the exponent 0.99.",
)
@click.option(
    "--batch-size",
    "batch_items",
    type=click.IntRange(1, 100_000),
    default=10,
    show_default=True,
    metavar="N",
    help="Puts in a batch.",
)
@click.option(
    "--range-size",
    "range_items",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    metavar="N",
    help="Most items of a range read.",
)
@click.option(
    "-c",
    "--connections",
    type=click.IntRange(1, 10_000),
    default=16,
    show_default=True,
    metavar="N",
    help="Connections, each with one request in flight.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that the connections are spread over.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help=f"How long to measure.  [default: {_SECONDS:g}, without --requests]",
)
@click.option("--requests", type=click.IntRange(1), metavar="N", help="How many requests to measure.")
@click.option(
    "--warmup",
    "warmup_s",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Do the same for so long before, unmeasured.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Begin so many requests a second, whatever becomes of those before.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, metavar="N", help="Runs with the same one ask the same."
)
@click.option(
    "--fill/--no-fill",
    "is_filled",
    default=None,
    help="Write all keys once before.  [default: where the mix has a get or a range]",
)
@click.option(
    "--cleanup", is_flag=True, help="Delete the keys at the end, also those of earlier runs with the same options."
)
@json_option("Print one object with all numbers.")
@nodes_options
@click.pass_context
def bench(ctx: click.Context, /, as_json: bool, cleanup: bool, is_filled: bool | None, **options: Any) -> None:
    """Measure how fast a node answers.

    It puts, gets, deletes and reads ranges of keys of its own, all of which begin with --prefix, in the proportions of
    --mix, and shows the throughput and the latencies. Other keys are left alone. --url may name several
    nodes, primary or replica, separated by commas; the connections are spread over them.

    \b
    Without --rate   every connection sends its next request when the last one is answered: this shows
                     the throughput. Its latencies look better than what users of a busy node meet,
                     as a slow answer also holds back the requests that would have come meanwhile.
    With --rate      requests are begun by the clock. Latencies count from when a request was due, also
                     where it had to wait for a connection: a stall of the node shows in all requests
                     that it delayed (no "coordinated omission").

    Percentiles are at most 0.8% too high, never too low; the maximum is exact. A key that is not there is an answer
    like any other. A failed request is counted by its code and not among the latencies; its connection then
    rests for 50 ms. Nothing is sent twice.

    This client is a Python program: its own time is in every latency, and one process of it takes a core for some
    thousand requests a second, less than a node can answer. The report says how busy it was. Where that is
    near 100%, use --processes, a machine of its own, or a tool in C such as wrk to find the node's limit.

    Ctrl-C ends it early, with the results so far and exit code 130; with --cleanup the keys are deleted then. Pressed
    again it breaks off what is being done, and says if keys are left. Exit code 1: a request failed.
    """
    plan = _plan(**options)
    if is_filled is None:
        is_filled = not plan.workload.mix.keys().isdisjoint({Kind.GET, Kind.RANGE})
    nodes = run(partial(_look, plan))
    try:
        outcome, is_interrupted = _measured(plan, is_filled)
    except KeyboardInterrupt:
        if cleanup:
            _tell_left(ctx, plan)
        raise
    deleted: int | None = None
    not_deleted: KvError | None = None
    is_left = False
    if cleanup:
        _tell("deleting the keys ...")
        # Whatever ends it, the results are shown: they cannot be had again.
        try:
            deleted, is_left = run_until_told(partial(clean_up, plan))
        except KvError as error:
            error.hint = _CLEAN_UP_HINT
            not_deleted = error
        except KeyboardInterrupt:
            is_left = True
    report = BenchReport(plan, nodes, outcome, is_interrupted=is_interrupted, deleted=deleted)
    if as_json:
        click.echo(to_json(report.to_json()))
    else:
        console = make_console()
        for part in report.parts():
            console.print(part)
    if not_deleted is not None:
        raise not_deleted
    if is_left:
        _tell_left(ctx, plan)
    if is_interrupted or is_left:
        ctx.exit(EXIT_INTERRUPTED)
    if report.has_errors:
        ctx.exit(EXIT_FAILED)


def _measured(plan: Plan, is_filled: bool) -> tuple[Outcome, bool]:
    """What was measured, after all keys were written where that is wanted; and whether Ctrl-C ended it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed again.
    """
    if is_filled:
        _tell(f"writing {plan.workload.keys:,} keys ...")
        try:
            _, is_interrupted = run_until_told(partial(fill, plan))
        except KvError as error:
            way_out = "--no-fill leaves out to write all keys once before the measurement"
            error.hint = f"{way_out}; {error.hint}" if error.hint else way_out
            raise
        if is_interrupted:
            return Outcome.of_nothing(plan.workload), True
    _tell("measuring; Ctrl-C ends it with the results so far ...")
    return measure(plan)


def _tell_left(ctx: click.Context, plan: Plan) -> None:
    warn(ctx, "interrupted", f"keys that begin with {plan.workload.prefix} may be left", hint=_CLEAN_UP_HINT)


def _plan(
    *,
    urls: tuple[str, ...],
    timeout_s: float,
    connections: int,
    processes: int,
    seconds: float | None,
    requests: int | None,
    warmup_s: float,
    rate: float | None,
    distribution: str,
    **workload: Any,
) -> Plan:
    """The plan of the options.

    Raises:
        click.UsageError: they contradict each other.
    """
    if processes > connections:
        raise click.UsageError(f"--processes {processes} is more than --connections {connections}")
    try:
        asked = Workload(distribution=Distribution(distribution), **workload)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return Plan(
        urls=urls,
        workload=asked,
        connections=connections,
        seconds=_SECONDS if seconds is None and requests is None else seconds,
        requests=requests,
        warmup_s=warmup_s,
        rate=rate,
        timeout_s=timeout_s,
        processes=processes,
    )


async def _look(plan: Plan) -> list[dict[str, object]]:
    """What each node is; raises what the client does where one does not answer."""
    async with targets(plan, range(min(plan.connections, len(plan.urls)))) as by_number:
        return [await target.describe() for target in by_number.values()]


def _tell(what: str) -> None:
    """Say what takes a while, to somebody who is there."""
    if sys.stderr.isatty():
        click.echo(what, err=True)
