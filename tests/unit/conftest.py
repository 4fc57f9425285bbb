"""Tests of the network run on uvloop, which the node uses, and on asyncio's own loop: both have to behave."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Function) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both for modules that say ``ON_BOTH_LOOPS = True``; whole folders say so in their own conftest."""
    if getattr(item.module, "ON_BOTH_LOOPS", False):
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
