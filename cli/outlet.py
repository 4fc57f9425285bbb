"""The far end of stdout: noticing that whoever read it has left, also while there is nothing to write."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kvnode.cli.errors import CommandFailed


@contextmanager
def ended_with_reader() -> Iterator[None]:
    """Break the block off with BrokenPipeError as soon as stdout is a pipe that nobody reads any more.

    Writing to it fails by itself. But a command that follows something quiet, with `head` behind it, would otherwise
    stay until something happens. It works where the block awaits something.

    Raises:
        CommandFailed: there is no stdout.
    """
    if sys.stdout is None:
        raise CommandFailed("stdout is closed")
    fd = _pipe_fd()
    if fd is None:
        yield
        return
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    has_left = False

    def look() -> None:
        nonlocal has_left
        loop.remove_reader(fd)
        if _is_broken(fd):
            has_left = True
            task.cancel()

    # For a pipe's writing end, becoming readable stands for its breaking.
    loop.add_reader(fd, look)
    try:
        yield
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        raise
    finally:
        loop.remove_reader(fd)


def _pipe_fd() -> int | None:
    """The descriptor of stdout, if it is a pipe."""
    try:
        fd = sys.stdout.fileno()
    except io.UnsupportedOperation:
        return None
    return fd if stat.S_ISFIFO(os.fstat(fd).st_mode) else None


def _is_broken(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
