"""Writes that wait for replicas: each is answered once, with what is known then."""

import asyncio
from typing import Any

import pytest

from kvnode.node.api import WriteResult
from kvnode.node.errors import OutcomeUnknown, ReplicationTimeout
from kvnode.node.replication.acks import AckGate
from kvnode.protocol.types import Position
from support.manual_loop import ManualLoop
from support.peers import EPOCH

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


class Gate:
    """A gate, and the writes at it."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.gate = AckGate(self.loop)  # type: ignore[arg-type]

    def hold(self, seq: int, wanted: int = 1, timeout_s: float = 5.0, deleted: int = 0) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.gate.hold(future, WriteResult(Position(EPOCH, seq), deleted), wanted, timeout_s)
        return future


async def test_a_write_is_answered_when_enough_replicas_hold_it() -> None:
    gate = Gate()
    one, two = gate.hold(5, 1, deleted=3), gate.hold(5, 2)
    assert gate.gate.waiting
    gate.gate.progressed(A, 4)
    assert not one.done()
    gate.gate.progressed(A, 5)
    assert one.result() == WriteResult(Position(EPOCH, 5), 3)
    assert not two.done()
    gate.gate.progressed(A, 9)
    assert not two.done(), "the same replica counts once"
    gate.gate.progressed(B, 7)
    assert two.result() == WriteResult(Position(EPOCH, 5), 0)
    assert not gate.gate.waiting


async def test_acks_that_came_before_count() -> None:
    gate = Gate()
    gate.gate.progressed(A, 5)
    assert gate.hold(5).done()
    assert not gate.hold(6).done()


async def test_a_replica_that_comes_back_with_less_counts_with_what_it_has() -> None:
    gate = Gate()
    gate.gate.progressed(A, 9)
    gate.gate.progressed(A, 3)
    future = gate.hold(5)
    assert not future.done()
    gate.gate.progressed(A, 5)
    assert future.done()


async def test_a_forgotten_node_does_not_count() -> None:
    gate = Gate()
    gate.gate.progressed(A, 5)
    gate.gate.forget(A)
    gate.gate.forget(C)
    future = gate.hold(5)
    assert not future.done()
    gate.gate.progressed(B, 5)
    assert future.done()


async def test_a_timeout_says_that_the_write_is_durable_and_how_many_hold_it() -> None:
    gate = Gate()
    gate.gate.progressed(A, 7)
    gate.gate.progressed(B, 6)
    future = gate.hold(7, 3, timeout_s=2.5)
    gate.loop.advance(2.4)
    assert not future.done()
    gate.loop.advance(0.1)
    error = future.exception()
    assert isinstance(error, ReplicationTimeout)
    assert error.fields == {"seq": 7, "epoch": str(EPOCH), "acks": 1, "asked": 3}
    assert "is durable on the primary" in error.message
    assert "1 of 3 replicas" in error.message
    assert not gate.gate.waiting


async def test_each_write_has_its_own_time() -> None:
    gate = Gate()
    late, soon, middle = gate.hold(1, timeout_s=9), gate.hold(2, timeout_s=1), gate.hold(3, timeout_s=4)
    gate.loop.advance(1)
    assert [late.done(), soon.done(), middle.done()] == [False, True, False]
    gate.gate.progressed(A, 1)
    assert late.result().position.seq == 1
    gate.loop.advance(3)
    assert isinstance(middle.exception(), ReplicationTimeout)
    gate.gate.progressed(A, 3)
    last = gate.hold(4, timeout_s=0)
    gate.loop.advance(0)
    assert isinstance(last.exception(), ReplicationTimeout)


async def test_abandoned_all_are_unknown_with_their_seqs() -> None:
    gate = Gate()
    futures = [gate.hold(seq, 1 + seq % 2) for seq in range(1, 5)]
    gate.gate.abandon()
    for seq, future in enumerate(futures, start=1):
        error = future.exception()
        assert isinstance(error, OutcomeUnknown)
        assert error.fields == {"seq": seq, "epoch": str(EPOCH)}
        assert "not written" not in error.message
    assert not gate.gate.waiting
    assert gate.loop.timers == []
    gate.gate.abandon()
    gate.loop.advance(10)


async def test_after_an_abandonment_writes_can_wait_again() -> None:
    gate = Gate()
    gate.gate.abandon()
    future = gate.hold(1, timeout_s=1)
    gate.loop.advance(1)
    assert isinstance(future.exception(), ReplicationTimeout)


@pytest.mark.parametrize("end", ["progressed", "advance", "abandon"])
async def test_a_client_that_left_is_not_answered(end: str) -> None:
    gate = Gate()
    gone, there = gate.hold(1), gate.hold(1)
    gone.cancel()
    match end:
        case "progressed":
            gate.gate.progressed(A, 1)
        case "advance":
            gate.loop.advance(10)
        case _:
            gate.gate.abandon()
    assert gone.cancelled()
    assert there.done()
    there.exception()


async def test_an_error_that_nobody_fetches_is_no_event(complaints: list[dict[str, Any]]) -> None:
    gate = Gate()
    for seq in range(3):
        gate.hold(seq, timeout_s=seq)
    gate.loop.advance(1)
    gate.gate.abandon()
    del gate
    assert complaints == []


async def test_the_timer_follows_the_waits() -> None:
    gate = Gate()
    for seq in range(1, 200):
        gate.hold(seq, timeout_s=5)
    assert len(gate.loop.timers) == 1
    gate.gate.progressed(A, 199)
    gate.loop.advance(5)
    assert gate.loop.timers == []
