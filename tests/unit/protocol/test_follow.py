"""The rule of who may follow whom: by example, and over all small histories against a model that knows the truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from kvnode.protocol.follow import (
    Continue,
    Diverged,
    FullSync,
    LogExtent,
    StalePrimary,
    Verdict,
    is_prefix,
    line_of,
    may_follow,
    position_of,
    reigns_until,
)
from kvnode.protocol.types import Epoch, History, Position, Reign, Seq

ONE, TWO, THREE, FOUR = (Epoch.of(term, 0xA0 + term) for term in (1, 2, 3, 4))
OTHER_TWO = Epoch.of(2, 0xB2)
NONE = Position(Epoch(0), 0)


def history(*reigns: tuple[Epoch, Seq]) -> History:
    return History(tuple(Reign(*reign) for reign in reigns))


PRIMARY = history((ONE, 1), (TWO, 5), (THREE, 9))


# ---- by example ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "replica_history", "verdict"),
    [
        (NONE, history(), Continue(1)),
        (NONE, PRIMARY, Continue(1)),
        (Position(ONE, 1), history((ONE, 1)), Continue(2)),
        (Position(ONE, 4), history((ONE, 1)), Continue(5)),
        (Position(TWO, 5), history((ONE, 1), (TWO, 5)), Continue(6)),
        (Position(TWO, 8), history((ONE, 1), (TWO, 5)), Continue(9)),
        (Position(THREE, 12), PRIMARY, Continue(13)),
        # It holds entries of a reign that ended earlier here.
        (Position(ONE, 5), history((ONE, 1)), Diverged(Position(ONE, 4))),
        (Position(TWO, 9), history((ONE, 1), (TWO, 5)), Diverged(Position(TWO, 8))),
        # Of a reign that never was here; the fork is the end of the last one in common, on whichever side that is.
        (Position(OTHER_TWO, 7), history((ONE, 1), (OTHER_TWO, 7)), Diverged(Position(ONE, 4))),
        (Position(OTHER_TWO, 3), history((ONE, 1), (OTHER_TWO, 3)), Diverged(Position(ONE, 2))),
        (Position(OTHER_TWO, 3), history((OTHER_TWO, 1)), Diverged(NONE)),
        # More than the primary has of its own last reign.
        (Position(THREE, 13), PRIMARY, Diverged(Position(THREE, 12))),
        # A reign that the replica only knows of says nothing about its entries...
        (Position(ONE, 5), history((ONE, 1), (TWO, 6)), Diverged(Position(ONE, 4))),
        (Position(ONE, 3), history((ONE, 1), (OTHER_TWO, 4)), Continue(4)),
        # ... but that there was a later primary.
        (Position(ONE, 3), history((ONE, 1), (FOUR, 6)), StalePrimary(4)),
        (NONE, history((FOUR, 1)), StalePrimary(4)),
        (Position(FOUR, 9), history((ONE, 1), (FOUR, 5)), StalePrimary(4)),
        (Position(FOUR, 0), history(), StalePrimary(4)),
    ],
)
def test_verdict_on_a_whole_log(position: Position, replica_history: History, verdict: Verdict) -> None:
    assert may_follow(PRIMARY, LogExtent(1, 12), position, replica_history) == verdict


@pytest.mark.parametrize(
    ("first_seq", "seq", "goes_on"), [(1, 0, True), (2, 0, False), (2, 1, True), (9, 7, False), (9, 8, True)]
)
def test_the_log_must_reach_back(first_seq: Seq, seq: Seq, goes_on: bool) -> None:
    verdict = may_follow(PRIMARY, LogExtent(first_seq, 12), position_of(PRIMARY, seq), PRIMARY)
    assert verdict == Continue(seq + 1) if goes_on else isinstance(verdict, FullSync)


def test_an_empty_log_after_a_full_sync_still_has_its_history() -> None:
    assert may_follow(PRIMARY, LogExtent(13, 12), Position(THREE, 12), PRIMARY) == Continue(13)
    assert isinstance(may_follow(PRIMARY, LogExtent(13, 12), NONE, history()), FullSync)


def test_position_names_the_epoch_of_the_last_entry() -> None:
    assert position_of(PRIMARY, 0) == position_of(history(), 0) == NONE
    assert position_of(PRIMARY, 4) == Position(ONE, 4)
    assert position_of(PRIMARY, 5) == Position(TWO, 5)


def test_reigns_that_ordered_nothing_are_left_out() -> None:
    assert reigns_until(PRIMARY, 9) is PRIMARY
    assert reigns_until(PRIMARY, 8) == reigns_until(PRIMARY, 5) == history((ONE, 1), (TWO, 5))
    assert reigns_until(PRIMARY, 0) == reigns_until(history(), 3) == history()


# ---- all small histories ---------------------------------------------------------------------------------------

MAX_ENTRIES = 4
MAX_EPOCHS = 3


class Log(NamedTuple):
    """A node as the model sees it.

    Attributes:
        entries: each is the epoch that ordered it and a number that no other entry has.
        history: (epoch, first seq) as the node has it on disk.
        reigning: whether its last reign is its own.
    """

    entries: tuple[tuple[Epoch, int], ...]
    history: History
    reigning: bool


class World(NamedTuple):
    """Three nodes, and what was used up."""

    nodes: tuple[Log, Log, Log]
    entries: int
    epochs: int


def step_node(world: World, at: int, node: Log, *, entries: int = 0, epochs: int = 0) -> World:
    nodes = list(world.nodes)
    nodes[at] = node
    return World((nodes[0], nodes[1], nodes[2]), world.entries + entries, world.epochs + epochs)


def successors(world: World) -> Iterator[World]:
    """All that can happen next. A node decides from the true entries whom it copies, never by the rule under test."""
    for at, node in enumerate(world.nodes):
        if world.epochs < MAX_EPOCHS:
            # A start as primary or a promotion, perhaps after a loss of the log's tail.
            for kept in range(len(node.entries) + 1):
                line = reigns_until(node.history, kept)
                # The number tells reigns of the same term apart.
                epoch = Epoch.of(node.history.current.term + 1, world.epochs + 1)
                yield step_node(world, at, Log(node.entries[:kept], line.begin(epoch, kept + 1), True), epochs=1)
        if node.reigning and world.entries < MAX_ENTRIES:
            added = (node.history.current, world.entries + 1)
            yield step_node(world, at, node._replace(entries=(*node.entries, added)), entries=1)
        if node.entries:
            yield step_node(world, at, Log(node.entries[:-1], node.history, False))
        for primary in world.nodes:
            if primary.reigning and primary.history.current.term >= node.history.current.term:
                # From a true prefix it goes on entry by entry; else a full sync, at whose end it holds any amount.
                whole = primary.entries[: len(node.entries)] == node.entries
                for count in range(len(node.entries) if whole else 0, len(primary.entries) + 1):
                    yield step_node(world, at, Log(primary.entries[:count], primary.history, False))


def canonical(world: World) -> World:
    """The order of the nodes does not matter."""
    first, second, third = sorted(world.nodes, key=lambda node: (node.history.reigns, node.entries, node.reigning))
    return world._replace(nodes=(first, second, third))


def reachable_pairs() -> set[tuple[Log, Log]]:
    """All (primary, replica) that can come about."""
    empty = Log((), History(), False)
    todo = [World((empty, empty, empty), 0, 0)]
    seen = set(todo)
    pairs = set()
    while todo:
        world = todo.pop()
        for primary in world.nodes:
            if primary.reigning:
                pairs.update((primary, replica) for replica in world.nodes if replica is not primary)
        for following in map(canonical, successors(world)):
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return pairs


def common_length(left: Log, right: Log) -> int:
    length = 0
    for one, other in zip(left.entries, right.entries, strict=False):
        if one != other:
            break
        length += 1
    return length


def true_verdict(primary: Log, replica: Log, first_seq: Seq) -> Verdict:
    """What follows from the entries themselves."""
    common, last_seq = common_length(primary, replica), len(replica.entries)
    if replica.history.current.term > primary.history.current.term:
        return StalePrimary(replica.history.current.term)
    if common < last_seq:
        return Diverged(Position(primary.entries[common - 1][0], common) if common else NONE)
    return FullSync("") if last_seq + 1 < first_seq else Continue(last_seq + 1)


@pytest.mark.timeout(120)
def test_the_rule_against_the_truth_over_all_small_histories() -> None:
    pairs = reachable_pairs()
    said = {Continue: 0, FullSync: 0, Diverged: 0, StalePrimary: 0}
    for primary, replica in pairs:
        durable_seq, last_seq = len(primary.entries), len(replica.entries)
        position = position_of(replica.history, last_seq)
        assert last_seq == 0 or position.epoch == replica.entries[-1][0]
        truth = common_length(primary, replica) == last_seq
        assert is_prefix(primary.history, durable_seq, position) is truth, (primary, replica)
        for first_seq in range(1, durable_seq + 2):
            log = LogExtent(first_seq, durable_seq)
            verdict = may_follow(primary.history, log, position, replica.history)
            expected = true_verdict(primary, replica, first_seq)
            said[type(verdict)] += 1
            if isinstance(expected, FullSync):
                assert isinstance(verdict, FullSync), (primary, replica, first_seq)
            else:
                assert verdict == expected, (primary, replica, first_seq)
            # The primary, which knows the position only, never says more, and misses at most that it is stale.
            alone = may_follow(primary.history, log, position, line_of(position))
            assert type(alone) is type(verdict) or isinstance(verdict, StalePrimary), (primary, replica, first_seq)
            assert truth or not isinstance(alone, Continue), (primary, replica, first_seq)
    assert len(pairs) > 1000
    assert min(said.values()) > 100, said
