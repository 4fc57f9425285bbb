"""The front under test, on uvloop and on asyncio: where the network is involved, both have to behave."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from support.rest_rig import MakeRig, RestRig, make_rig_config


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
async def make_rig(caplog: pytest.LogCaptureFixture) -> AsyncIterator[MakeRig]:
    """Starts fronts: `await make_rig(stall_timeout_s=1.0, max_key_bytes=10)`.

    At the end, nothing may be left open, and nothing may have been logged by anything but the front's own event log.
    """
    caplog.set_level(logging.DEBUG)
    rigs: list[RestRig] = []
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def make(**options: Any) -> RestRig:
        timeouts = {
            name: options.pop(name) for name in list(options) if name.endswith("_timeout_s") or name == "max_surplus"
        }
        rig = RestRig(make_rig_config(**options), **timeouts)
        rigs.append(rig)
        await rig.start()
        return rig

    yield make
    for rig in rigs:
        await rig.front.close(5.0)
        assert rig.store.open_ranges == 0
        assert rig.held_bytes == 0
    assert complaints == []
    assert [record for record in caplog.records if record.name != "asyncio" or record.levelno > logging.INFO] == []


@pytest.fixture
async def rig(make_rig: MakeRig) -> AsyncIterator[RestRig]:
    """A front with the default settings, which must not log anything."""
    started = await make_rig()
    yield started
    assert started.log.events == []
