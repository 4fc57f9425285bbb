"""Before a node opens its data: a replica's first contact with its primary, and a primary's question who reigns."""

from __future__ import annotations

import asyncio

from kvnode.node.config import Address, Config
from kvnode.node.errors import JoinRefused
from kvnode.node.eventlog import EventLog
from kvnode.node.fs import Fs
from kvnode.node.replication.cluster import FINAL_REFUSALS
from kvnode.node.replication.members import load_members
from kvnode.node.replication.probe import Found, ProbeFailed, probe, probe_all
from kvnode.node.startup import OpenedDirectory, become_replica, load_identity
from kvnode.node.storage.datadir import Identity, Layout, StateFiles
from kvnode.protocol.messages import Role
from kvnode.protocol.types import History

#: What is answered to HELLO when no later attempt can succeed; the last one by somebody who is no kvnode.
FINAL_ANSWERS = FINAL_REFUSALS | {"protocol_error"}

#: How long the primary may take to answer, and the pauses between attempts to reach it.
_ANSWER_S = 5.0
_RETRY_FIRST_S = 0.25
_RETRY_LAST_S = 5.0

_WAITING_HINT = "is the primary running, and is this its peer address (--peer), not the one for REST?"

#: How long the members may take to say who reigns: a start waits for it.
_ASK_S = 1.0


async def join(config: Config, fs: Fs, primary: Address, log: EventLog) -> None:
    """Make the data directory one of a replica that follows `primary`; waits until that answers.

    A directory that follows it already is left as it is, and nobody is asked.

    Raises:
        JoinRefused: it cannot be; nothing was changed.
        StorageError, OSError: of the directory.
    """
    identity = load_identity(config, fs)
    if identity is not None and identity.role == "replica" and identity.primary == str(primary):
        return
    if primary in (config.peer, config.advertise):
        raise JoinRefused(
            "self_join", f"{primary} is this node's own peer address", "name the primary's, or give this node another"
        )
    found = await _reach(primary, identity, log)
    history = StateFiles(fs, Layout(config.data)).load_history() or History()
    _check(found, identity, history, primary)
    become_replica(config, fs, found.welcome.cluster_id, primary, found.welcome.node_id)
    log.info("joined", primary=primary, name=found.welcome.name, cluster_id=found.welcome.cluster_id.hex())


async def _reach(primary: Address, identity: Identity | None, log: EventLog) -> Found:
    delay_s = _RETRY_FIRST_S
    cluster_id = identity.cluster_bytes if identity is not None else b""
    while True:
        try:
            return await probe(primary, _ANSWER_S, cluster_id)
        except ProbeFailed as error:
            if error.refused in FINAL_ANSWERS:
                raise JoinRefused(error.refused, f"{primary} refuses: {error.message}") from error
            log.warning("join_waits", primary=primary, reason=error.message, retry_s=delay_s, hint=_WAITING_HINT)
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, _RETRY_LAST_S)


def _check(found: Found, identity: Identity | None, history: History, primary: Address) -> None:
    welcome, own_term = found.welcome, history.current.term
    if identity is not None and welcome.node_id == bytes.fromhex(identity.node_id):
        raise JoinRefused(
            "self_join",
            f"{primary} is this node itself, or a copy of its data directory",
            "name the primary's address; a copied directory cannot join, begin with an empty one",
        )
    if welcome.role is not Role.PRIMARY:
        raise JoinRefused(
            "not_primary",
            f"{welcome.name} at {primary} is a replica, and replicas follow primaries only",
            "`kvnode status` of that node names its primary",
        )
    if identity is None or identity.role != "primary" or identity.superseded_term is not None:
        return
    # Whoever starts nodes may run the command that once made this one a replica, long after it was promoted. A primary
    # that has followed this node since reigns again because it was promoted last, and is one to follow.
    is_unaware = identity.is_promoted_over(welcome.node_id, str(primary))
    if found.term < own_term or (found.term == own_term and is_unaware):
        raise JoinRefused(
            "stale_primary",
            f"this node has reigned with term {own_term} since, {welcome.name} at {primary} only with {found.term}",
            f"run this node with `kvnode start`, and join {welcome.name} to it; or promote {welcome.name} again first",
        )


async def later_term(opened: OpenedDirectory, log: EventLog) -> tuple[int | None, int]:
    """Ask the members that a primary knows what they have seen, before it begins to reign again.

    Returns:
        (the term of a primary that has reigned after this node, or reigns now; None if there is none. The highest term
        that was seen).
    """
    identity, own_term = opened.identity, opened.storage.history.current.term
    own_id = bytes.fromhex(identity.node_id)
    members = [each for each in load_members(opened.files) if each.node_id != own_id and each.address]
    answers = await probe_all([Address.parse(each.address) for each in members], _ASK_S, identity.cluster_bytes)
    found = {address: answer for address, answer in answers.items() if isinstance(answer, Found)}
    highest = max([answer.term for answer in found.values()], default=0)
    # A reign of the same term, of a node that did not hear of this one's, has the better claim: it goes on. But not one
    # of the primary that this node was promoted over, which came back when nobody could tell it.
    later = {
        address: answer.term
        for address, answer in found.items()
        if answer.term > own_term
        or (
            answer.term == own_term
            and answer.welcome.role is Role.PRIMARY
            and not identity.is_promoted_over(answer.welcome.node_id, str(address))
        )
    }
    if not later:
        return None, highest
    log.error("later_primary_found", term=own_term, later_term=max(later.values()), told_by=", ".join(map(str, later)))
    return max(later.values()), highest
