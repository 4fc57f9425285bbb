"""Full syncs: when one may be resumed, and how long the log is kept for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvnode.protocol.follow import LogExtent
from kvnode.protocol.sync import Incoming, SyncPins, may_resume
from kvnode.protocol.types import Epoch, History, Position, Reign

ONE, TWO, OTHER = Epoch.of(1, 7), Epoch.of(2, 8), Epoch.of(2, 9)
HISTORY = History((Reign(ONE, 1), Reign(TWO, 11)))
INCOMING = Incoming(b"s" * 16, Position(ONE, 6), Position(TWO, 12), b"key")
A, B = b"a" * 16, b"b" * 16


@pytest.mark.parametrize(("first_seq", "resumes"), [(1, True), (7, True), (8, False)])
def test_the_log_must_reach_back_to_the_first_snapshot(first_seq: int, resumes: bool) -> None:
    assert may_resume(HISTORY, LogExtent(first_seq, 20), INCOMING) is resumes


@pytest.mark.parametrize(
    "incoming",
    [
        # The first snapshot is in the history; keys were copied from a later one that is not.
        replace(INCOMING, latest=Position(OTHER, 12)),
        replace(INCOMING, latest=Position(ONE, 11)),
        replace(INCOMING, latest=Position(TWO, 21)),
        replace(INCOMING, first=Position(OTHER, 6)),
    ],
)
def test_every_snapshot_must_be_in_the_history(incoming: Incoming) -> None:
    assert not may_resume(HISTORY, LogExtent(1, 20), incoming)


def test_a_sync_does_not_end_before_it_began() -> None:
    with pytest.raises(ValueError, match="after its latest"):
        Incoming(b"s" * 16, Position(ONE, 6), Position(ONE, 5))


def nothing(_: int) -> int:
    return 0


def test_the_lowest_pin_counts() -> None:
    pins = SyncPins(100)
    assert pins.lowest_seq is None
    pins.pin(A, 8)
    pins.pin(B, 5)
    assert pins.lowest_seq == 5
    pins.unpin(B)
    assert (pins.lowest_seq, pins.pinned_seq(A), pins.pinned_seq(B)) == (8, 8, None)


def test_a_pin_outlives_its_session_for_a_while() -> None:
    pins = SyncPins(100, hold_s=60.0)
    pins.pin(A, 8)
    assert (pins.wake_at, pins.lapse(1e9, nothing)) == (None, [])
    pins.hold(A, now=10.0)
    assert (pins.wake_at, pins.lapse(69.9, nothing)) == (70.0, [])
    assert pins.lapse(70.0, nothing) == [A]
    assert pins.lowest_seq is None
    pins.hold(A, now=71.0)
    assert pins.lowest_seq is None


def test_a_node_that_comes_back_refreshes_its_pin() -> None:
    pins = SyncPins(100, hold_s=60.0)
    pins.pin(A, 8)
    pins.hold(A, now=10.0)
    pins.pin(A, 8)
    assert pins.lapse(1e9, nothing) == []


def test_a_pin_that_keeps_too_much_is_dropped_also_of_a_connected_node() -> None:
    pins = SyncPins(100)
    pins.pin(A, 8)
    pins.pin(B, 18)
    sizes = {8: 101, 18: 100}
    assert pins.lapse(0.0, sizes.__getitem__) == [A]
    assert pins.lowest_seq == 18
