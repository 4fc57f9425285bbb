"""Waits for acks: how each ends, and that it ends once."""

from __future__ import annotations

import pytest

from kvnode.protocol.quorum import AckWaits, Ended, Outcome, majority_acks

A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))


def waits_with(*waits: tuple[str, int, int, float]) -> AckWaits:
    """(key, seq, wanted, deadline), registered; none of them ends at once."""
    made = AckWaits()
    for wait in waits:
        assert made.register(*wait) == []
        made.validate()
    return made


@pytest.mark.parametrize(("members", "acks"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_majority_counts_the_primary(members: int, acks: int) -> None:
    assert majority_acks(members) == acks


def test_a_wait_for_nobody_ends_at_once() -> None:
    assert AckWaits().register("w", 1, 0, 9.0) == [Ended("w", Outcome.ACKED, 1, 0, ())]


def test_a_wait_ends_with_the_last_ack_it_needs() -> None:
    waits = waits_with(("one", 5, 1, 9.0), ("two", 6, 2, 9.0))
    assert waits.progressed(A, 4) == []
    assert waits.progressed(A, 6) == [Ended("one", Outcome.ACKED, 5, 1, (A,))]
    assert waits.progressed(B, 5) == []
    assert waits.progressed(B, 6) == [Ended("two", Outcome.ACKED, 6, 2, (A, B))]
    assert waits.progressed(C, 6) == waits.expire(99.0) == waits.abandon() == []
    assert len(waits) == 0


def test_an_ack_ends_all_waits_up_to_it_in_the_order_of_their_seqs() -> None:
    waits = waits_with(("a", 3, 1, 9.0), ("b", 4, 1, 9.0), ("c", 4, 2, 9.0), ("d", 5, 1, 9.0))
    waits.progressed(A, 2)
    assert [ended.key for ended in waits.progressed(B, 4)] == ["a", "b"]
    assert [ended.key for ended in waits.progressed(A, 5)] == ["c", "d"]


def test_what_is_held_already_needs_no_new_ack() -> None:
    waits = AckWaits()
    waits.progressed(A, 7)
    assert waits.register("w", 7, 1, 9.0) == [Ended("w", Outcome.ACKED, 7, 1, (A,))]
    assert waits.register("x", 8, 1, 9.0) == []


def test_time_is_up_for_each_by_its_own_deadline() -> None:
    waits = waits_with(("late", 1, 1, 8.0), ("early", 2, 1, 3.0), ("two", 2, 2, 3.0))
    assert waits.wake_at == 3.0
    assert waits.expire(2.9) == []
    assert [(ended.key, ended.outcome) for ended in waits.expire(3.0)] == [
        ("early", Outcome.TIMED_OUT),
        ("two", Outcome.TIMED_OUT),
    ]
    waits.validate()
    assert waits.wake_at == 8.0
    assert [ended.key for ended in waits.progressed(A, 2)] == ["late"]
    assert waits.wake_at is None


def test_abandoned_waits_are_unknown_not_failed() -> None:
    waits = waits_with(("a", 3, 2, 9.0), ("b", 4, 1, 9.0))
    assert [(ended.key, ended.outcome) for ended in waits.abandon()] == [
        ("a", Outcome.UNKNOWN),
        ("b", Outcome.UNKNOWN),
    ]
    assert (len(waits), waits.wake_at, waits.progressed(A, 9)) == (0, None, [])


def test_a_replica_that_comes_back_with_less_counts_with_what_it_has() -> None:
    waits = waits_with(("two", 5, 2, 9.0))
    waits.progressed(A, 5)
    waits.progressed(A, 3)
    waits.validate()
    assert waits.progressed(B, 5) == []
    assert waits.acked_seq(A) == 3
    assert [ended.held_by for ended in waits.progressed(A, 5)] == [(A, B)]


def test_a_forgotten_node_does_not_count() -> None:
    waits = waits_with(("two", 5, 2, 9.0))
    waits.progressed(A, 5)
    waits.forget(A)
    assert waits.progressed(B, 5) == []
    assert [ended.held_by for ended in waits.progressed(C, 5)] == [(B, C)]
