"""What the routes below /cluster answer, decoded."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from kvnode.protocol.types import Epoch, Seq


class MemberPosition(msgspec.Struct, frozen=True, kw_only=True):
    """How far a member of the cluster is, as the node that was asked found out.

    Attributes:
        name: of the member; None where only the address is known.
        address: HOST:PORT of its peer port; None or empty where it is not known.
        reachable: whether it answered.
        reason: why it did not; None where it did.
        role: "primary" or "replica"; None where it did not answer, as in the fields that follow.
        epoch: of its last entry, as it prints.
        last_seq: the last seq that is durable there.
    """

    name: str | None = None
    address: str | None = None
    reachable: bool = False
    reason: str | None = None
    role: str | None = None
    epoch: str | None = None
    last_seq: int | None = None


class Promotion(NamedTuple):
    """A node has become the primary.

    Attributes:
        text: the JSON object as the node sent it.
        name: of the new primary.
        epoch: of its reign.
        last_seq: the last entry that it holds; its own begin after it.
        members: of the cluster, as they were when it decided.
    """

    text: bytes
    name: str
    epoch: Epoch
    last_seq: Seq
    members: tuple[MemberPosition, ...]


class _PromoteAnswer(msgspec.Struct):
    name: str
    epoch: str
    last_seq: int
    members: tuple[MemberPosition, ...]


class _ForgetAnswer(msgspec.Struct):
    name: str


def decode_promotion(answer: bytes) -> Promotion:
    """The answer to POST /cluster/promote.

    Raises:
        ValueError: it is not one.
    """
    decoded = msgspec.json.decode(answer, type=_PromoteAnswer)
    return Promotion(answer, decoded.name, Epoch.parse(decoded.epoch), decoded.last_seq, decoded.members)


def decode_forgotten(answer: bytes) -> str:
    """The answer to POST /cluster/forget: the name of the member that was dropped.

    Raises:
        ValueError: it is not one.
    """
    return msgspec.json.decode(answer, type=_ForgetAnswer).name


def members_in(fields: dict[str, Any]) -> tuple[MemberPosition, ...]:
    """The members that an error tells of; none where it does not, or in a form of its own."""
    try:
        return msgspec.convert(fields.get("members", ()), type=tuple[MemberPosition, ...])
    except msgspec.ValidationError:
        return ()
