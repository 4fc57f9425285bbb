"""What is answered to HELLO."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvnode.protocol.fields import Member
from kvnode.protocol.handshake import Admit, Answer, LiveSession, Refuse, answer_hello
from kvnode.protocol.messages import Hello, Purpose

CLUSTER = b"c" * 16
ME, OTHER = Member(b"p" * 16, "web1"), Member(b"o" * 16, "web3")
HELLO = Hello(1, 1, CLUSTER, b"r" * 16, b"b" * 16, "web2", Purpose.REPLICA, (), b"", "")
BOOTED = LiveSession(HELLO.node_id, HELLO.boot_id)
AGAIN = LiveSession(HELLO.node_id, b"x" * 16)


def answer(hello: Hello, *sessions: LiveSession) -> Answer:
    return answer_hello(hello, CLUSTER, ME, (ME, OTHER), sessions)


@pytest.mark.parametrize(
    ("hello", "sessions"),
    [
        (HELLO, ()),
        (replace(HELLO, cluster_id=b""), ()),
        (replace(HELLO, max_version=7), ()),
        (HELLO, (LiveSession(OTHER.node_id, b"x" * 16),)),
        # What is no replica may bear any name, and be there any number of times.
        (replace(HELLO, purpose=Purpose.OBSERVE, name="web1", node_id=ME.node_id), (AGAIN,)),
        (replace(HELLO, purpose=Purpose.CLIENT, name="web3"), (AGAIN,)),
    ],
)
def test_admitted(hello: Hello, sessions: tuple[LiveSession, ...]) -> None:
    assert answer(hello, *sessions) == Admit(1)


def test_the_same_process_replaces_its_session() -> None:
    assert answer(HELLO, BOOTED) == Admit(1, replaces=True)


@pytest.mark.parametrize(
    ("hello", "sessions", "code"),
    [
        (replace(HELLO, min_version=2, max_version=3), (), "unsupported_version"),
        (replace(HELLO, cluster_id=b"x" * 16), (), "wrong_cluster"),
        (replace(HELLO, cluster_id=b"x" * 16, purpose=Purpose.OBSERVE), (), "wrong_cluster"),
        (replace(HELLO, node_id=ME.node_id), (), "self_join"),
        (replace(HELLO, name="web1"), (), "name_taken"),
        (replace(HELLO, name="web3"), (), "name_taken"),
        (HELLO, (AGAIN,), "duplicate_node"),
        (HELLO, (BOOTED, AGAIN), "duplicate_node"),
    ],
)
def test_refused(hello: Hello, sessions: tuple[LiveSession, ...], code: str) -> None:
    said = answer(hello, *sessions)
    assert isinstance(said, Refuse)
    assert said.error.code == code
