"""Replication's shells, on uvloop and on asyncio: where the network is involved, both have to behave."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from kvnode.node.replication import survey as survey_module


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
async def complaints(caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[dict[str, Any]]]:
    """What callbacks of the loop raised; a test that expects some clears it."""
    caplog.set_level(logging.DEBUG)
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    yield found
    assert found == []
    assert [record for record in caplog.records if record.name != "asyncio" or record.levelno > logging.INFO] == []


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens what a promotion waits for members that do not answer."""
    monkeypatch.setattr(survey_module, "_ANSWER_S", 0.3)
