"""Noticing that nobody reads stdout any more."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvnode.cli.errors import CommandFailed
from kvnode.cli.outlet import ended_with_reader


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Make stdout a pipe; the descriptors of its ends, the reading one first, which a test may close."""
    reading, writing = os.pipe()
    with monkeypatch.context() as patch, os.fdopen(writing, "w") as out:
        patch.setattr(sys, "stdout", out)
        yield reading, writing


async def wait_for_ever() -> None:
    with ended_with_reader():
        await asyncio.Event().wait()


async def test_a_reader_that_leaves_breaks_off_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as (reading, _):
        waiting = asyncio.create_task(wait_for_ever())
        await asyncio.sleep(0)
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            await waiting


async def test_a_reader_that_had_left_before_breaks_it_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as (reading, _):
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            await wait_for_ever()


async def test_another_cancellation_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as (reading, _):
        waiting = asyncio.create_task(wait_for_ever())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        os.close(reading)


async def test_a_full_pipe_is_no_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as (reading, writing):
        os.set_blocking(writing, False)
        with ended_with_reader():
            # More than a pipe holds.
            os.write(writing, bytes(1024 * 1024))
            with pytest.raises(BlockingIOError):
                os.write(writing, b"x")
            # What the descriptor has to say is heard in a turn of the loop.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        os.close(reading)


async def test_a_block_that_ends_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as (reading, writing):
        with ended_with_reader():
            pass
        assert not asyncio.get_running_loop().remove_reader(writing)
        with pytest.raises(KeyError), ended_with_reader():
            raise KeyError
        os.close(reading)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_without_a_stdout_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(CommandFailed, match="stdout is closed"), ended_with_reader():
            pass
