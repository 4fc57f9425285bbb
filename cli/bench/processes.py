"""A benchmark on several processes: each does its share at the same time, and what they measured is added up."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import uvloop

from kvnode.cli.bench.runner import Outcome, Plan, Run
from kvnode.cli.errors import CommandFailed

#: What goes over the pipes besides the outcome: a process has started, it may begin, it is to end.
_READY, _GO, _STOP = "ready", "go", "stop"

#: How long a process may take to end once it was told to.
_END_S = 5.0


def measure(plan: Plan) -> tuple[Outcome, bool]:
    """Run a benchmark until it is done, or until Ctrl-C.

    Returns:
        (what was measured, whether Ctrl-C ended it)

    Raises:
        CommandFailed: a process ended without a result.
    """
    return _measure_here(plan) if plan.processes == 1 else _measure_in_processes(plan)


def _measure_here(plan: Plan) -> tuple[Outcome, bool]:
    async def run() -> tuple[Outcome, bool]:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def interrupt() -> None:
            stop.set()
            # Whoever presses it again does not want to wait for the results.
            loop.remove_signal_handler(signal.SIGINT)

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            outcome = await Run(plan).run(stop)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        return outcome, stop.is_set()

    return uvloop.run(run())


def _measure_in_processes(plan: Plan) -> tuple[Outcome, bool]:
    # Begun anew instead of forked: nothing of this process's threads and loops is in them.
    context = multiprocessing.get_context("spawn")
    shares: list[tuple[BaseProcess, Connection]] = []
    is_interrupted = False
    try:
        for share in range(plan.processes):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_run_share, args=(plan, share, theirs), daemon=True)
            process.start()
            theirs.close()
            shares.append((process, ours))
        for _, pipe in shares:
            _receive(pipe)
        for _, pipe in shares:
            pipe.send(_GO)
        try:
            for _, pipe in shares:
                pipe.poll(None)
        except KeyboardInterrupt:
            is_interrupted = True
            for _, pipe in shares:
                # One that has just ended reads it no more.
                with suppress(BrokenPipeError):
                    pipe.send(_STOP)
        first, *others = [_receive(pipe) for _, pipe in shares]
    finally:
        for process, pipe in shares:
            pipe.close()
            process.join(_END_S if not is_interrupted else 1.0)
            if process.is_alive():
                process.kill()
    assert isinstance(first, Outcome)
    for other in others:
        assert isinstance(other, Outcome)
        first.add(other)
    return first, is_interrupted


def _receive(pipe: Connection) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise CommandFailed("a process of the benchmark has ended without a result") from None


def _run_share(plan: Plan, share: int, pipe: Connection) -> None:
    """What a process does: its share, when it is told to."""
    # Ctrl-C reaches all processes of a terminal; the first one says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def run() -> Outcome:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def told() -> None:
            # It is told to stop, or the first process is gone.
            loop.remove_reader(pipe.fileno())
            stop.set()

        loop.add_reader(pipe.fileno(), told)
        try:
            return await Run(plan, share).run(stop)
        finally:
            loop.remove_reader(pipe.fileno())

    with suppress(EOFError, BrokenPipeError):
        pipe.send(_READY)
        if pipe.recv() == _GO:
            pipe.send(uvloop.run(run()))
