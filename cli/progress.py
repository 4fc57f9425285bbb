"""How far a long command is: a bar on stderr where that is a terminal, nothing where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

#: Called with the bytes and the records that are done since the last call.
Advance: TypeAlias = Callable[[int, int], None]


@contextmanager
def progress(label: str, total_bytes: int | None) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        label: what is being done, one word.
        total_bytes: how much there is to do, None where nobody knows.
    """
    if not sys.stderr.isatty():
        yield lambda size, records: None
        return
    # Only a terminal needs it, and it is slow to import.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TimeElapsedColumn() if total_bytes is None else TimeRemainingColumn(),
        console=Console(stderr=True),
        # What is written to stdout is data and goes where it goes.
        redirect_stdout=False,
    )
    with bar:
        task = bar.add_task(label, total=total_bytes, records=0)
        done = 0

        def advance(size: int, records: int) -> None:
            nonlocal done
            done += records
            bar.update(task, advance=size, records=done)

        yield advance
