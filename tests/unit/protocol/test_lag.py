"""When a member that does not follow is told of."""

from __future__ import annotations

from kvnode.protocol.lag import LagWatch

A, B = b"a" * 16, b"b" * 16


def test_who_does_not_follow_is_told_of_once_until_it_follows_again() -> None:
    watch = LagWatch(100.0, lag_s=5.0)
    assert watch.look(A, follows=True, now=101.0) is None
    assert watch.look(A, follows=False, now=105.9) is None
    assert watch.look(A, follows=False, now=106.0) == 5.0
    assert watch.look(A, follows=False, now=200.0) is None
    assert watch.look(A, follows=True, now=201.0) is None
    assert watch.look(A, follows=False, now=205.0) is None
    assert watch.look(A, follows=False, now=207.0) == 6.0


def test_who_was_never_seen_is_given_the_time_from_the_beginning() -> None:
    watch = LagWatch(100.0, lag_s=5.0)
    assert watch.look(A, follows=False, now=104.0) is None
    assert watch.look(B, follows=False, now=105.0) == 5.0
    assert watch.look(A, follows=False, now=105.0) == 5.0


def test_who_was_forgotten_begins_anew() -> None:
    watch = LagWatch(100.0, lag_s=5.0)
    assert watch.look(A, follows=False, now=105.0) == 5.0
    watch.forget(A)
    assert watch.look(A, follows=True, now=110.0) is None
    assert watch.look(A, follows=False, now=115.0) == 5.0
