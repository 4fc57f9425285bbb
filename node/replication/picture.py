"""All nodes of a cluster as one of them can show them, for those who watch; a replica asks its primary."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from kvnode.node.config import Address
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.probe import ProbeFailed, ask_status

#: How often a primary is asked at most, while somebody watches, and how long it may take to answer.
_ASK_S = 2.0
_ANSWER_S = 1.5

#: How old an answer may be that is shown.
_FRESH_S = 4.5

#: Of a member's line on a primary, what is shown.
_SHOWN = ("applied_seq", "lag_entries", "lag_s", "retention", "synced_keys")


class _Answer(NamedTuple):
    """What a primary said.

    Attributes:
        is_over: whether it orders no writes any more.
        nodes: the lines of itself and of its replicas.
    """

    name: str
    is_over: bool
    nodes: list[dict[str, Any]]


class ClusterPicture:
    """Draws the lines of the cluster's nodes. Nothing is asked unless it is drawn.

    A node's `state` is one of those that a primary's /status shows for its replicas, or

        reigning     it is the primary and orders writes
        superseded   it was the primary; a later one has reigned
        following    it is connected to its primary, which does not say more
        asking       what it is, the primary was asked just now; nothing is known against it
        no_answer    it is the primary, and does not answer
        unknown      who would know does not answer
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._task: asyncio.Task[None] | None = None
        self._asked: Address | None = None
        self._asked_at = float("-inf")
        #: what came of the last question, and when: an answer, or why there is none
        self._outcome: _Answer | str = ""
        self._known_at = float("-inf")

    def draw(self, status: dict[str, Any], primary_name: str | None = None) -> dict[str, Any]:
        """The lines, from this node's own /status and what its primary says.

        Args:
            primary_name: of the primary that this node follows, if it is known: the address that it follows may be
                another spelling of the one that the members know. If not, the address must do.

        Returns:
            ``{"nodes": [...], "source": "self" | "primary" | "asking"}``; and a `reason`, if this node does not know
            better: it cannot, or, while the source is "asking", it has asked its primary and no answer is due yet.
        """
        primary = status["primary"]
        if primary is None:
            if "fenced" in status:
                return self._own_picture(status, status["fenced"], None)
            return {"nodes": self._lines_of_primary(status, self._shared.address), "source": "self"}
        address = Address.parse(primary["address"])
        self._ask(address)
        answer = self._outcome
        if self._shared.loop.time() > self._known_at + _FRESH_S:
            # Nobody has watched for a while, if ever: that is nothing against the primary.
            return self._own_picture(status, f"asking the primary at {address}", primary_name, source="asking")
        if isinstance(answer, str):
            return self._own_picture(status, f"the primary at {address} does not answer: {answer}", primary_name)
        if answer.is_over:
            return self._own_picture(status, f"{answer.name} at {address} is not the primary any more", primary_name)
        # All of it as it was then: a newer position of this node beside it would be ahead of the primary's.
        nodes = list(answer.nodes)
        if not any(node["is_self"] for node in nodes):
            nodes.append(self._own_line(status))
        return {"nodes": nodes, "source": "primary"}

    def stop(self) -> None:
        """Ask nobody any more."""
        if self._task is not None:
            self._task.cancel()

    # ---- asking --------------------------------------------------------------------------------------------------

    def _ask(self, address: Address) -> None:
        """Have the primary asked, if it is time."""
        now = self._shared.loop.time()
        if address != self._asked:
            self._asked, self._asked_at, self._known_at = address, float("-inf"), float("-inf")
            self.stop()
            self._task = None
        if self._task is None and now >= self._asked_at + _ASK_S:
            self._asked_at = now
            self._task = self._shared.loop.create_task(self._take(address))

    async def _take(self, address: Address) -> None:
        me = asyncio.current_task()
        try:
            outcome = await self._outcome_of(address)
            if self._task is me:
                self._outcome, self._known_at = outcome, self._shared.loop.time()
        finally:
            # Else another primary is asked meanwhile.
            if self._task is me:
                self._task = None

    async def _outcome_of(self, address: Address) -> _Answer | str:
        """The answer of a node, or why there is none."""
        try:
            said = await ask_status(address, _ANSWER_S, self._shared.cluster_id)
            is_over = said["role"] != "primary" or "fenced" in said
            return _Answer(said["name"], is_over, self._lines_of_primary(said, str(address)))
        except ProbeFailed as error:
            return error.message
        except (LookupError, TypeError):
            # Another version than this one, or something else altogether.
            return "what it says of itself is not understood"

    # ---- lines ---------------------------------------------------------------------------------------------------

    def _lines_of_primary(self, status: dict[str, Any], address: str) -> list[dict[str, Any]]:
        """Of a primary and of its replicas, from its status."""
        own_name = self._shared.identity.name
        primary = {
            "name": status["name"],
            "address": address,
            "role": "primary",
            "state": "reigning",
            "is_self": status["name"] == own_name,
            "applied_seq": status["applied_seq"],
        }
        return [primary] + [
            {
                "name": each["name"],
                "address": each["address"],
                "role": "replica",
                "state": each["state"],
                "is_self": each["name"] == own_name,
                **{name: each[name] for name in _SHOWN if name in each},
            }
            for each in status["replicas"]
        ]

    def _own_line(self, status: dict[str, Any]) -> dict[str, Any]:
        primary = status["primary"]
        line = {
            "name": status["name"],
            "address": self._shared.address,
            "role": status["role"],
            "is_self": True,
            "applied_seq": status["applied_seq"],
        }
        if primary is None:
            return line | {"state": "superseded"}
        if not primary["connected"]:
            # How far it is behind, nobody tells it.
            return line | {"state": "disconnected"}
        state = "full_sync" if "sync" in status else "following"
        return line | {"state": state, "lag_entries": primary["lag_entries"], "lag_s": primary["lag_s"]}

    def _own_picture(
        self, status: dict[str, Any], reason: str, primary_name: str | None, *, source: str = "self"
    ) -> dict[str, Any]:
        """What this node knows without its primary."""
        is_asking = source == "asking"
        primary_address = status["primary"]["address"] if status["primary"] is not None else None
        nodes = []
        for member in status["members"]:
            if member["name"] == status["name"]:
                continue
            if primary_name is not None:
                is_primary = member["name"] == primary_name
            else:
                is_primary = member["address"] == primary_address
            known = "no_answer" if is_primary else "unknown"
            nodes.append(
                {
                    "name": member["name"],
                    "address": member["address"],
                    "role": "primary" if is_primary else "member",
                    "state": "asking" if is_asking else known,
                    "is_self": False,
                }
            )
        nodes.sort(key=lambda node: node["role"] != "primary")
        return {"nodes": [*nodes, self._own_line(status)], "source": source, "reason": reason}
