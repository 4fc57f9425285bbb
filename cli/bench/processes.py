"""A benchmark on several processes: each does its share at the same time, and what they measured is added up."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from kvnode.cli.bench.loop import run, run_until_told
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
        KeyboardInterrupt: it was pressed twice, or before the measurement began.
    """
    return run_until_told(Run(plan).run) if plan.processes == 1 else _measure_in_processes(plan)


def _measure_in_processes(plan: Plan) -> tuple[Outcome, bool]:
    # Begun anew instead of forked: nothing of this process's threads and loops is in them.
    context = multiprocessing.get_context("spawn")
    shares: list[tuple[BaseProcess, Connection]] = []
    is_interrupted = False
    try:
        # Starting it lets SIGINT through again, so it has to be there before that is held back.
        resource_tracker.ensure_running()
        for share in range(plan.processes):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_run_share, args=(plan, share, theirs), daemon=True)
            with _interrupts_held_back():
                process.start()
                shares.append((process, ours))
            theirs.close()
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


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep SIGINT from this process for a moment, and from those that are started meanwhile for ever.

    Ctrl-C reaches all processes of a terminal, and the first one says what it means. The others have to be deaf to it
    from their beginning: a handler would be late, as Python starts and imports before.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(pipe: Connection) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise CommandFailed("a process of the benchmark has ended without a result") from None


def _run_share(plan: Plan, share: int, pipe: Connection) -> None:
    """What a process does: its share, when it is told to."""

    async def measured() -> Outcome:
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
            pipe.send(run(measured))
