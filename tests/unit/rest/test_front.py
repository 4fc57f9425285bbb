"""Listening, stopping and closing."""

import asyncio
import contextlib

import pytest

from kvnode.node.api import Record, WriteResult
from kvnode.node.config import Address
from support.rest_rig import MakeRig, RestRig, make_rig_config

PUT = b'{"key":"k","value":1}'


async def test_start_tells_the_port_that_the_kernel_chose(rig: RestRig) -> None:
    assert rig.address.host == "127.0.0.1"
    assert rig.address.port > 0
    assert (await rig.ask("GET", "/health")).status == 200


async def test_an_ipv6_address(make_rig: MakeRig) -> None:
    try:
        rig = await make_rig(http=Address("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    assert rig.address.host == "::1"
    assert (await rig.ask("GET", "/health")).status == 200


async def test_a_taken_port_is_an_os_error(rig: RestRig) -> None:
    second = RestRig(make_rig_config(http=rig.address))
    with pytest.raises(OSError, match="in use"):
        await second.start()
    second.front.stop_accepting()
    await second.front.close(1.0)


async def test_a_port_can_be_taken_again_at_once(make_rig: MakeRig) -> None:
    first = await make_rig()
    async with first.connect() as wire:
        assert (await wire.ask("GET", "/health")).status == 200
        # The server's side closes first, so its side of the connection stays in TIME_WAIT.
        await first.front.close(1.0)
        assert await wire.at_end()
    second = await make_rig(http=first.address)
    assert second.address == first.address
    assert (await second.ask("GET", "/health")).status == 200


async def test_no_new_connections_after_stop_accepting(rig: RestRig) -> None:
    rig.front.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        await rig.ask("GET", "/health")


async def test_connections_get_one_more_answer_after_stop_accepting(rig: RestRig) -> None:
    """A request may be on its way: it is answered, and told that the connection ends, rather than met by a reset."""
    async with rig.connect() as idle, rig.connect() as busy:
        assert (await idle.ask("GET", "/health")).status == 200
        rig.store.hold = True
        busy.request("POST", "/put", PUT)
        await rig.store.wrote.wait()
        rig.front.stop_accepting()
        answer = await idle.ask("GET", "/read/k")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await idle.at_end()
        rig.store.held[0].set_result(WriteResult(rig.store.applied, 0))
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await busy.at_end()


async def test_close_ends_idle_connections_at_once(rig: RestRig) -> None:
    async with rig.connect() as fresh, rig.connect() as used, rig.connect() as half:
        assert (await used.ask("GET", "/health")).status == 200
        half.send(b"GET /hea")
        assert (await used.ask("GET", "/health")).status == 200
        await rig.front.close(60.0)
        for wire in (fresh, used, half):
            assert await wire.at_end()
    assert rig.front.connection_count == 0


async def test_close_waits_for_answers_under_way(rig: RestRig) -> None:
    rig.store.hold = True
    async with rig.connect() as wire:
        wire.request("POST", "/put", PUT)
        await rig.store.wrote.wait()
        closing = asyncio.create_task(rig.front.close(60.0))
        await asyncio.sleep(0)
        assert not closing.done()
        rig.store.held[0].set_result(WriteResult(rig.store.applied, 0))
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await wire.at_end()
        await closing


async def test_close_waits_for_a_stream(rig: RestRig) -> None:
    for number in range(100):
        rig.store.records[b"k%d" % number] = Record(rig.store.applied, 0, b'"%b"' % (b"x" * 50_000))
    async with rig.connect() as wire:
        wire.request("GET", "/readrange")
        await wire.reader.readuntil(b"\r\n\r\n")
        closing = asyncio.create_task(rig.front.close(60.0))
        assert (await wire.read_to_end()).endswith(b"\r\n0\r\n\r\n")
        await closing


async def test_close_breaks_what_does_not_end_in_time(rig: RestRig) -> None:
    for number in range(3000):
        rig.store.records[b"k%d" % number] = Record(rig.store.applied, 0, b'"%b"' % (b"x" * 50_000))
    async with rig.connect(receive_bytes=1024) as stalled, rig.connect() as waiting, rig.connect() as sending:
        stalled.request("GET", "/readrange")
        await stalled.reader.readuntil(b"\r\n\r\n")
        sending.send(b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b" " * 70_000)
        while not rig.held_bytes:
            assert (await rig.ask("GET", "/health")).status == 200
        rig.store.hold = True
        waiting.request("POST", "/put", PUT)
        await rig.store.wrote.wait()
        await rig.front.close(0.05)
        with pytest.raises(ConnectionResetError):
            await stalled.read_to_end()
        assert await waiting.at_end()
        with contextlib.suppress(ConnectionResetError):
            await sending.read_to_end()
    assert rig.store.open_ranges == 0


async def test_close_twice_and_without_start() -> None:
    rig = RestRig(make_rig_config())
    rig.front.stop_accepting()
    await rig.front.close(1.0)
    await rig.start()
    await rig.front.close(1.0)
    await rig.front.close(1.0)


async def test_many_connections(rig: RestRig) -> None:
    async def use() -> None:
        async with rig.connect() as wire:
            for number in range(20):
                assert (await wire.ask("POST", "/put", b'{"key":"k%d","value":1}' % number)).status == 200
                assert (await wire.ask("GET", f"/read/k{number}")).status == 200

    await asyncio.gather(*(use() for _ in range(100)))
    assert len(rig.store.writes) == 2000
