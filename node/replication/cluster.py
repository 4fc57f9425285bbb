"""This node among others: its role, who may connect, and where its reads and writes go. The root of replication.

A node is one of these, and changes from one to another only here:

    reigning     the primary: orders writes, streams its log to replicas             `Reign`
    superseded   a primary that has heard of a later one: reads only                 `superseded_term`
    following    a replica: takes its primary's log over, forwards writes to it      `Following`, `Forwarder`
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from kvnode.node.api import Acks, Item, KeyRange, RangeStream, ReadResult, ReadToken, Record, WriteResult
from kvnode.node.config import Address
from kvnode.node.errors import (
    AlreadyPrimary,
    Draining,
    JoinRefused,
    NoPrimary,
    NotCaughtUp,
    NotEnoughReplicas,
    NotPrimary,
    NotReplica,
    OutcomeUnknown,
    PromotionRefused,
    Syncing,
)
from kvnode.node.limits import check_limits
from kvnode.node.metrics import ClusterMeasures
from kvnode.node.replication.alarm import Alarm
from kvnode.node.replication.following import Following
from kvnode.node.replication.forwarding import Forwarder
from kvnode.node.replication.link import PeerLink
from kvnode.node.replication.listener import PeerListener
from kvnode.node.replication.members import StoredMembers
from kvnode.node.replication.observing import Observer
from kvnode.node.replication.picture import ClusterPicture
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.reign import Reign, not_primary
from kvnode.node.replication.replicadisk import ReplicaDisk
from kvnode.node.replication.serving import ClientSession
from kvnode.node.replication.survey import survey
from kvnode.node.storage.datadir import Identity
from kvnode.node.storage.replicafiles import ReplicaFiles
from kvnode.node.store import Store
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.follow import reigns_until
from kvnode.protocol.handshake import Refuse, answer_hello
from kvnode.protocol.messages import NODE_FEATURES, Hello, Purpose, Role, Status, StatusResult, Welcome
from kvnode.protocol.types import Epoch, History, Op, Position, Seq

#: What ends `kvnode join`, when it is the first thing that the primary says.
FINAL_REFUSALS = frozenset({"wrong_cluster", "self_join", "name_taken", "unsupported_version"})
#: And this does, if it is still said after so long.
_DUPLICATE_S = 12.0

#: How often a primary asks members that do not follow it whether they have seen a later one.
_WATCH_S = 5.0

#: The largest frame of those who only ask or follow: a SUBSCRIBE may hold a key.
_SMALL_FRAME_BYTES = 128 * 1024

#: Hosts that stand for every interface, as `Address` has them.
_WILDCARDS = ("0.0.0.0", "::")


class Cluster:
    """The node's part in its cluster; implements `StoreApi` for the fronts, and `Followers` for the store."""

    def __init__(
        self,
        shared: Shared,
        store: Store,
        files: ReplicaFiles,
        status: Callable[[], dict[str, Any]],
        on_failure: Callable[[BaseException], None],
        *,
        superseded_term: int | None,
        joining: bool,
    ) -> None:
        """Build the parts; `start` opens the doors.

        Args:
            status: what STATUS is answered with.
            on_failure: called when the node cannot go on.
            superseded_term: of a later primary than this one, if there was any.
            joining: whether a refusal by the primary ends the process, as nothing was there before.
        """
        self._shared = shared
        self._store = store
        self._files = files
        self._status = status
        self._on_failure = on_failure
        self._joining = joining
        self._superseded_term = superseded_term
        self._members = StoredMembers(shared.files, shared.disk)
        self._replica_disk = ReplicaDisk(shared, files, self._members)
        self._listener = PeerListener(shared.config, self._greet)
        self._reign: Reign | None = None
        self._following: Following | None = None
        self._forwarder: Forwarder | None = None
        self._observers: set[Observer] = set()
        self._picture = ClusterPicture(shared)
        self._draining = False
        self._promoting = False
        self._advance_due = False
        self._watch_alarm = Alarm(shared.loop, self._watch)
        self._watch_task: asyncio.Task[None] | None = None
        self._encode_json = msgspec.json.Encoder(enc_hook=str).encode
        store.attach(self)

    # ---- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> Address:
        """Listen for peers, and take up the role that the identity says.

        Raises:
            OSError: the address cannot be bound.
            StorageError: a full sync that was cut cannot be looked at.
        """
        shared = self._shared
        address = await self._listener.start()
        shared.address = str(shared.config.advertise or address)
        if shared.identity.role == "replica":
            await self._follow()
        elif self._superseded_term is None:
            self._begin_reign()
        else:
            self._end_reign(self._superseded_term)
        return address

    def stop_accepting(self) -> None:
        """Take no new sessions and no writes."""
        self._draining = True
        self._listener.stop_accepting()

    async def drain(self, timeout_s: float) -> None:
        """Give replicas a moment for the last entries."""
        if self._reign is not None:
            await self._reign.drain(timeout_s)

    def end_waits(self) -> None:
        """End what waits for replicas or for the primary, because the node is stopping."""
        if self._reign is not None:
            self._reign.end_waits()

    async def stop(self) -> None:
        """End all sessions, and all work on the disk that they asked for."""
        self._listener.stop_accepting()
        self._picture.stop()
        self._watch_alarm.cancel()
        if self._watch_task is not None:
            self._watch_task.cancel()
        if self._forwarder is not None:
            await self._forwarder.stop()
        if self._following is not None:
            await self._following.stop()
        if self._reign is not None:
            self._reign.end("draining", "this node is stopping")
        await self._listener.close("this node is stopping")
        await self._replica_disk.close()
        for worker in (self._shared.disk, self._shared.log_reads, self._shared.snapshot_reads):
            await worker.run(lambda: None)
            worker.stop()

    async def abandon(self) -> None:
        """End all sessions after a failure; what threads are in the middle of is left to the end of the process."""
        self._picture.stop()
        self._watch_alarm.cancel()
        await self._listener.close("this node has failed")

    # ---- roles ---------------------------------------------------------------------------------------------------

    def _begin_reign(self) -> None:
        self._reign = Reign(self._shared, self._members, self._superseded)
        self._watch_alarm.set(self._shared.loop.time() + _WATCH_S)
        self._store.begin_reign(self._store.history)
        me = _as_member(self._shared)
        if me not in self._members.all:
            self._reign.add_member(me)

    async def _follow(self) -> None:
        shared = self._shared
        primary = Address.parse(shared.identity.primary or "")
        self._store.end_reign(lambda: NotPrimary(self._why_not_primary() or "this node's role is changing"))
        found = await self._replica_disk.found()
        self._following = Following(
            shared, self._replica_disk, found, primary, self._streamed_by, self._following_failed, self._on_failure
        )
        self._forwarder = Forwarder(shared, primary)

    def _streamed_by(self, primary_id: bytes) -> None:
        """Remember who the primary is: its address may have many spellings, and another node may take it over."""
        identity = self._shared.identity
        if identity.primary_id != primary_id.hex():
            self._note(replace(identity, primary_id=primary_id.hex()))

    def _reigns_no_more(self, node_id: bytes, address: str) -> None:
        """A node follows, or has been superseded: it reigns again only if it is promoted, and then later than this."""
        identity = self._shared.identity
        if identity.is_promoted_over(node_id, address):
            self._note(replace(identity, promoted_from=None, promoted_from_id=None))

    def _note(self, identity: Identity) -> None:
        """Know something more of other nodes, and save it; what cannot be saved is learned again after a start."""
        shared = self._shared
        shared.identity = identity
        shared.disk.submit(
            lambda: shared.files.save_identity(identity),
            lambda _: None,
            lambda error: shared.log.warning("identity_not_saved", reason=str(error)),
        )

    def _following_failed(self, code: str, message: str) -> None:
        following = self._following
        if not self._joining or following is None or following.was_connected:
            return
        # The session of this directory's last process may be there until its silence is noticed.
        is_final = following.age_s >= _DUPLICATE_S if code == "duplicate_node" else code in FINAL_REFUSALS
        if is_final:
            self._on_failure(JoinRefused(code, message))

    def _watch(self) -> None:
        """As a primary, ask members that do not follow this node whether they have seen a later one."""
        if self._reign is not None:
            self._watch_task = self._shared.loop.create_task(self._ask_strays())

    async def _ask_strays(self) -> None:
        reign = self._reign
        if reign is None:
            return
        seen = await survey(self._shared, reign.strays)
        if self._reign is reign:
            later_term = seen.later_term(self._store.history.current)
            if later_term is not None:
                self._superseded(later_term)
            else:
                for node_id, (address, found) in seen.found.items():
                    if found.welcome.role is not Role.PRIMARY:
                        self._reigns_no_more(node_id, str(address))
                self._watch_alarm.set(self._shared.loop.time() + _WATCH_S)

    def _superseded(self, term: int) -> None:
        """A later primary has reigned: order nothing any more, and remember it."""
        shared = self._shared
        self._end_reign(term)
        shared.identity = replace(shared.identity, superseded_term=term)
        identity = shared.identity
        shared.disk.submit(lambda: shared.files.save_identity(identity), lambda _: None, self._on_failure)

    def _end_reign(self, later_term: int) -> None:
        own_term = self._store.history.current.term
        reign, self._reign = self._reign, None
        self._superseded_term = later_term
        self._store.end_reign(lambda: not_primary(later_term, own_term))
        if reign is not None:
            reign.end("stale_primary", f"another primary reigns, or has, with term {later_term}")
        self._shared.log.error(
            "superseded",
            term=own_term,
            later_term=later_term,
            hint="this node takes no more writes; stop it, then `kvnode join PRIMARY:PEERPORT` on its data directory",
        )

    async def promote(self, *, force: bool) -> dict[str, Any]:
        """Make this node the primary.

        Returns:
            What POST /cluster/promote answers.

        Raises:
            AlreadyPrimary, PromotionRefused, Syncing.
        """
        if self._reign is not None:
            raise AlreadyPrimary(f"{self._shared.identity.name} is the primary", name=self._shared.identity.name)
        if self._promoting:
            raise PromotionRefused("a promotion is under way", reason="promotion_under_way", members=[])
        self._promoting = True
        try:
            seen = await survey(self._shared, self._members.all)
            self._check_state(force=force)
            if not force:
                seen.check()
            await self._promote(seen.highest_term, force=force)
        finally:
            self._promoting = False
        return {
            "status": "OK",
            "name": self._shared.identity.name,
            "epoch": str(self._store.history.current),
            "last_seq": self._store.applied.seq,
            "members": seen.lines,
        }

    def _check_state(self, *, force: bool) -> None:
        """Return if this node's data are fit to reign over.

        Raises:
            Syncing: they show no single state, which no force can help; or, without force, they are known to have
                diverged from a primary's.
        """
        machine = self._following.machine if self._following is not None else None
        if self._store.engine is None or (machine is not None and machine.serve_from is not None):
            raise Syncing("this node's data are being replaced or rebuilt: it cannot be promoted; promote another one")
        if machine is not None and machine.diverged and not force:
            raise Syncing(
                "this node's log has diverged from its primary's, and a full sync is to replace it; promoted by force "
                "it would go on with what only it has"
            )

    async def _promote(self, seen_term: int, *, force: bool) -> None:
        shared, store = self._shared, self._store
        following, forwarder = self._following, self._forwarder
        if forwarder is not None:
            await forwarder.stop()
        if following is not None:
            await following.stop()
        self._following = self._forwarder = None
        serve_from = await shared.disk.run(shared.files.load_serve_from)
        is_mixed = serve_from is not None and serve_from.seq > store.applied.seq
        if is_mixed or (following is not None and following.machine.diverged and not force):
            # That was just happening, and the machine did not hear of its end.
            await self._follow()
            raise Syncing("this node's data were just being replaced: it cannot be promoted now; promote another one")
        store.end_applied_waits("this node was promoted")
        last_seq = store.applied.seq
        own_term = max(store.history.current.term, self._superseded_term or 0)
        if following is not None:
            own_term = max(own_term, following.machine.latest_epoch.term)
        seen_term = max(own_term, seen_term)
        epoch = Epoch.of(1 + seen_term, secrets.randbits(32))
        history = reigns_until(store.history, last_seq).begin(epoch, last_seq + 1)
        identity = _as_primary(shared.identity)

        def save() -> None:
            # A crash in between leaves a replica, or a primary that begins a new epoch at its start. Before it is one,
            # its history must not speak of entries that it never had: of a primary's that is evidence of a loss. It
            # must speak of every term that was seen, wherever that was noted before. And the new reign comes last, lest
            # a replica tells its primary of a term that nobody reigns with.
            shared.files.save_history(_without_unknown(store.history, last_seq, seen_term))
            shared.files.save_identity(identity)
            shared.files.save_history(history)
            self._files.incoming.drop()
            shared.files.remove_serve_from()

        try:
            await shared.disk.run(save)
        except Exception as error:
            self._on_failure(error)
            raise
        shared.identity = identity
        self._superseded_term = None
        store.use_history(history)
        store.hold_back(None)
        shared.log.info("promoted", epoch=epoch, last_seq=last_seq)
        self._begin_reign()

    async def forget(self, name: str) -> None:
        """Let a member go that will not return.

        Raises:
            NotPrimary, MemberNotFound, MemberConnected.
        """
        why = self._why_not_primary()
        if why is not None or self._reign is None:
            raise NotPrimary(why or "this node is starting")
        await self._reign.forget(name)

    # ---- StoreApi ------------------------------------------------------------------------------------------------

    @property
    def applied(self) -> Position:
        return self._store.applied

    def write(self, ops: Sequence[Op], acks: Acks | None = None) -> asyncio.Future[WriteResult]:
        if self._reign is not None:
            return self._store.write(ops, acks)
        if self._draining:
            raise Draining("this node is stopping and takes no more writes; nothing was written")
        if self._forwarder is None:
            raise NotPrimary(self._why_not_primary() or "this node's role is changing; nothing was written")
        if self._following is not None and not self._following.machine.serving:
            raise Syncing("this node is taking over its primary's data; nothing was written")
        size = check_limits(self._shared.config, ops)
        return self._forwarder.write(ops, acks, size)

    def cached(self, key: bytes) -> Record | None:
        return self._store.cached(key)

    def read(self, key: bytes) -> asyncio.Future[ReadResult]:
        return self._store.read(key)

    async def read_range(self, wanted: KeyRange, encode: Callable[[Sequence[Item]], bytes]) -> RangeStream:
        return await self._store.read_range(wanted, encode)

    async def wait_applied(self, token: ReadToken) -> None:
        await self._store.wait_applied(token)

    # ---- Followers -----------------------------------------------------------------------------------------------

    def admit(self, acks: Acks) -> int:
        if self._reign is None:
            raise NotEnoughReplicas("no replica follows this node; nothing was written", asked=acks.count, following=0)
        return self._reign.admit(acks)

    def hold(self, future: asyncio.Future[WriteResult], result: WriteResult, wanted: int, timeout_s: float) -> None:
        if self._reign is not None:
            self._reign.hold(future, result, wanted, timeout_s)
        elif not future.done():
            # The reign ended while the write was on its way to the log.
            future.set_exception(OutcomeUnknown("the write is durable on this node, which is not the primary any more"))
            future.exception()

    def published(self, first_seq: Seq, records: Sequence[LogRecord]) -> None:
        if records:
            self._shared.tail.add(first_seq, records)
        if not self._advance_due:
            self._advance_due = True
            self._shared.loop.call_soon(self._advance)

    def pinned_seq(self) -> Seq | None:
        return None if self._reign is None else self._reign.pins.lowest_seq

    def log_trimmed(self, first_seq: Seq) -> None:
        if self._reign is not None:
            self._reign.log_trimmed(first_seq)

    def log_replaced(self) -> None:
        self._shared.tail.clear()
        for observer in list(self._observers):
            observer.log_replaced()

    def _advance(self) -> None:
        self._advance_due = False
        if self._reign is not None:
            self._reign.log_advanced()
        elif self._following is not None:
            self._following.published(self._store.applied.seq)
        for observer in list(self._observers):
            observer.published()

    # ---- peers ---------------------------------------------------------------------------------------------------

    def _greet(self, link: PeerLink, hello: Hello) -> None:
        """Answer a HELLO."""
        shared, reign = self._shared, self._reign
        sessions = reign.sessions if reign is not None else ()
        answer = answer_hello(hello, shared.cluster_id, shared.me, self._members.all, sessions)
        if isinstance(answer, Refuse):
            shared.log.warning(
                "peer_refused", address=link.peer, name=hello.name, code=answer.error.code, reason=answer.error.message
            )
            link.refuse(answer.error.code, answer.error.message)
            return
        link.trust(shared.config.max_write_frame_bytes if hello.purpose is Purpose.CLIENT else _SMALL_FRAME_BYTES)
        store = self._store
        # One that has been superseded is no primary to anybody else.
        role = Role.REPLICA if reign is None else Role.PRIMARY
        link.send(
            Welcome(
                answer.version,
                shared.cluster_id,
                shared.node_id,
                shared.identity.name,
                role,
                store.history,
                store.applied.seq,
                NODE_FEATURES,
            )
        )
        if hello.purpose is Purpose.OBSERVE:
            observer = Observer(shared, link, lambda: self._members.all, self._answer_status, self._observers.discard)
            self._observers.add(observer)
            link.owner = observer
        elif hello.purpose is Purpose.REPLICA and reign is not None:
            address = _reachable(hello.address, link.peer_host)
            link.owner = reign.begin_feed(link, hello, address)
            self._reigns_no_more(hello.node_id, address)
        else:
            link.owner = ClientSession(
                shared, link, store, self._forwarded(hello.node_id), self._answer_status, self._why_not_primary
            )

    def _forwarded(self, node_id: bytes) -> Callable[[Sequence[Op], Acks], asyncio.Future[WriteResult]]:
        """What orders the writes of a client, which may be a replica that forwards them."""

        def write(ops: Sequence[Op], acks: Acks) -> asyncio.Future[WriteResult]:
            if self._reign is not None:
                self._reign.hurry(node_id)
            return self._store.write(ops, acks)

        return write

    def _answer_status(self, link: PeerLink, frame: Status) -> None:
        link.send(StatusResult(frame.request_id, self._encode_json(self._status())))

    def _why_not_primary(self) -> str | None:
        """Why this node orders no writes; None = it does."""
        if self._reign is not None:
            return None
        identity = self._shared.identity
        if self._superseded_term is not None:
            return f"a later primary than {identity.name} has reigned with term {self._superseded_term}"
        return f"{identity.name} is a replica, its primary is at {identity.primary}"

    # ---- what is told of it --------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The members of /status that are about the cluster."""
        disk = self._replica_disk
        status: dict[str, Any] = {
            "role": self._shared.identity.role,
            "replicas": self._reign.status_of_replicas() if self._reign is not None else [],
            "primary": self._status_of_primary(),
            "full_syncs_received": disk.full_syncs_received,
            "full_syncs_sent": self._reign.full_syncs_sent if self._reign is not None else 0,
            "members": [{"name": each.name, "address": each.address} for each in self._members.all],
        }
        if self._superseded_term is not None:
            status["fenced"] = self._why_not_primary()
        if disk.diverged:
            status["diverged"] = disk.diverged
        if self._following is not None and self._following.machine.incoming is not None:
            status["sync"] = {"state": "receiving", "keys": disk.incoming_keys}
        elif self._following is not None and not self._following.machine.serving:
            status["sync"] = {"state": "replaying", "keys": disk.incoming_keys}
        return status

    def picture(self, status: dict[str, Any]) -> dict[str, Any]:
        """All nodes of the cluster, as far as this one can know; asks its primary now and then while this is called.

        Args:
            status: this node's /status.
        """
        primary_id = self._shared.identity.primary_id
        known = [each.name for each in self._members.all if each.node_id.hex() == primary_id]
        return self._picture.draw(status, known[0] if known else None)

    def _status_of_primary(self) -> dict[str, Any] | None:
        following = self._following
        if following is None:
            return None
        status: dict[str, Any] = {
            "address": following.link_address,
            "connected": following.machine.connected,
            "lag_entries": following.lag_entries,
            "lag_s": round(following.lag_s, 3),
        }
        if following.last_error is not None and not following.machine.connected:
            code, message = following.last_error
            status["error"] = {"code": code, "message": message}
        return status

    @property
    def measures(self) -> ClusterMeasures:
        """What a scrape is told of the cluster."""
        reign, following = self._reign, self._following
        return ClusterMeasures(
            is_primary=reign is not None,
            is_fenced=self._superseded_term is not None,
            members=len(self._members.all),
            peer_connections=self._listener.connection_count,
            full_syncs_sent=0 if reign is None else reign.full_syncs_sent,
            full_syncs_received=self._replica_disk.full_syncs_received,
            replicas=() if reign is None else reign.measures,
            primary=None if following is None else following.measures,
        )

    def check_ready(self, max_lag: int | None) -> None:
        """Return if a replica is as near to its primary as is asked for.

        Raises:
            Syncing, NoPrimary, NotCaughtUp.
        """
        following = self._following
        if following is None:
            return
        if not following.machine.serving:
            raise Syncing("this node has not finished its full sync")
        if following.machine.primary_seq and not following.machine.durable_seq:
            raise Syncing("this node has nothing of its primary's data yet")
        if max_lag is None:
            return
        if not following.machine.connected:
            raise NoPrimary(f"the primary at {following.link_address} is not connected")
        if following.lag_entries > max_lag:
            raise NotCaughtUp(f"{following.lag_entries} entries behind the primary", lag=following.lag_entries)

    def check_role(self, role: str) -> None:
        """Return if this node acts in `role`, else raise `NotPrimary` or `NotReplica`."""
        identity = self._shared.identity
        if role == "primary":
            why = self._why_not_primary()
            if why is not None:
                raise NotPrimary(why)
        elif identity.role != role:
            raise NotReplica(f"this node is a {identity.role}")


def _reachable(address: str, seen_host: str) -> str:
    """The address of a peer's own port: where it named every interface, at the one that it was seen to come from."""
    if not address:
        return ""
    parsed = Address.parse(address)
    return str(Address(seen_host, parsed.port)) if parsed.host in _WILDCARDS else address


def _as_primary(identity: Identity) -> Identity:
    """A node that was promoted; a primary that was superseded still has in mind whom it was promoted over before."""
    if identity.primary is not None:
        identity = replace(identity, promoted_from=identity.primary, promoted_from_id=identity.primary_id)
    return replace(identity, role="primary", primary=None, primary_id=None, superseded_term=None)


def _without_unknown(history: History, last_seq: Seq, seen_term: int) -> History:
    """The history of a log that ends at `last_seq`: the highest term that was seen, but no reign behind that end."""
    known = reigns_until(history, last_seq)
    latest = max(history.current, Epoch.of(seen_term, 0))
    return known if known.current.term >= latest.term else known.begin(latest, last_seq + 1)


def _as_member(shared: Shared) -> Member:
    """This node as others may reach it; of one that listens on every interface only they know where that is."""
    me = shared.me
    host = Address.parse(me.address).host
    return me._replace(address="") if host in _WILDCARDS else me
