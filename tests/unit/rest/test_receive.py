"""Request bodies off the wire: limits, chunks, 100-continue, timeouts, memory."""

import asyncio
import gc
import json
import tracemalloc

import pytest

from kvnode.node.api import WriteResult
from support.rest_rig import HttpAnswer, MakeRig, RestRig, Wire

PUT = b'{"key":"k","value":1}'
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def head(path: str = "/put", *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/{version}", "Host: x", *lines, "", ""]).encode()


def sized_put(size: int) -> bytes:
    """A body of exactly so many bytes."""
    return b'{"key":"k","value":"%b"}' % (b"x" * (size - len(b'{"key":"k","value":""}')))


def check_too_large(answer: HttpAnswer, maximum: int, sent: int) -> None:
    assert answer.status == 413
    assert {name: answer.error[name] for name in ("code", "limit", "max", "sent")} == {
        "code": "too_large",
        "limit": "max_body_bytes",
        "max": maximum,
        "sent": sent,
    }


@pytest.mark.parametrize("maximum", [1000, 600_000])
async def test_body_at_its_limit_and_one_past(make_rig: MakeRig, maximum: int) -> None:
    rig = await make_rig(max_body_bytes=maximum)
    async with rig.connect() as wire:
        assert (await wire.ask("POST", "/put", sized_put(maximum))).status == 200
        check_too_large(await wire.ask("POST", "/put", sized_put(maximum + 1)), maximum, maximum + 1)
    assert len(rig.store.writes) == 1


@pytest.mark.parametrize("size", [1000, 600_000])
async def test_chunked_body_at_its_limit_and_one_past(make_rig: MakeRig, size: int) -> None:
    rig = await make_rig(max_body_bytes=size)
    async with rig.connect() as wire:
        body = sized_put(size)
        wire.send(head("/put", "Transfer-Encoding: chunked") + chunked(body[:7], body[7:]))
        assert (await wire.answer()).status == 200
        body = sized_put(size + 1)
        wire.send(head("/put", "Transfer-Encoding: chunked") + chunked(body[:7], body[7:]))
        check_too_large(await wire.answer(), size, size + 1)
    assert len(rig.store.writes) == 1


async def test_a_chunked_body_without_end_is_refused_while_it_comes(make_rig: MakeRig) -> None:
    rig = await make_rig(max_body_bytes=100_000)
    async with rig.connect() as wire:
        wire.send(head("/put", "Transfer-Encoding: chunked"))
        wire.send(b"fffffff\r\n" + b" " * 200_000)
        answer = await wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert answer.error["sent"] > 100_000
        assert answer.headers["connection"] == "close"


async def test_a_refused_body_is_read_off_so_that_the_answer_arrives(make_rig: MakeRig) -> None:
    """A client that sends first and reads then must not find a reset."""
    rig = await make_rig(max_body_bytes=1000)
    size = 50_000_000
    async with rig.connect() as wire:
        wire.send(head("/put", f"Content-Length: {size}"))
        for _ in range(size // 1_000_000):
            wire.send(b" " * 1_000_000)
            await wire.writer.drain()
        answer = await wire.answer()
        check_too_large(answer, 1000, size)
        assert answer.headers["connection"] == "close"
        assert await wire.at_end()


async def test_a_refused_body_that_does_not_come_holds_the_connection_for_a_while_only(make_rig: MakeRig) -> None:
    rig = await make_rig(max_body_bytes=1000, linger_timeout_s=0.05)
    async with rig.connect() as wire:
        wire.send(head("/put", "Content-Length: 1001"))
        check_too_large(await wire.answer(), 1000, 1001)
        assert await wire.at_end()


@pytest.mark.parametrize("size", [len(PUT), 300_000])
async def test_a_body_that_comes_byte_by_byte(rig: RestRig, size: int) -> None:
    body = sized_put(size) if size > len(PUT) else PUT
    async with rig.connect() as wire:
        wire.send(head("/put", f"Content-Length: {len(body)}"))
        step = max(1, len(body) // 20)
        for start in range(0, len(body), step):
            wire.send(body[start : start + step])
            await rig.ask("GET", "/health")
        assert (await wire.answer()).status == 200
        assert (await wire.ask("POST", "/put", PUT)).status == 200


async def test_chunk_extensions_and_trailers_are_ignored(rig: RestRig) -> None:
    async with rig.connect() as wire:
        wire.send(head("/put", "Transfer-Encoding: chunked"))
        wire.send(b'5;a=b\r\n%b\r\n%x;c="d"\r\n%b\r\n0\r\nX-T: 1\r\n\r\n' % (PUT[:5], len(PUT) - 5, PUT[5:]))
        assert (await wire.answer()).status == 200
        assert (await wire.ask("GET", "/health")).status == 200


@pytest.mark.parametrize("framing", ["Content-Length: %d", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
async def test_expect_is_answered_before_the_body_is_sent(rig: RestRig, framing: str, expect: str) -> None:
    is_chunked = framing.endswith("chunked")
    async with rig.connect() as wire:
        for _ in range(2):
            wire.send(head("/put", framing if is_chunked else framing % len(PUT), f"Expect: {expect}"))
            assert await wire.reader.readexactly(len(CONTINUE)) == CONTINUE
            wire.send(chunked(PUT) if is_chunked else PUT)
            assert (await wire.answer()).status == 200


async def test_expect_with_the_body_right_behind_needs_no_100(rig: RestRig) -> None:
    async with rig.connect() as wire:
        wire.send(head("/put", f"Content-Length: {len(PUT)}", "Expect: 100-continue") + PUT)
        assert (await wire.answer()).status == 200


async def test_expect_of_an_old_client_is_ignored(rig: RestRig) -> None:
    async with rig.connect() as wire:
        wire.send(head("/put", f"Content-Length: {len(PUT)}", "Expect: 100-continue", version="1.0"))
        await rig.ask("GET", "/health")
        wire.send(PUT)
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/put", ["Content-Length: 1001"], 413),
        ("/put", ["Content-Length: 10", "Content-Encoding: gzip"], 400),
        ("/put?x=1", ["Content-Length: 10"], 400),
        ("/nowhere", ["Content-Length: 10"], 404),
        ("/health", ["Content-Length: 10"], 405),
    ],
)
async def test_a_refused_body_is_answered_without_the_100(
    make_rig: MakeRig, path: str, lines: list[str], status: int
) -> None:
    rig = await make_rig(max_body_bytes=1000)
    async with rig.connect() as wire:
        wire.send(head(path, *lines, "Expect: 100-continue"))
        answer = await wire.answer()
        assert answer.status == status
        # The client does not send the body now: what follows could be anything.
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "gzip, identity", "nonsense"])
async def test_compressed_bodies_are_refused(rig: RestRig, encoding: str) -> None:
    async with rig.connect() as wire:
        answer = await wire.ask("POST", "/put", PUT, Content_Encoding=encoding)
        assert answer.status == 400
        assert (answer.error["code"], answer.error["field"]) == ("invalid_request", "Content-Encoding")
        assert (await wire.ask("POST", "/put", PUT, Content_Encoding="Identity")).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        head("/put", "Content-Length: 22") + PUT,
        head("/put", "Content-Length: 1000"),
        head("/put", "Transfer-Encoding: chunked") + b"15\r\n" + PUT,
        head("/put", "Transfer-Encoding: chunked") + b"15\r\n" + PUT + b"\r\n",
    ],
)
class TestHalfBodies:
    """A part of a body came, and then..."""

    async def test_the_client_half_closes(self, rig: RestRig, sent: bytes) -> None:
        async with rig.connect() as wire:
            wire.send(sent)
            wire.half_close()
            answer = await wire.answer()
            assert (answer.status, answer.error["code"]) == (400, "invalid_request")
            assert answer.headers["connection"] == "close"
            assert await wire.at_end()
        assert rig.store.writes == []

    async def test_the_client_is_gone(self, rig: RestRig, sent: bytes) -> None:
        async with rig.connect() as wire:
            wire.send(sent)
            assert (await rig.ask("GET", "/health")).status == 200
            wire.reset()
        assert (await rig.ask("GET", "/health")).status == 200
        assert rig.store.writes == []

    async def test_nothing_more_comes(self, make_rig: MakeRig, sent: bytes) -> None:
        rig = await make_rig(body_timeout_s=0.05, linger_timeout_s=0.05)
        async with rig.connect() as wire:
            wire.send(sent)
            answer = await wire.answer()
            assert (answer.status, answer.error["code"]) == (400, "invalid_request")
            assert "did not arrive" in answer.error["message"]
            assert await wire.at_end()
        assert rig.store.writes == []
        assert rig.log.events == []


async def test_a_trickle_is_no_progress(make_rig: MakeRig) -> None:
    rig = await make_rig(body_timeout_s=0.2, linger_timeout_s=0.05)
    async with rig.connect() as wire:
        wire.send(head("/put", "Content-Length: 1000000"))

        async def trickle() -> None:
            while True:
                wire.send(b" ")
                await asyncio.sleep(0.001)

        task = asyncio.create_task(trickle())
        try:
            answer = await wire.answer()
        finally:
            task.cancel()
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "rest",
    [
        b"zz\r\n",
        b"5\r\n123456\r\n",
        b"-1\r\n",
        b"fffffffffffffffff\r\n",
        b"\r\n",
        b"5 \r\n12345\r\n",
        b"0\r\nX\r\n\r\n",
    ],
)
async def test_malformed_chunks_are_answered_at_once(rig: RestRig, rest: bytes) -> None:
    for first in (b"", b"3\r\n   \r\n"):
        async with rig.connect() as wire:
            # The head first, so that the handler already waits for the body.
            wire.send(head("/put", "Transfer-Encoding: chunked") + first)
            assert (await rig.ask("GET", "/health")).status == 200
            wire.send(rest)
            answer = await wire.answer()
            assert (answer.status, answer.error["code"]) == (400, "invalid_request")
            assert answer.headers["connection"] == "close"
            assert await wire.at_end()
    assert rig.store.writes == []


@pytest.mark.parametrize("end", ["half_close", "malformed", "reset"])
async def test_the_rest_of_a_refused_body_may_be_anything(make_rig: MakeRig, end: str) -> None:
    """It is read off behind the answer, and its end is nobody's error."""
    rig = await make_rig(max_body_bytes=1000)
    async with rig.connect() as wire:
        wire.send(head("/put", "Transfer-Encoding: chunked") + b"fff\r\n" + b" " * 2000)
        answer = await wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        match end:
            case "half_close":
                wire.half_close()
            case "malformed":
                wire.send(b" " * 2095 + b"no chunk\r\n")
            case "reset":
                wire.reset()
        if end != "reset":
            assert await wire.at_end()
    while rig.front.connection_count > 1:
        await rig.ask("GET", "/health")
    assert rig.log.events == []


async def test_malformed_chunks_behind_a_request_that_is_handled(rig: RestRig) -> None:
    """The body fails before its request's turn comes."""
    rig.store.hold = True
    async with rig.connect() as wire:
        wire.request("POST", "/put", PUT)
        await rig.store.wrote.wait()
        wire.send(head("/put", "Transfer-Encoding: chunked"))
        assert (await rig.ask("GET", "/health")).status == 200
        wire.send(b"zz\r\n")
        assert (await rig.ask("GET", "/health")).status == 200
        rig.store.held[0].set_result(WriteResult(rig.store.applied, 0))
        assert (await wire.answer()).status == 200
        answer = await wire.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")
        assert await wire.at_end()


async def _begin_body(rig: RestRig, wire: Wire, size: int, sent: int) -> None:
    """Send a part of a body and wait until it is held."""
    before = rig.held_bytes
    wire.send(head("/put", f"Content-Length: {size}") + b" " * sent)
    while rig.held_bytes < before + sent:
        await rig.ask("GET", "/health")


async def test_bodies_under_way_are_bounded_together(make_rig: MakeRig) -> None:
    rig = await make_rig(
        max_body_bytes=100_000,
        max_value_bytes=10_000,
        max_batch_bytes=10_000,
        max_batch_items=100,
        max_queued_bytes=150_000,
    )
    async with rig.connect() as first, rig.connect() as second, rig.connect() as third:
        await _begin_body(rig, first, 100_000, 90_000)
        # Announced, it does not fit: refused at once, before it is sent.
        second.send(head("/put", "Content-Length: 60001", "Expect: 100-continue"))
        answer = await second.answer()
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert {name: answer.error[name] for name in ("limit", "max", "queued", "sent")} == {
            "limit": "max_queued_bytes",
            "max": 150_000,
            "queued": 90_000,
            "sent": 60_001,
        }
        # Not announced, it is refused when it does not fit any more.
        third.send(head("/put", "Transfer-Encoding: chunked") + b"%x\r\n" % 70_000 + b" " * 60_001)
        answer = await third.answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        # A small one that is there as a whole still passes, and so does what was under way.
        assert (await rig.ask("POST", "/put", PUT)).status == 200
        first.send(sized_put(10_000))
        assert (await first.answer()).status == 200
    assert rig.held_bytes == 0


@pytest.mark.parametrize("end", ["reset", "half_close", "malformed"])
async def test_what_a_broken_body_held_is_free_again(rig: RestRig, end: str) -> None:
    async with rig.connect() as wire:
        wire.send(head("/put", "Transfer-Encoding: chunked") + b"ffff\r\n" + b" " * 0xFFFF)
        while rig.held_bytes < 0xFFFF:
            await rig.ask("GET", "/health")
        match end:
            case "reset":
                wire.reset()
            case "half_close":
                wire.half_close()
            case "malformed":
                wire.send(b"no")
        while rig.held_bytes:
            await rig.ask("GET", "/health")


@pytest.mark.parametrize("end", ["reset", "half_close", "malformed"])
async def test_a_broken_body_is_freed_without_the_collector(rig: RestRig, end: str) -> None:
    size = 0x400000
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2):
            async with rig.connect() as wire:
                wire.send(head("/put", "Transfer-Encoding: chunked") + b"%x\r\n" % size + b" " * size)
                while rig.held_bytes < size:
                    await rig.ask("GET", "/health")
                match end:
                    case "reset":
                        wire.reset()
                    case "half_close":
                        wire.half_close()
                    case "malformed":
                        wire.send(b"no")
                while rig.held_bytes:
                    await rig.ask("GET", "/health")
        assert tracemalloc.get_traced_memory()[0] < before + size // 4
    finally:
        tracemalloc.stop()
        gc.enable()


async def test_a_body_where_none_is_wanted_is_no_harm(rig: RestRig) -> None:
    async with rig.connect() as wire:
        assert (await wire.ask("GET", "/health", b"x" * 10)).status == 200
        assert (await wire.ask("GET", "/health", b"x" * 1_000_000)).status == 200


async def test_a_large_batch(rig: RestRig) -> None:
    items = [{"key": f"k{number}", "value": "é" * 50} for number in range(50_000)]
    answer = await rig.ask("POST", "/batchput", json.dumps(items).encode())
    assert (answer.status, answer.json["count"]) == (200, 50_000)
    answer = await rig.ask("POST", "/batchput", json.dumps(items * 2 + items[:1]).encode())
    assert (answer.status, answer.error["limit"], answer.error["sent"]) == (413, "max_batch_items", 100_001)
