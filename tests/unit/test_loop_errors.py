"""What nobody has caught on the node's loop, uvloop's or asyncio's own, is an event of its log."""

import asyncio
import gc
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from kvnode.node import service
from kvnode.node.config import Address, Config
from kvnode.node.errors import JoinRefused
from kvnode.node.eventlog import open_event_log
from support.simulated_node import DATA, Machine

ON_BOTH_LOOPS = True

PRIMARY = Address("127.0.0.1", 1)


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """The process's logger, put back after the test."""
    logger = logging.getLogger("kvnode")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


async def raised_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def left_in_a_future() -> None:
    asyncio.get_running_loop().create_future().set_exception(ZeroDivisionError("two\nlines"))
    gc.collect()


@pytest.mark.parametrize("work", [raised_in_a_callback, left_in_a_future])
async def test_each_is_one_event(work: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    async def join(*_: object) -> None:
        await work()
        raise JoinRefused("wrong_cluster", "the start ends here", None)

    monkeypatch.setattr(service, "join", join)
    stream = io.StringIO()
    log = open_event_log("json", stream)
    assert await service._serve(Config(data=DATA), Machine.new().disk, PRIMARY, log) == 1
    event, refusal = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert refusal["event"] == "start_refused"
    assert (event["event"], event["level"]) == ("loop_error", "error")
    assert event["reason"]
    assert "ZeroDivisionError" in event["traceback"]
    assert capfd.readouterr() == ("", "")


async def test_a_context_with_nothing_but_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async def join(*_: object) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "something is odd"})
        raise JoinRefused("wrong_cluster", "the start ends here", None)

    monkeypatch.setattr(service, "join", join)
    stream = io.StringIO()
    await service._serve(Config(data=DATA), Machine.new().disk, PRIMARY, open_event_log("text", stream))
    line = stream.getvalue().splitlines()[0]
    assert line.endswith('level=error event=loop_error reason="something is odd" source=-')
