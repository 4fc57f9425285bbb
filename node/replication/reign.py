"""This node as the primary: its replicas' sessions, what they pin, who is a member, and the waits for their acks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvnode.node.api import Acks, WriteResult
from kvnode.node.errors import MemberConnected, MemberNotFound, NotEnoughReplicas, NotPrimary
from kvnode.node.metrics import ReplicaMeasures
from kvnode.node.replication.acks import AckGate
from kvnode.node.replication.alarm import Alarm
from kvnode.node.replication.feed import FeedSession
from kvnode.node.replication.link import PeerLink
from kvnode.node.replication.members import StoredMembers
from kvnode.node.replication.ports import Shared
from kvnode.node.storage.wal import DISK_FULL_ERRNOS
from kvnode.protocol.fields import Member
from kvnode.protocol.handshake import LiveSession
from kvnode.protocol.lag import LagWatch
from kvnode.protocol.messages import Hello
from kvnode.protocol.primary import ReplicaFeed, ReplicaState
from kvnode.protocol.primary_events import LogAdvanced, LogTrimmed, MemberSaved, MembersChanged, PinLost
from kvnode.protocol.quorum import majority_acks
from kvnode.protocol.sync import SyncPins
from kvnode.protocol.types import Seq

#: How often pins are looked after, and members that are away.
_HOUSEKEEPING_S = 1.0

#: A replica for which nobody waits is told of new entries so often at most. Under load it is so much behind, and an
#: entry costs it half of what it would cost in groups as small as the primary's; see tests/bench/replication.py.
_COALESCE_S = 0.02

#: How long after a forwarded write somebody counts as waiting for its node.
_HURRY_S = 0.1


class _LastKnown(NamedTuple):
    """Of a replica that is not connected: what its last session left."""

    address: str
    sent_seq: Seq
    acked_seq: Seq
    applied_seq: Seq


@dataclass(slots=True)
class _Traffic:
    """What this reign counts of one replica: sessions that began, and bytes sent in those that are over."""

    sessions: int = 0
    sent_bytes: int = 0


class Reign:
    """One reign of this node, from its beginning to its end. Lives on the event loop; implements `FeedOwner`.

    Attributes:
        pins: what full syncs under way need of the log.
        full_syncs_sent: since the reign began.
    """

    def __init__(self, shared: Shared, members: StoredMembers, on_superseded: Callable[[int], None]) -> None:
        """Reign; the history ends with this reign's epoch, durably.

        Args:
            on_superseded: called once when a later term is heard of; the reign is over then.
        """
        self.pins = SyncPins(shared.config.wal_pin_bytes)
        self.full_syncs_sent = 0
        self._shared = shared
        self._members = members
        self._on_superseded = on_superseded
        self._acks = AckGate(shared.loop)
        self._feeds: dict[bytes, FeedSession] = {}
        self._last_known: dict[bytes, _LastKnown] = {}
        self._traffic: dict[bytes, _Traffic] = {}
        self._lag_watch = LagWatch(shared.loop.time())
        self._permitted: FeedSession | None = None
        self._permit_queue: deque[FeedSession] = deque()
        self._over = False
        self._advance_alarm = Alarm(shared.loop, self.log_advanced)
        self._housekeeping = shared.loop.call_later(_HOUSEKEEPING_S, self._keep_house)
        self._progress = asyncio.Event()

    # ---- what the store asks -------------------------------------------------------------------------------------

    def admit(self, acks: Acks) -> int:
        """How many replicas a write will wait for.

        Raises:
            NotEnoughReplicas: fewer follow.
        """
        wanted = majority_acks(len(self._members.all)) if acks.count is None else acks.count
        if wanted:
            following = sum([feed.machine.live and feed.link.is_open for feed in self._feeds.values()])
            if following < wanted:
                raise NotEnoughReplicas(
                    f"{wanted} replicas were asked for, {following} follow this node; nothing was written",
                    asked=wanted,
                    following=following,
                )
        return wanted

    def hold(self, future: asyncio.Future[WriteResult], result: WriteResult, wanted: int, timeout_s: float) -> None:
        """Answer a write when enough replicas hold it; before `log_advanced` of it."""
        self._acks.hold(future, result, wanted, timeout_s)

    def log_advanced(self) -> None:
        """Entries were published."""
        for feed in self._all_feeds():
            self._tell(feed)

    def _tell(self, feed: FeedSession) -> None:
        """Tell a replica's machine how far the log is, now or soon.

        Under load many entries at a time cost both sides far less than a few. So a replica is told only so often; but
        while somebody waits for it, as soon as it holds all that it was told of.
        """
        now, seq = self._shared.loop.time(), self._shared.store.applied.seq
        if seq <= feed.told_seq:
            return
        is_awaited = self._acks.waiting or now < feed.hurried_at + _HURRY_S
        if now >= feed.told_at + _COALESCE_S or (is_awaited and feed.machine.acked_seq >= feed.told_seq):
            feed.told_at, feed.told_seq = now, seq
            feed.step(LogAdvanced(seq))
        else:
            self._advance_alarm.set(feed.told_at + _COALESCE_S)

    def hurry(self, node_id: bytes) -> None:
        """A node forwards writes, which it answers when it has applied them."""
        feed = self._feeds.get(node_id)
        if feed is not None:
            feed.hurried_at = self._shared.loop.time()

    def log_trimmed(self, first_seq: Seq) -> None:
        """The log will begin here."""
        for feed in self._all_feeds():
            feed.step(LogTrimmed(first_seq))

    # ---- sessions ------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> list[LiveSession]:
        """Of replicas, open."""
        return [LiveSession(node_id, feed.boot_id) for node_id, feed in self._feeds.items()]

    def begin_feed(self, link: PeerLink, hello: Hello, address: str) -> FeedSession:
        """A replica's HELLO was answered with WELCOME; the session takes the link over.

        Args:
            address: where the replica takes peer sessions itself.
        """
        shared, node_id = self._shared, hello.node_id
        earlier = self._feeds.get(node_id)
        if earlier is not None:
            # The machine of the earlier session is told before the new one is made.
            earlier.link.abort("the same process has connected anew")
            earlier.link_lost(earlier.link, "the same process has connected anew")
        machine = ReplicaFeed(
            Member(node_id, hello.name, address),
            shared.store.history,
            shared.store.extent,
            self._members.all,
            shared.loop.time(),
            pinned_seq=self.pins.pinned_seq(node_id),
        )
        feed = self._feeds[node_id] = FeedSession(shared, self, link, machine, hello.boot_id)
        self._traffic.setdefault(node_id, _Traffic()).sessions += 1
        shared.log.info("replica_connected", name=hello.name, address=link.peer)
        return feed

    @property
    def strays(self) -> list[Member]:
        """Members that are not connected: they may follow somebody else."""
        return [member for member in self._members.all if member.node_id not in self._feeds]

    # ---- FeedOwner -----------------------------------------------------------------------------------------------

    def save_member(self, feed: FeedSession, member: Member) -> None:
        taken = next((each for each in self._members.next if each.name == member.name), None)
        if taken is not None and taken.node_id != member.node_id:
            # Another node has come with the name since this one's HELLO was answered.
            feed.close("name_taken", f"another node is called {member.name}: choose another name")
            return

        def saved(members: tuple[Member, ...]) -> None:
            feed.step(MemberSaved(members))
            self._tell_members(members, but=feed)

        def failed(error: BaseException) -> None:
            code = "storage_full" if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS else "internal"
            feed.close(code, f"this primary cannot make {member.name} a member: {error}")

        self._members.add(member, saved, failed)

    def request_permit(self, feed: FeedSession) -> None:
        self._permit_queue.append(feed)
        self._shared.loop.call_soon(self._permit_next)

    def release_permit(self, feed: FeedSession) -> None:
        if feed in self._permit_queue:
            self._permit_queue.remove(feed)
        if self._permitted is feed:
            self._permitted = None
            self._shared.loop.call_soon(self._permit_next)

    def progressed(self, feed: FeedSession, durable_seq: Seq, applied_seq: Seq) -> None:
        self._acks.progressed(feed.machine.member.node_id, durable_seq)
        self._progress.set()
        self._tell(feed)

    def sync_sent(self) -> None:
        self.full_syncs_sent += 1

    def step_down(self, term: int) -> None:
        if not self._over:
            self._on_superseded(term)

    def ended(self, feed: FeedSession) -> None:
        machine = feed.machine
        node_id = machine.member.node_id
        if self._feeds.get(node_id) is feed:
            del self._feeds[node_id]
            if node_id in self._traffic:
                # Else it was forgotten as it came.
                self._traffic[node_id].sent_bytes += feed.link.written
            if machine.subscribed:
                self._last_known[node_id] = _known_of(feed)
        self._progress.set()

    def _permit_next(self) -> None:
        if self._permitted is None and self._permit_queue:
            self._permitted = self._permit_queue.popleft()
            self._permitted.permit()

    def _tell_members(self, members: tuple[Member, ...], but: FeedSession | None = None) -> None:
        for feed in self._all_feeds():
            if feed is not but:
                feed.step(MembersChanged(members))

    # ---- members -------------------------------------------------------------------------------------------------

    async def forget(self, name: str) -> None:
        """Let a member go that will not return.

        Raises:
            MemberNotFound, MemberConnected.
        """
        member = next((each for each in self._members.all if each.name == name), None)
        if member is None:
            raise MemberNotFound(name, [each.name for each in self._members.all])
        if member.node_id == self._shared.node_id or member.node_id in self._feeds:
            raise MemberConnected(name)
        members = await self._members.remove(member.node_id)
        self.pins.unpin(member.node_id)
        self._acks.forget(member.node_id)
        self._last_known.pop(member.node_id, None)
        self._traffic.pop(member.node_id, None)
        self._lag_watch.forget(member.node_id)
        feed = self._feeds.get(member.node_id)
        if feed is not None:
            # It has come back meanwhile, as the member that it was. It comes again, as a new one.
            feed.close("member_forgotten", f"{name} was forgotten as it came")
        self._tell_members(members)
        self._shared.log.info("member_forgotten", name=name)

    def add_member(self, member: Member) -> None:
        """Make this node itself a member, under its present name and address."""
        log = self._shared.log
        self._members.add(member, self._tell_members, lambda error: log.warning("members_not_saved", reason=str(error)))

    # ---- the end -------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> None:
        """Tell all replicas of the last entries, and return when those that follow hold them, or the time is up."""
        deadline = self._shared.loop.time() + timeout_s
        seq = self._shared.store.applied.seq
        for feed in self._all_feeds():
            feed.told_seq = seq
            feed.step(LogAdvanced(seq))
        while any(feed.machine.live and feed.machine.acked_seq < seq for feed in self._all_feeds()):
            self._progress.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._progress.wait()
            except TimeoutError:
                return

    def end_waits(self) -> None:
        """End all waits for acks as unknown."""
        self._acks.abandon()

    def end(self, code: str, message: str) -> None:
        """End all waits as unknown and all sessions."""
        self._over = True
        self._housekeeping.cancel()
        self._advance_alarm.cancel()
        self._acks.abandon()
        for feed in self._all_feeds():
            feed.close(code, message)

    def _all_feeds(self) -> list[FeedSession]:
        return list(self._feeds.values())

    def _keep_house(self) -> None:
        self._housekeeping = self._shared.loop.call_later(_HOUSEKEEPING_S, self._keep_house)
        for node_id in self.pins.lapse(self._shared.loop.time(), self._shared.store.log_bytes_from):
            self._shared.log.warning("pin_dropped", node_id=node_id.hex())
            feed = self._feeds.get(node_id)
            if feed is not None:
                feed.step(PinLost())
        self._watch_lag()

    def _watch_lag(self) -> None:
        """Say so of members that have been behind for long and do not stream."""
        now, durable_seq = self._shared.loop.time(), self._shared.store.applied.seq
        for member in self._members.all:
            feed, acked_seq = self._feeds.get(member.node_id), self._known(member).acked_seq
            state = ReplicaState.DISCONNECTED if feed is None else feed.machine.state
            follows = (
                member.node_id == self._shared.node_id
                or state in (ReplicaState.STREAMING, ReplicaState.FULL_SYNC)
                or acked_seq >= durable_seq
            )
            lacking_s = self._lag_watch.look(member.node_id, follows=follows, now=now)
            if lacking_s is not None:
                reason = f"{member.name} is {state} and has not streamed for {lacking_s:.0f} s"
                behind = f"{durable_seq - acked_seq} entries behind" if acked_seq else "how far behind is not known"
                self._shared.log.warning("replica_lags", name=member.name, reason=f"{reason}; {behind}")

    # ---- what is told of it --------------------------------------------------------------------------------------

    @property
    def measures(self) -> list[ReplicaMeasures]:
        """What a scrape is told of each replica that is a member; of one that is about to be, nothing yet."""
        own_id = self._shared.node_id
        return [self._measures_of(member) for member in self._members.all if member.node_id != own_id]

    def _measures_of(self, member: Member) -> ReplicaMeasures:
        shared, last = self._shared, self._known(member)
        feed = self._feeds.get(member.node_id)
        traffic = self._traffic.get(member.node_id) or _Traffic()
        return ReplicaMeasures(
            name=member.name,
            state=ReplicaState.DISCONNECTED if feed is None else feed.machine.state,
            sent_seq=last.sent_seq,
            acked_seq=last.acked_seq,
            lag_entries=max(0, shared.store.applied.seq - last.acked_seq),
            lag_s=None if feed is None else feed.machine.lag_s(shared.loop.time()),
            sessions=traffic.sessions,
            sent_bytes=traffic.sent_bytes + (0 if feed is None else feed.link.written),
        )

    def status_of_replicas(self) -> list[dict[str, Any]]:
        """The member `replicas` of /status: all members but this node, connected or not."""
        members = [member for member in self._members.all if member.node_id != self._shared.node_id]
        known = {member.node_id for member in members}
        joining = [feed.machine.member for node_id, feed in self._feeds.items() if node_id not in known]
        return [self._status_of(member) for member in (*members, *joining)]

    def _status_of(self, member: Member) -> dict[str, Any]:
        shared = self._shared
        durable_seq = shared.store.applied.seq
        feed, last = self._feeds.get(member.node_id), self._known(member)
        if feed is None:
            state, lag_s = ReplicaState.DISCONNECTED, None
        else:
            state, lag_s = feed.machine.state, round(feed.machine.lag_s(shared.loop.time()), 3)
        status: dict[str, Any] = {
            "name": member.name,
            "address": member.address or last.address,
            "state": str(state),
            "sent_seq": last.sent_seq,
            "acked_seq": last.acked_seq,
            "applied_seq": last.applied_seq,
            "lag_entries": max(0, durable_seq - last.acked_seq),
            "lag_s": lag_s,
            "retention": self._retention(member.node_id, last.acked_seq),
        }
        if feed is not None and feed.machine.state is ReplicaState.FULL_SYNC:
            status["synced_keys"] = feed.machine.synced_keys
        return status

    def _known(self, member: Member) -> _LastKnown:
        """How far a replica is; until its session says that, how far it was."""
        feed = self._feeds.get(member.node_id)
        if feed is not None and feed.machine.subscribed:
            return _known_of(feed)
        last = self._last_known.get(member.node_id, _LastKnown(member.address, 0, 0, 0))
        return last if feed is None else last._replace(address=feed.link.peer)

    def _retention(self, node_id: bytes, acked_seq: Seq) -> str:
        if self.pins.pinned_seq(node_id) is not None:
            return "extended"
        return "reserved" if acked_seq + 1 >= self._shared.store.extent.first_seq else "lost"


def _known_of(feed: FeedSession) -> _LastKnown:
    machine = feed.machine
    return _LastKnown(feed.link.peer, machine.sent_seq, machine.acked_seq, machine.applied_seq)


def not_primary(superseded_term: int, own_term: int) -> NotPrimary:
    """The error of a primary that another one has replaced."""
    return NotPrimary(
        f"a later primary has reigned with term {superseded_term}, this node's was {own_term}; nothing was written",
        hint="make this node follow it: stop it, then `kvnode join PRIMARY:PEERPORT` on its data directory",
    )
