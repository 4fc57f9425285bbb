"""The value types: epochs, positions, operations, histories."""

import pickle

import pytest

from kvnode.protocol.types import (
    OP_DELETE,
    OP_PUT,
    Delete,
    Entry,
    Epoch,
    History,
    Position,
    Put,
    Reign,
    delete,
    put,
)

ONE, TWO, THREE = Epoch.of(1, 0xFFFF_FFFF), Epoch.of(2, 0), Epoch.of(3, 0x9F2C1A7B)

HISTORY = History((Reign(ONE, 1), Reign(TWO, 5), Reign(THREE, 9)))


# ---- epochs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "random_bits", "text"),
    [
        (0, 0, "0.00000000"),
        (3, 0x9F2C1A7B, "3.9f2c1a7b"),
        (1, 1, "1.00000001"),
        (4294967295, 0xFFFF_FFFF, "4294967295.ffffffff"),
    ],
)
def test_epoch_prints_and_parses(term: int, random_bits: int, text: str) -> None:
    epoch = Epoch.of(term, random_bits)
    assert str(epoch) == f"{epoch}" == text
    assert repr(epoch) == f"Epoch({text})"
    assert epoch.term == term
    assert epoch == term << 32 | random_bits
    parsed = Epoch.parse(text)
    assert (parsed, type(parsed)) == (epoch, Epoch)


@pytest.mark.parametrize(
    "text",
    [
        *("", "3", "3.", ".9f2c1a7b", "3.9f2c1a7", "3.9f2c1a7b0", "3.9F2C1A7B", "03.9f2c1a7b", "-1.9f2c1a7b"),
        *(
            " 3.9f2c1a7b",
            "3.9f2c1a7b\n",
            "3 .9f2c1a7b",
            "3.9f2c1a7g",
            "4294967296.00000000",
            "٣.9f2c1a7b",
            "9999999999.0",
        ),
    ],
)
def test_other_text_is_no_epoch(text: str) -> None:
    with pytest.raises(ValueError, match="epoch"):
        Epoch.parse(text)


@pytest.mark.parametrize(("term", "random_bits"), [(-1, 0), (0, -1), (2**32, 0), (0, 2**32)])
def test_halves_out_of_range(term: int, random_bits: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Epoch.of(term, random_bits)


def test_epochs_order_by_term_first() -> None:
    assert Epoch(0) < ONE < TWO < THREE


def test_epoch_survives_pickling() -> None:
    copied = pickle.loads(pickle.dumps(THREE))
    assert (copied, type(copied)) == (THREE, Epoch)


def test_position_prints_as_a_version() -> None:
    assert str(Position(THREE, 42)) == "3.9f2c1a7b-42"
    assert Position(ONE, 9) < Position(TWO, 1)


# ---- operations ------------------------------------------------------------------------------------------------


def test_operations_are_arrays_in_the_order_of_the_format() -> None:
    assert put(b"k", b"1", 7) == Put(OP_PUT, b"k", 7, b"1") == (1, b"k", 7, b"1")
    assert put(b"k", b"1").expires_ms == 0
    assert delete(b"k") == Delete(OP_DELETE, b"k") == (2, b"k")
    entry = Entry(5, THREE, 9, (delete(b"k"),))
    assert entry == (5, THREE, 9, ((2, b"k"),))
    assert entry.position == Position(THREE, 5)


def test_kinds_are_what_was_once_persisted() -> None:
    assert (OP_PUT, OP_DELETE) == (1, 2)


# ---- histories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reigns",
    [
        [Reign(ONE, 0)],
        [Reign(Epoch.of(0, 5), 1)],
        [Reign(ONE, 1), Reign(ONE, 2)],
        [Reign(ONE, 1), Reign(Epoch.of(1, 0), 2)],
        [Reign(TWO, 1), Reign(ONE, 2)],
        [Reign(ONE, 1), Reign(TWO, 1)],
        [Reign(ONE, 5), Reign(TWO, 4)],
    ],
)
def test_history_rises(reigns: list[Reign]) -> None:
    with pytest.raises(ValueError, match="not rising"):
        History(tuple(reigns))


def test_history_lists_its_reigns() -> None:
    assert list(HISTORY) == [Reign(ONE, 1), Reign(TWO, 5), Reign(THREE, 9)]
    assert list(History()) == []
    assert HISTORY.current == THREE
    assert History().current == Epoch(0)


@pytest.mark.parametrize(
    ("seq", "epoch"),
    [(0, Epoch(0)), (1, ONE), (4, ONE), (5, TWO), (8, TWO), (9, THREE), (10**18, THREE)],
)
def test_epoch_of_a_seq(seq: int, epoch: Epoch) -> None:
    assert HISTORY.epoch_of(seq) == epoch
    assert History().epoch_of(seq) == Epoch(0)


@pytest.mark.parametrize(
    ("epoch", "end"),
    [(ONE, 4), (TWO, 8), (THREE, 11), (Epoch.of(1, 0), None), (Epoch.of(4, 0), None), (Epoch(0), None)],
)
def test_end_of_an_epoch(epoch: Epoch, end: int | None) -> None:
    assert HISTORY.end(epoch, durable_seq=11) == end


def test_new_reign_is_added() -> None:
    four = Epoch.of(4, 1)
    assert list(HISTORY.begin(four, 12)) == [*HISTORY, Reign(four, 12)]
    assert list(History().begin(ONE, 1)) == [Reign(ONE, 1)]


def test_reign_without_entries_is_replaced() -> None:
    four = Epoch.of(4, 1)
    assert list(HISTORY.begin(four, 9)) == [Reign(ONE, 1), Reign(TWO, 5), Reign(four, 9)]
    assert list(History((Reign(ONE, 1),)).begin(TWO, 1)) == [Reign(TWO, 1)]


@pytest.mark.parametrize(
    ("epoch", "first_seq"),
    [(THREE, 12), (TWO, 12), (Epoch.of(3, 0xFFFF_FFFF), 9), (Epoch.of(4, 0), 8)],
)
def test_reign_that_does_not_follow_is_refused(epoch: Epoch, first_seq: int) -> None:
    with pytest.raises(ValueError, match=r"does not follow|not rising"):
        HISTORY.begin(epoch, first_seq)
