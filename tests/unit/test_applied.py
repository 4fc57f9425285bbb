"""Waiting for the applied seq: who is woken when, and that those who gave up leave nothing behind."""

import asyncio
import gc
import weakref
from random import Random

import pytest

from kvnode.node.applied import AppliedSeq
from kvnode.node.errors import NotCaughtUp


@pytest.fixture
async def applied() -> AppliedSeq:
    return AppliedSeq(10, asyncio.get_running_loop())


def done(*futures: asyncio.Future[None]) -> list[bool]:
    return [future.done() for future in futures]


async def test_what_is_reached_needs_no_waiting(applied: AppliedSeq) -> None:
    assert done(applied.reached(0), applied.reached(9), applied.reached(10)) == [True, True, True]
    assert applied.seq == 10


async def test_an_advance_wakes_exactly_those_it_reaches(applied: AppliedSeq) -> None:
    late, next_one, same, later = (applied.reached(seq) for seq in (15, 11, 11, 16))
    assert done(late, next_one, same, later) == [False, False, False, False]
    applied.advance(11)
    assert done(late, next_one, same, later) == [False, True, True, False]
    applied.advance(11)
    applied.advance(14)
    assert done(late, later) == [False, False]
    applied.advance(20)
    assert applied.seq == 20
    for future in (late, next_one, same, later):
        assert await future is None


async def test_waiters_wake_by_seq_and_then_by_age(applied: AppliedSeq) -> None:
    woken: list[str] = []
    for name, seq in [("c1", 13), ("a1", 11), ("c2", 13), ("b1", 12), ("a2", 11)]:
        applied.reached(seq).add_done_callback(lambda _, name=name: woken.append(name))
    applied.advance(13)
    await asyncio.sleep(0)
    assert woken == ["a1", "a2", "b1", "c1", "c2"]


async def test_those_who_left_do_not_disturb(applied: AppliedSeq) -> None:
    left, stayed = applied.reached(11), applied.reached(11)
    left.cancel()
    applied.advance(11)
    assert left.cancelled()
    assert stayed.result() is None


async def test_ending_the_waits_fails_those_who_wait_and_nobody_else(applied: AppliedSeq) -> None:
    reached, left, waiting = applied.reached(10), applied.reached(11), applied.reached(12)
    left.cancel()
    applied.end_waits(NotCaughtUp("stopping"))
    assert reached.result() is None
    assert left.cancelled()
    with pytest.raises(NotCaughtUp, match="stopping"):
        await waiting
    # It goes on to work.
    following = applied.reached(13)
    applied.advance(13)
    assert following.result() is None


async def test_waits_that_were_given_up_are_not_kept(applied: AppliedSeq) -> None:
    """A client that asks again and again for a seq that never comes must not cost memory."""
    kept = [applied.reached(1_000_000 + number) for number in range(10)]
    seen: list[weakref.ref[asyncio.Future[None]]] = []
    for number in range(5_000):
        future = applied.reached(2_000_000 + number % 7)
        seen.append(weakref.ref(future))
        future.cancel()
        del future
    gc.collect()
    assert sum(reference() is not None for reference in seen) < 100
    applied.advance(1_000_009)
    assert all(future.result() is None for future in kept)


async def test_sweeping_keeps_everybody_who_waits(applied: AppliedSeq) -> None:
    rng = Random(5)
    seqs = rng.sample(range(11, 3011), 3000)
    waiting = [(seq, applied.reached(seq)) for seq in seqs[:2000]]
    for _, future in waiting[::3]:
        future.cancel()
    waiting += [(seq, applied.reached(seq)) for seq in seqs[2000:]]
    for reached in (700, 1200, 2999, 3010):
        applied.advance(reached)
        assert all(future.done() == (seq <= reached or future.cancelled()) for seq, future in waiting)


async def test_a_timeout_around_a_wait_gives_it_up(applied: AppliedSeq) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await applied.reached(11)
    applied.advance(11)
    assert applied.reached(11).done()
