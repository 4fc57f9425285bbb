"""Who may come in: what the accepting side answers to HELLO, as one pure function.

The checks of the connecting side, on WELCOME, are its machine's: `replica`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from kvnode.protocol.fields import Member
from kvnode.protocol.messages import MAX_VERSION, MIN_VERSION, Error, Hello, Purpose


class LiveSession(NamedTuple):
    """A session of purpose `replica` that is not closed.

    Attributes:
        node_id: 16 bytes.
        boot_id: 16 bytes.
    """

    node_id: bytes
    boot_id: bytes


@dataclass(frozen=True, slots=True)
class Admit:
    """Answer with WELCOME."""

    #: the session's
    version: int
    #: whether an earlier session of the same process must be closed first
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with this, and close."""

    error: Error


Answer: TypeAlias = Admit | Refuse


def answer_hello(
    hello: Hello, cluster_id: bytes, me: Member, members: Iterable[Member], sessions: Iterable[LiveSession]
) -> Answer:
    """Decide on a connection.

    Names and duplicates matter for replicas only: all others count for nothing, and may come as often as they like.

    Args:
        cluster_id: of this node; a HELLO with an empty one is not compared.
        me: this node.
        members: of the cluster, as far as this node knows.
        sessions: of replicas, open here.
    """
    version = min(hello.max_version, MAX_VERSION)
    if version < max(hello.min_version, MIN_VERSION):
        return _refuse(
            "unsupported_version",
            f"versions {MIN_VERSION} to {MAX_VERSION} are spoken here, not {hello.min_version} to {hello.max_version}; "
            "update the older one",
        )
    if hello.cluster_id and hello.cluster_id != cluster_id:
        return _refuse(
            "wrong_cluster",
            f"this node belongs to cluster {cluster_id.hex()}, not {hello.cluster_id.hex()}; check the address, or "
            "join with an empty data directory",
        )
    if hello.purpose is not Purpose.REPLICA:
        return Admit(version)
    if hello.node_id == me.node_id:
        return _refuse(
            "self_join", "this is the same node: a node cannot follow itself, nor a copy of its directory it"
        )
    for member in (me, *members):
        if member.name == hello.name and member.node_id != hello.node_id:
            return _refuse(
                "name_taken",
                f"another node is called {hello.name}: choose another name, or forget that node if it will not return",
            )
    live = [session for session in sessions if session.node_id == hello.node_id]
    if any(session.boot_id != hello.boot_id for session in live):
        return _refuse(
            "duplicate_node",
            f"a node with the id of {hello.name} is connected; this may be a copy of its data directory, or the old "
            "process is still there",
        )
    return Admit(version, replaces=bool(live))


def _refuse(code: str, message: str) -> Refuse:
    return Refuse(Error(code, message))
