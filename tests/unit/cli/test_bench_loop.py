"""Ctrl-C in the parts of a benchmark: the first one tells a part to end, the second one breaks it off."""

import asyncio
import signal
import warnings

import pytest

from kvnode.cli.bench.loop import finish, run, run_until_told


def test_ctrl_c_tells_a_part_to_end() -> None:
    async def work(stop: asyncio.Event) -> str:
        signal.raise_signal(signal.SIGINT)
        await stop.wait()
        return "what there is"

    assert run_until_told(work) == ("what there is", True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_part_that_ends_by_itself() -> None:
    async def work(stop: asyncio.Event) -> str:
        return "all"

    assert run_until_told(work) == ("all", False)


def test_ctrl_c_pressed_again_breaks_it_off() -> None:
    is_cleaned_up = False

    async def work(stop: asyncio.Event) -> None:
        nonlocal is_cleaned_up
        signal.raise_signal(signal.SIGINT)
        await stop.wait()
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            is_cleaned_up = True

    with pytest.raises(KeyboardInterrupt):
        run_until_told(work)
    assert is_cleaned_up


def test_ctrl_c_before_it_begins_makes_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    async def work() -> None:
        raise AssertionError("it began")

    monkeypatch.setattr(asyncio.Runner, "run", interrupted)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            run(work)
    assert warned == []


async def test_the_first_error_ends_all() -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    async def lasting() -> None:
        await asyncio.Event().wait()

    working = [asyncio.create_task(lasting()), asyncio.create_task(failing())]
    with pytest.raises(ValueError, match="first"):
        await finish(working, asyncio.Event())
    assert working[0].cancelled()
