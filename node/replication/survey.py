"""What the members of a cluster say of themselves, asked all at once, and what that says against a promotion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kvnode.node.config import Address
from kvnode.node.errors import PromotionRefused
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.probe import Found, ProbeFailed, probe_all
from kvnode.protocol.fields import Member
from kvnode.protocol.follow import position_of
from kvnode.protocol.messages import Role
from kvnode.protocol.types import Epoch, Position

#: How long a node may take to say how far it is.
_ANSWER_S = 1.0


@dataclass(frozen=True, slots=True)
class Survey:
    """The answers.

    Attributes:
        own_line: of this node, as `lines` has it.
        mine: this node's last entry.
        found: the nodes that answered, this one not among them, by node id.
        silent: those that did not: (name, address, why).
    """

    own_line: dict[str, Any]
    mine: Position
    found: dict[bytes, tuple[Address, Found]]
    silent: list[tuple[str | None, Address, str]]

    @property
    def highest_term(self) -> int:
        """That any of them has seen."""
        return max([found.term for _, found in self.found.values()], default=0)

    def later_term(self, own: Epoch) -> int | None:
        """The term of a primary that has reigned after the reign `own`, or reigns beside it; None = there is none.

        Two nodes that did not hear of each other can begin reigns of the same term. Of these the epoch decides, so that
        one of the two ends.
        """
        rivals = [
            found.welcome.history.current
            for _, found in self.found.values()
            if found.term > own.term or (found.welcome.role is Role.PRIMARY and found.welcome.history.current > own)
        ]
        return max(rivals).term if rivals else None

    def check(self) -> None:
        """Return if nothing speaks against a promotion of this node.

        Raises:
            PromotionRefused: a primary answers, or a node is ahead.
        """
        for _, found in self.found.values():
            if found.welcome.role is Role.PRIMARY:
                raise self._refusal("primary_answers", f"{found.welcome.name} answers as the primary")
        for _, found in self.found.values():
            if found.position > self.mine:
                raise self._refusal(
                    "member_ahead", f"{found.welcome.name} is ahead: it holds {found.position}, this node {self.mine}"
                )

    def _refusal(self, reason: str, message: str) -> PromotionRefused:
        return PromotionRefused(
            f"{message}; nothing was changed",
            hint="stop the primary first, or promote the member that is furthest; --force promotes all the same",
            reason=reason,
            members=self.lines,
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        """One JSON object for each member, this node first."""
        lines = [self.own_line]
        for address, found in self.found.values():
            welcome, position = found.welcome, found.position
            lines.append(_line(welcome.name, str(address), str(welcome.role), position))
        for name, address, why in self.silent:
            lines.append({"name": name, "address": str(address), "reachable": False, "reason": why})
        return lines


async def survey(shared: Shared, members: Iterable[Member]) -> Survey:
    """Ask all members but this node, and the primary that it follows."""
    others = [member for member in members if member.node_id != shared.node_id and member.address]
    names = {Address.parse(member.address): member.name for member in others}
    wanted = list(names)
    if shared.identity.primary is not None:
        wanted.append(Address.parse(shared.identity.primary))
    found: dict[bytes, tuple[Address, Found]] = {}
    silent: list[tuple[str | None, Address, str]] = []
    for address, answer in (await probe_all(wanted, _ANSWER_S, shared.cluster_id)).items():
        if isinstance(answer, ProbeFailed):
            silent.append((names.get(address), address, answer.message))
        elif answer.welcome.node_id != shared.node_id:
            found.setdefault(answer.welcome.node_id, (address, answer))
    # Asked last: this node may have come further meanwhile.
    mine = position_of(shared.store.history, shared.store.applied.seq)
    own_line = _line(shared.identity.name, shared.address, shared.identity.role, mine)
    return Survey(own_line, mine, found, silent)


def _line(name: str, address: str, role: str, position: Position) -> dict[str, Any]:
    return {
        "name": name,
        "address": address,
        "reachable": True,
        "role": role,
        "epoch": str(position.epoch),
        "last_seq": position.seq,
    }
