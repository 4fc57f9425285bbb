"""How a program uses the client: numbers that cannot be, calls outside the context, and a client that is closed."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvnode.cli.client import Client, Position, Unanswered, Written
from kvnode.cli.errors import ClientClosed
from kvnode.protocol.types import Epoch
from support.stub_server import EPOCH, StubServer


async def read_range(client: Client) -> list[str]:
    return [item.key async for item in client.range()]


CALLS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "/put": lambda client: client.put("a", 1),
    "/read": lambda client: client.get("a"),
    "/readrange": read_range,
    "/status": lambda client: client.status(),
}


@pytest.mark.parametrize(
    "numbers",
    [
        {"timeout_s": math.nan},
        {"timeout_s": math.inf},
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"node_timeout_s": math.nan},
        {"node_timeout_s": 0},
        {"connections": 0},
        {"connections": -1},
        {"retries": -1},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused_at_once(numbers: dict[str, Any]) -> None:
    (name,) = numbers
    with pytest.raises(ValueError, match=f"{name}: "):
        Client(**numbers)


@pytest.mark.parametrize("route", CALLS)
async def test_a_call_outside_the_context_is_a_mistake_of_the_program(route: str) -> None:
    client = Client("127.0.0.1:1")
    with pytest.raises(RuntimeError, match="enter the client first"):
        await CALLS[route](client)
    async with client:
        with pytest.raises(RuntimeError, match="entered already"):
            await client.__aenter__()
    with pytest.raises(RuntimeError, match="enter the client first"):
        await CALLS[route](client)


async def test_a_client_that_was_left_can_be_entered_again() -> None:
    async with StubServer() as stub:
        client = Client(stub.url)
        for seq in (1, 2):
            async with client:
                assert await client.put("a", 1) == Written(Position(Epoch.parse(EPOCH), seq))


async def test_calls_under_way_end_as_client_errors_when_the_client_is_closed() -> None:
    async with StubServer() as stub:
        stub.open.clear()
        async with Client(stub.url, connections=1) as client:
            sent = asyncio.create_task(client.batch({"a": 1}))
            await stub.arrived.acquire()
            waiting = [asyncio.create_task(CALLS[route](client)) for route in ("/put", "/read", "/readrange")]
            # Until these stand in the queue for the only connection.
            for _ in range(10):
                await asyncio.sleep(0)
            begun = asyncio.create_task(client.put("b", 1))
            await asyncio.sleep(0)
        with pytest.raises(Unanswered) as caught:
            await sent
        assert caught.value.maybe_written
        for task in (*waiting, begun):
            with pytest.raises(ClientClosed, match="was closed before the request") as closed:
                await task
            assert not closed.value.maybe_written
        assert len(stub.requests) == 1


async def test_a_call_that_is_cancelled_while_it_waits_stays_cancelled() -> None:
    async with StubServer() as stub:
        stub.open.clear()
        async with Client(stub.url, connections=1) as client:
            sent = asyncio.create_task(client.batch({"a": 1}))
            await stub.arrived.acquire()
            waiting = asyncio.create_task(client.put("b", 1))
            for _ in range(10):
                await asyncio.sleep(0)
            waiting.cancel()
            sent.cancel()
        for task in (waiting, sent):
            with pytest.raises(asyncio.CancelledError):
                await task
