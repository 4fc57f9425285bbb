"""A connection of the peer protocol: frames in whatever pieces, what leaves and what does not, and how it ends."""

from random import Random

import pytest

from kvnode.node.replication import link as link_module
from kvnode.node.replication.link import (
    FRAME_STALL_S,
    HIGH_WATER_BYTES,
    STRANGER_FRAME_BYTES,
    TURN_FRAMES,
    PeerLink,
)
from kvnode.protocol.codec import MAX_FRAME_BYTES, encode
from kvnode.protocol.errors import LocalProtocolError
from kvnode.protocol.messages import Error, Message, Ping, Status, StatusResult
from support.frames import SAMPLES
from support.holds import turns
from support.link_rig import Owner, linked, unconnected
from support.manual_loop import ManualLoop
from support.peers import Peer, PeerGone

PING = Ping(1, 2)


def big(size: int, number: int = 1) -> StatusResult:
    """A frame with this many bytes of payload."""
    return StatusResult(number, b"x" * size)


async def come(peer: Peer) -> list[Message]:
    """All that comes until the connection ends."""
    return await peer.rest()


# ---- receiving -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_frames_come_in_whatever_pieces(seed: int) -> None:
    rng = Random(seed)
    owner = Owner()
    link, _ = unconnected(owner)
    sent = [rng.choice(list(SAMPLES.values())) for _ in range(200)]
    stream = b"".join(map(encode, sent))
    at = 0
    while at < len(stream):
        size = rng.choice([1, 2, 3, 7, 50, 400, 5000])
        link.data_received(stream[at : at + size])
        at += size
    assert owner.frames == sent
    link.connection_lost(None)
    assert owner.reason == "the other side closed the connection"


async def test_frames_come_over_a_connection() -> None:
    owner = Owner()
    async with linked(owner) as (link, peer):
        assert link.peer.startswith("127.0.0.1:")
        assert link.peer_host == "127.0.0.1"
        peer.send(*SAMPLES.values())
        stream = encode(PING) * 2
        for at in range(len(stream)):
            peer.send(stream[at : at + 1])
            await peer.flushed()
        await owner.until(lambda: len(owner.frames) == len(SAMPLES) + 2)
        assert owner.frames == [*SAMPLES.values(), PING, PING]


async def test_a_stranger_may_send_small_frames_only_until_it_is_trusted() -> None:
    owner = Owner()
    async with linked(owner, stranger=True) as (link, peer):
        peer.send(big(STRANGER_FRAME_BYTES - 20))
        await owner.until(lambda: owner.frames)
        link.trust(MAX_FRAME_BYTES)
        peer.send(big(10 * STRANGER_FRAME_BYTES))
        await owner.until(lambda: len(owner.frames) == 2)
    owner = Owner()
    async with linked(owner, stranger=True) as (_, peer):
        peer.send(encode(big(STRANGER_FRAME_BYTES))[:8])
        assert f"over the limit of {STRANGER_FRAME_BYTES}" in (await peer.refused()).message
        assert owner.frames == []


async def test_a_limit_below_a_strangers_holds_for_a_stranger_too() -> None:
    owner = Owner()
    async with linked(owner, max_frame_bytes=4096, stranger=True) as (_, peer):
        peer.send(encode(big(5000))[:8])
        assert "over the limit of 4096" in (await peer.refused()).message


@pytest.mark.parametrize(
    ("garbage", "told"),
    [
        (b"\xff\xff\xff\xff", "a frame announces 4294967295 bytes"),
        (b"\x00\x00\x00\x00", "frame of length 0"),
        (b"\x00\x00\x00\x03\x91\x63\x00", "frame"),
        (b"\x00\x00\x00\x02\x91\x63", "unknown type"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
        (b"\x00\x00\x00\x02\x91\x05", "SUBSCRIBE.position: missing"),
    ],
)
async def test_garbage_is_answered_with_an_error_and_nothing_behind_it_counts(garbage: bytes, told: str) -> None:
    owner = Owner()
    async with linked(owner) as (link, peer):
        peer.send(PING, garbage, PING)
        error = await peer.refused()
        assert error.code == "protocol_error"
        assert told in error.message
        assert not link.is_open
        assert await owner.lost() == f"protocol_error: {error.message}"
        assert owner.frames == [PING]


async def test_what_comes_behind_a_close_is_not_told() -> None:
    owner = Owner()
    owner.on_frame = lambda link, _: link.close("enough")
    async with linked(owner) as (_, peer):
        peer.send(PING, PING, PING)
        assert await come(peer) == []
        assert await owner.lost() == "enough"
        assert owner.frames == [PING]


async def test_what_cannot_be_sent_is_this_nodes_bug_and_not_the_peers() -> None:
    owner = Owner()
    owner.on_frame = lambda link, _: link.send(Status(-1))
    link, transport = unconnected(owner)
    with pytest.raises(LocalProtocolError, match="request_id"):
        link.data_received(encode(PING))
    (written,) = transport.writes
    assert b"internal" in written
    assert not link.is_open


async def test_reading_can_be_paused() -> None:
    owner = Owner()
    async with linked(owner) as (link, peer):
        peer.send(PING)
        await owner.until(lambda: owner.frames)
        link.pause_reading()
        peer.send(PING)
        await peer.flushed()
        link.send(PING)
        await peer.take(Ping)
        assert len(owner.frames) == 1
        link.resume_reading()
        await owner.until(lambda: len(owner.frames) == 2)


async def test_a_chunk_of_many_frames_is_told_in_several_turns() -> None:
    owner = Owner()
    link, transport = unconnected(owner)
    link.data_received(b"".join([encode(Status(number)) for number in range(3 * TURN_FRAMES + 1)]))
    for told in (1, 2, 3):
        assert len(owner.frames) == told * TURN_FRAMES
        assert not transport.is_reading, "what comes now would be told before its turn"
        await turns(1)
    assert transport.is_reading
    assert owner.frames == [Status(number) for number in range(3 * TURN_FRAMES + 1)]
    link.connection_lost(None)


async def test_an_owner_that_pauses_while_others_have_their_turn_is_told_nothing() -> None:
    owner = Owner()
    link, transport = unconnected(owner)
    link.data_received(encode(PING) * (2 * TURN_FRAMES))
    link.pause_reading()
    await turns()
    assert len(owner.frames) == TURN_FRAMES
    link.resume_reading()
    link.pause_reading()
    link.resume_reading()
    await turns()
    assert (len(owner.frames), transport.is_reading) == (2 * TURN_FRAMES, True)
    link.connection_lost(None)


@pytest.mark.parametrize("how", ["close", "abort", "lost"])
async def test_what_ends_while_others_have_their_turn_is_told_no_more(how: str) -> None:
    owner = Owner()
    link, _ = unconnected(owner)
    link.data_received(encode(PING) * (2 * TURN_FRAMES))
    if how == "close":
        link.close("a test says so")
    elif how == "abort":
        link.abort("a test says so")
    link.connection_lost(None)
    await turns()
    assert len(owner.frames) == TURN_FRAMES


async def test_the_end_of_the_input_is_told_behind_all_of_its_frames() -> None:
    owner = Owner()
    owner.is_to_be_sent_more = True
    async with linked(owner) as (_, peer):
        peer.send(encode(PING) * (5 * TURN_FRAMES))
        peer.half_close()
        await owner.until(lambda: owner.finished)
        assert len(owner.frames) == 5 * TURN_FRAMES


# ---- a frame that does not end ---------------------------------------------------------------------------------


async def test_a_frame_that_does_not_go_on_ends_the_session() -> None:
    owner, clock = Owner(), ManualLoop()
    link, transport = unconnected(owner, clock=clock)
    frame = encode(PING)
    link.data_received(frame + frame[:1])
    clock.advance(FRAME_STALL_S - 1)
    link.data_received(frame[1:3])
    clock.advance(FRAME_STALL_S - 1)
    assert link.is_open, "each byte begins the while anew"
    clock.advance(1)
    assert not link.is_open
    assert b"the rest of a frame did not come within 30 s" in transport.writes[-1]
    link.connection_lost(None)
    assert owner.reason == "protocol_error: the rest of a frame did not come within 30 s"


async def test_between_frames_a_peer_may_be_silent() -> None:
    clock = ManualLoop()
    link, transport = unconnected(Owner(), clock=clock)
    frame = encode(PING)
    link.data_received(frame[:5])
    link.data_received(frame[5:])
    clock.advance(10 * FRAME_STALL_S)
    assert link.is_open
    assert transport.writes == []


async def test_while_this_side_reads_nothing_a_frame_does_not_stall() -> None:
    clock = ManualLoop()
    link, transport = unconnected(Owner(), clock=clock)
    link.data_received(encode(PING)[:5])
    link.pause_reading()
    clock.advance(10 * FRAME_STALL_S)
    assert link.is_open
    link.resume_reading()
    clock.advance(FRAME_STALL_S - 1)
    assert link.is_open
    clock.advance(1)
    assert not link.is_open
    assert b"the rest of a frame did not come" in transport.writes[-1]


# ---- sending ---------------------------------------------------------------------------------------------------


async def test_the_frames_of_a_turn_leave_together() -> None:
    link, transport = unconnected(Owner())
    link.send(PING)
    link.send_bytes(encode(Status(1)) + encode(Status(2)))
    link.send(Status(3))
    assert transport.writes == []
    assert link.held_bytes == link.written == 7 * 3 + len(encode(PING))
    await turns()
    assert transport.writes == [encode(PING) + b"".join(encode(Status(number)) for number in (1, 2, 3))]
    assert link.progress.flushed == link.written
    link.send(Status(4))
    await turns()
    assert transport.writes[1:] == [encode(Status(4))]


async def test_sent_on_a_link_that_is_closed_nothing_happens() -> None:
    owner = Owner()
    link = PeerLink(owner, 1 << 20, stranger=False)
    link.send(PING)
    link.close("not connected")
    link.abort("not connected")
    link.refuse("x", "not connected")
    link.pause_reading()
    link.resume_reading()
    assert (link.written, link.held_bytes, link.is_open) == (0, 0, False)
    async with linked(owner := Owner()) as (link, peer):
        link.close("done")
        link.send(PING)
        link.refuse("again", "and again")
        assert link.written == 0
        assert await come(peer) == []
        await owner.lost()
        link.send(PING)
        link.close("again")
        link.abort("again")
        assert link.progress.flushed == link.written == 0


async def test_a_frame_over_the_limit_is_not_sent() -> None:
    link, transport = unconnected(Owner(), max_frame_bytes=1000)
    with pytest.raises(LocalProtocolError, match="over the limit of 1000"):
        link.send(big(1000))
    await turns()
    assert (link.written, transport.writes) == (0, [])


async def test_progress_is_always_consistent() -> None:
    """`flushed` rises, up to `written`, which counts what was sent from the call on."""
    owner = Owner()
    rng = Random(1)
    async with linked(owner, kernel_bytes=4096) as (link, peer):
        flushed = sent = 0

        def check() -> None:
            nonlocal flushed
            progress = link.progress
            assert progress.written == sent
            assert flushed <= progress.flushed <= progress.written
            assert link.held_bytes == progress.written - progress.flushed
            flushed = progress.flushed

        peer.pause()
        for number in range(60):
            frame = encode(big(rng.randrange(1, 400_000), number))
            link.send_bytes(frame)
            sent += len(frame)
            check()
            if number % 3 == 0:
                await turns(1)
                check()
        assert link.held_bytes > HIGH_WATER_BYTES
        assert owner.drained == 0
        peer.resume()
        for number in range(60):
            assert (await peer.take(StatusResult)).request_id == number
            check()
        await owner.until(lambda: owner.drained)
        while link.held_bytes:
            await turns(1)
        check()
        assert flushed == sent == peer.received


async def test_an_owner_that_stopped_for_want_of_room_is_told_when_there_is_some() -> None:
    """Also when the kernel takes at once all that was too much: there is no pause then that could end."""
    owner = Owner()
    frame = encode(big(256 * 1024))
    total = 40
    async with linked(owner) as (link, peer):
        sent = 0

        def send_on(link: PeerLink) -> None:
            nonlocal sent
            while sent < total and link.held_bytes < HIGH_WATER_BYTES:
                link.send_bytes(frame)
                sent += 1

        owner.on_drained = send_on
        send_on(link)
        for _ in range(total):
            await peer.take(StatusResult)
        assert sent == total


async def test_room_is_told_when_a_turn_held_exactly_as_much_as_may_be() -> None:
    owner = Owner()
    link, transport = unconnected(owner)
    link.send_bytes(b"x" * HIGH_WATER_BYTES)
    assert owner.drained == 0, "not from inside of the call"
    await turns()
    assert owner.drained == 1
    link.send_bytes(b"x" * (HIGH_WATER_BYTES - 1))
    await turns()
    assert owner.drained == 1, "there was room all the time"
    transport.held = HIGH_WATER_BYTES - 1
    link.send_bytes(b"x")
    transport.held = 0
    await turns()
    assert owner.drained == 2
    link.send_bytes(b"x" * HIGH_WATER_BYTES)
    link.close("the end")
    await turns()
    assert owner.drained == 2, "nobody is to send any more"


# ---- ending ----------------------------------------------------------------------------------------------------


async def test_close_lets_all_leave_that_was_sent() -> None:
    owner = Owner()
    async with linked(owner, kernel_bytes=4096) as (link, peer):
        for number in range(100):
            link.send(big(100_000, number))
        link.close("done")
        frames = await come(peer)
        assert [frame.request_id for frame in frames if isinstance(frame, StatusResult)] == list(range(100))
        assert await owner.lost() == "done"


async def test_abort_drops_what_was_sent() -> None:
    owner = Owner()
    async with linked(owner) as (link, peer):
        link.send(PING)
        link.abort("now")
        assert await come(peer) == []
        assert peer.received == 0
        assert await owner.lost() == "now"


async def test_the_first_reason_counts() -> None:
    owner = Owner()
    async with linked(owner) as (link, _):
        link.refuse("first", "reason")
        link.close("second")
        link.abort("third")
        assert await owner.lost() == "first: reason"


async def test_a_peer_that_takes_nothing_does_not_keep_a_closed_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_LINGER_S", 0.05)
    owner = Owner()
    async with linked(owner, kernel_bytes=4096) as (link, peer):
        peer.pause()
        for _ in range(300):
            link.send(big(100_000))
        link.close("done")
        await turns()
        assert owner.reason is None
        assert await owner.lost() == "done"


async def test_refuse_tells_why() -> None:
    owner = Owner()
    async with linked(owner) as (link, peer):
        link.send(PING)
        link.refuse("too_late", "come earlier")
        assert await peer.take(Ping) == PING
        assert await peer.refused() == Error("too_late", "come earlier")
        assert await owner.lost() == "too_late: come earlier"


async def test_a_half_closed_peer_keeps_its_stream_if_the_owner_says_so() -> None:
    owner = Owner()
    owner.is_to_be_sent_more = True
    async with linked(owner) as (link, peer):
        peer.send(PING)
        peer.half_close()
        await owner.until(lambda: owner.finished)
        assert owner.frames == [PING]
        for number in range(3):
            link.send(Status(number))
            await turns()
        assert [await peer.take(Status) for _ in range(3)] == [Status(0), Status(1), Status(2)]
        link.close("done")
        with pytest.raises(PeerGone):
            await peer.next()
        assert await owner.lost() == "done"


async def test_else_it_gets_what_it_was_sent_and_no_more() -> None:
    owner = Owner()
    owner.on_frame = lambda link, message: link.send(message)
    async with linked(owner) as (link, peer):
        peer.send(PING, Status(1))
        peer.half_close()
        assert [await peer.next(), await peer.next()] == [PING, Status(1)]
        with pytest.raises(PeerGone):
            await peer.next()
        assert await owner.lost() == "the other side closed the connection"
        assert not link.is_open


async def test_what_is_answered_right_before_the_end_of_the_input_leaves() -> None:
    """A transport may tell of the last bytes and of the end in one turn of the loop."""
    owner = Owner()
    owner.on_frame = lambda link, message: link.send(message)
    link, transport = unconnected(owner)
    link.data_received(encode(PING))
    if not link.eof_received():
        # What a transport does then.
        transport.close()
    await turns()
    assert transport.writes == [encode(PING)]
    assert transport.is_closing()


async def test_a_half_closed_peer_that_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_LINGER_S", 0.05)
    owner = Owner()
    async with linked(owner, kernel_bytes=4096) as (link, peer):
        peer.pause()
        for _ in range(300):
            link.send(big(100_000))
        peer.half_close()
        await owner.lost()


@pytest.mark.parametrize("length", [1, 4, 6])
async def test_an_end_inside_a_frame_is_an_error(length: int) -> None:
    owner = Owner()
    owner.is_to_be_sent_more = True
    async with linked(owner) as (_, peer):
        peer.send(PING, encode(PING)[:length])
        peer.half_close()
        assert await peer.refused() == Error("protocol_error", "the stream ends inside a frame")
        assert await owner.lost() == "protocol_error: the stream ends inside a frame"
        assert owner.frames == [PING]
        assert owner.finished == 0


async def test_a_reset_is_told_as_one() -> None:
    owner = Owner()
    async with linked(owner) as (link, peer):
        peer.reset()
        reason = await owner.lost()
        assert reason.startswith(("the connection was lost: ", "the other side closed the connection"))
        assert not link.is_open
        assert link.held_bytes == 0


async def test_a_reset_while_much_is_to_be_sent() -> None:
    owner = Owner()
    async with linked(owner, kernel_bytes=4096) as (link, peer):
        peer.pause()
        for _ in range(100):
            link.send(big(100_000))
        await turns()
        peer.reset()
        await owner.lost()
        assert link.progress.flushed == link.written
        link.send(PING)
        await turns()
