"""Connections beyond the limit: refused, open to operators, bounded in number, and never in the way of others."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from support.rest_rig import MakeRig, RestRig, Wire

PUT = b'{"key":"a","value":1}'


async def fill(rig: RestRig, stack: AsyncExitStack, count: int) -> list[Wire]:
    """So many connections that are served."""
    wires = [await stack.enter_async_context(rig.connect()) for _ in range(count)]
    for wire in wires:
        assert (await wire.ask("GET", "/health")).status == 200
    return wires


async def until_open(rig: RestRig, count: int) -> None:
    """Return when so many connections are open."""
    while rig.front.connection_count != count:  # noqa: ASYNC110 - the front tells nobody
        await asyncio.sleep(0)


async def test_one_past_the_limit_is_refused(make_rig: MakeRig) -> None:
    rig = await make_rig(max_connections=2)
    async with AsyncExitStack() as stack:
        served = await fill(rig, stack, 2)
        surplus = await stack.enter_async_context(rig.connect())
        answer = await surplus.ask("POST", "/put", PUT)
        assert answer.status == 503
        assert (answer.error["code"], answer.error["limit"], answer.error["max"]) == (
            "overloaded",
            "max_connections",
            2,
        )
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
        assert await surplus.at_end()
        for wire in served:
            # The second time by the fast path.
            for _ in range(2):
                assert (await wire.ask("POST", "/put", PUT)).status == 200
    route = rig.front.counters.routes["/put"]
    assert (route.statuses, route.errors, sum(route.counts)) == ({503: 1}, {"overloaded": 1}, 5)


@pytest.mark.parametrize("path", ["/health", "/ready", "/primary", "/metrics", "/status", "/status?"])
async def test_operators_get_in_for_one_request(make_rig: MakeRig, path: str) -> None:
    rig = await make_rig(max_connections=1)
    async with AsyncExitStack() as stack:
        await fill(rig, stack, 1)
        wire = await stack.enter_async_context(rig.connect())
        answer = await wire.ask("GET", path)
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert await wire.at_end()


async def test_a_place_is_given_back(make_rig: MakeRig) -> None:
    rig = await make_rig(max_connections=1)
    for _ in range(3):
        async with rig.connect() as wire:
            assert (await wire.ask("POST", "/put", PUT)).status == 200
            assert (await rig.ask("GET", "/read/a")).status == 503
        await until_open(rig, 0)


async def test_a_refused_head_has_no_body_and_a_body_is_read_off(make_rig: MakeRig) -> None:
    rig = await make_rig(max_connections=1)
    async with AsyncExitStack() as stack:
        await fill(rig, stack, 1)
        head = await stack.enter_async_context(rig.connect())
        assert (await head.ask("HEAD", "/read/a")).status == 503
        assert await head.at_end()
        large = await stack.enter_async_context(rig.connect())
        large.request("POST", "/put", b"x" * 1_000_000)
        assert (await large.answer()).status == 503
        assert await large.at_end()


async def test_a_flood_is_answered_and_bounded(make_rig: MakeRig) -> None:
    rig = await make_rig(max_connections=1, max_surplus=20)
    async with AsyncExitStack() as stack:
        (served,) = await fill(rig, stack, 1)
        seen: list[int] = []
        answered: list[int] = []

        async def flood() -> None:
            async with rig.connect() as wire:
                try:
                    answered.append((await wire.ask("GET", "/read/a")).status)
                except (asyncio.IncompleteReadError, ConnectionError):
                    # It was turned out before its request was read.
                    return
                finally:
                    seen.append(rig.front.admission.surplus)

        await asyncio.gather(*(flood() for _ in range(200)))
        assert set(answered) == {503}
        most = max(seen)
        # The one that is to be turned out is lost a turn after the one that comes.
        assert 0 < most < 200
        assert (await served.ask("POST", "/put", PUT)).status == 200
        await until_open(rig, 1)
        assert not rig.front.admission._doorways
        assert not rig.front.admission._asking


async def test_a_stop_ends_the_surplus(make_rig: MakeRig) -> None:
    rig = await make_rig(max_connections=1)
    async with AsyncExitStack() as stack:
        await fill(rig, stack, 1)
        silent = await stack.enter_async_context(rig.connect())
        await until_open(rig, 2)
        await rig.front.close(5.0)
        assert await silent.at_end()
    await until_open(rig, 0)
