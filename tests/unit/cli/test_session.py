"""What a client has seen: only forward, in whatever order answers come, and past no reign that was not confirmed."""

import itertools

from kvnode.cli.client.session import Session
from kvnode.protocol.types import Epoch, Position


def at(term: int, seq: int) -> Position:
    return Position(Epoch.of(term, 0xBADCAFE), seq)


def test_nothing_was_seen_at_first() -> None:
    assert (Session().position, Session().unproven) == (None, ())


def test_within_a_reign_the_highest_seq_counts() -> None:
    for order in itertools.permutations([at(1, 3), at(1, 7), at(1, 5)]):
        session = Session()
        for position in order:
            session.saw(position)
        assert (session.position, session.unproven) == (at(1, 7), ())


def test_a_later_reign_is_further_also_with_a_lower_seq_and_what_was_seen_before_is_to_be_proven() -> None:
    for order in itertools.permutations([at(1, 100), at(2, 51), at(1, 99)]):
        session = Session()
        for position in order:
            session.saw(position)
        assert (session.position, session.unproven) == (at(2, 51), (at(1, 100),))


def test_what_was_written_in_each_reign_is_to_be_proven() -> None:
    session = Session()
    for position in (at(1, 10), at(2, 20), at(4, 30)):
        session.saw(position)
    assert (session.position, session.unproven) == (at(4, 30), (at(1, 10), at(2, 20)))


def test_a_read_that_asked_for_the_earlier_position_proves_it() -> None:
    session = Session(at(1, 100))
    session.saw(at(2, 250), proven=at(1, 100))
    assert (session.position, session.unproven) == (at(2, 250), ())


def test_a_read_that_asked_for_less_proves_less() -> None:
    session = Session(at(1, 99))
    session.saw(at(1, 100))
    session.saw(at(2, 250), proven=at(1, 99))
    assert session.unproven == (at(1, 100),)
    session.saw(at(2, 250), proven=at(1, 100))
    assert session.unproven == ()


def test_a_node_of_an_earlier_reign_proves_nothing_about_the_newest() -> None:
    session = Session(at(1, 100))
    session.saw(at(3, 120))
    session.saw(at(2, 110), proven=at(1, 100))
    assert (session.position, session.unproven) == (at(3, 120), (at(1, 100), at(2, 110)))
    session.saw(at(3, 119), proven=at(2, 110))
    session.saw(at(3, 119), proven=at(1, 100))
    assert (session.position, session.unproven) == (at(3, 120), ())


def test_an_empty_node_has_shown_nothing_that_could_be_lost() -> None:
    session = Session(at(1, 0))
    session.saw(at(2, 1))
    assert session.unproven == ()


def test_a_new_session_begins_with_nothing() -> None:
    session = Session(at(1, 100))
    session.saw(at(2, 1))
    session.forget()
    assert (session.position, session.unproven) == (None, ())
    session.saw(at(1, 5))
    assert session.position == at(1, 5)
