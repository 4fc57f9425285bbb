"""Writes that a replica takes go to its primary: pipelined over one connection, each answered or told to be unknown.

A write that was handed to the transport is never sent again: when the link is lost, nobody here knows what became of
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kvnode.node.api import Acks, WriteResult
from kvnode.node.config import Address
from kvnode.node.errors import NoPrimary, OutcomeUnknown, Overloaded, ReplicationTimeout, error_of_code
from kvnode.node.metrics import ForwardOutcome
from kvnode.node.replication.alarm import Alarm
from kvnode.node.replication.connecting import connect
from kvnode.node.replication.following import replica_hello
from kvnode.node.replication.link import PeerLink
from kvnode.node.replication.ports import Shared
from kvnode.protocol.errors import KvError
from kvnode.protocol.fields import U32_MAX
from kvnode.protocol.messages import Error, Message, Ping, Purpose, Role, Welcome, Write
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.session import Heartbeat, Timing
from kvnode.protocol.types import Op, Position

#: Between two attempts to connect.
_RETRY_FIRST_S = 0.1
_RETRY_LAST_S = 2.0
#: Until a connection is made and WELCOME is there.
_CONNECT_S = 10.0
#: What the primary may take for a write besides the time that it may wait for replicas.
_ANSWER_S = 30.0
#: How often waits to be applied here are looked through: how exact their end is.
_SWEEP_S = 0.05

_NO_ACKS = Acks()


class _Forwarded:
    """A write on its way.

    Attributes:
        future: its outcome, for the client.
        size: what it holds in memory, about, in bytes.
        answer_by: when the primary's answer counts as lost.
        visible_by: when it must be applied here.
        timeout_s: what the client gave it.
        result: the primary's answer, once there.
        reached: resolves when it is applied here; once there.
        count: called once, with what became of it.
    """

    __slots__ = ("answer_by", "count", "future", "reached", "result", "size", "timeout_s", "visible_by")

    def __init__(
        self,
        future: asyncio.Future[WriteResult],
        size: int,
        timeout_s: float,
        now: float,
        count: Callable[[ForwardOutcome], None],
    ) -> None:
        self.count = count
        self.future = future
        self.size = size
        self.timeout_s = timeout_s
        self.visible_by = now + timeout_s
        self.answer_by = now + timeout_s + _ANSWER_S
        self.result: WriteResult | None = None
        self.reached: asyncio.Future[None] | None = None

    def succeed(self, result: WriteResult) -> None:
        """Tell the client what came of it."""
        self.count("ok")
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: KvError) -> None:
        """Tell the client that it failed, or that nobody knows."""
        self.count(_outcome_of(error))
        if not self.future.done():
            self.future.set_exception(error)
            # The client may have left: an answer that nobody fetches is no event.
            self.future.exception()


class Forwarder:
    """The connection to the primary for writes. Lives on the event loop; implements `LinkOwner`."""

    def __init__(self, shared: Shared, primary: Address) -> None:
        """Connect now, and again whenever the connection is lost, until `stop`."""
        self._shared = shared
        self._primary = primary
        self._loop = shared.loop
        self._timing = Timing()
        self._link: PeerLink | None = None
        self._ready = False
        self._last_error = "not connected yet"
        self._heartbeat = Heartbeat(self._timing, self._loop.time())
        #: sent, and not answered by the primary
        self._sent: dict[int, _Forwarded] = {}
        self._sent_bytes = 0
        #: answered by the primary, and not applied here
        self._waiting: set[_Forwarded] = set()
        self._sweep_alarm = Alarm(self._loop, self._sweep)
        self._next_id = 1
        self._changed = asyncio.Event()
        self._task = self._loop.create_task(self._keep_connected())

    @property
    def ready(self) -> bool:
        """Whether writes can be sent."""
        return self._ready

    def write(self, ops: Sequence[Op], acks: Acks | None, size: int) -> asyncio.Future[WriteResult]:
        """Have the primary order a write; resolves once it is applied here too, so that it can be read here.

        Args:
            size: what the write holds in memory, about, in bytes.

        Raises (at once):
            NoPrimary: there is no connection; nothing was sent.
            Overloaded: too much waits for the primary; this was not sent.

        Raises (from the future):
            OutcomeUnknown: the connection was lost, or what was written is no part of this node's history any more.
            ReplicationTimeout: it is durable at the primary, and was not applied here in time.
            KvError: what the primary answered.
        """
        link = self._link
        if not self._ready or link is None or not link.is_open:
            raise NoPrimary(
                f"the primary at {self._primary} cannot be reached; nothing was written", reason=self._last_error
            )
        limit = self._shared.config.max_queued_bytes
        if self._sent_bytes + size > limit:
            raise Overloaded(
                "too many bytes wait for the primary; nothing was written",
                limit="max_queued_bytes",
                max=limit,
                queued=self._sent_bytes,
                sent=size,
            )
        acks = acks or _NO_ACKS
        request_id = self._next_id
        self._next_id += 1
        future: asyncio.Future[WriteResult] = self._loop.create_future()
        link.send(Write(request_id, tuple(ops), acks.count, min(U32_MAX, int(acks.timeout_s * 1000))))
        clock, counters = self._shared.clock, self._shared.counters
        began_s = clock.monotonic_s()

        def count(outcome: ForwardOutcome) -> None:
            counters.forwarded_write(outcome, clock.monotonic_s() - began_s)

        self._sent[request_id] = _Forwarded(future, size, acks.timeout_s, self._loop.time(), count)
        self._sent_bytes += size
        return future

    async def stop(self) -> None:
        """Close the connection; writes that wait for their answer end as unknown."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._link is not None:
            self._link.close("this node stops forwarding")
        self._lose("this node stops forwarding writes")
        self._sweep_alarm.cancel()

    # ---- LinkOwner -----------------------------------------------------------------------------------------------

    def link_made(self, link: PeerLink) -> None:
        self._heartbeat = Heartbeat(self._timing, self._loop.time())
        link.send(replica_hello(self._shared, Purpose.CLIENT))

    def frame_received(self, link: PeerLink, message: Message) -> None:
        self._heartbeat.heard(self._loop.time())
        match message:
            case WriteResultFrame():
                self._take_result(message)
            case Welcome(role=Role.PRIMARY):
                self._ready = True
                self._changed.set()
            case Welcome():
                link.close(f"{message.name} is no primary")
            case Error(code, text):
                link.close(f"{code}: {text}")
            case _:
                pass

    def link_drained(self, link: PeerLink) -> None:
        """What is sent is bounded by what may wait for an answer."""

    def peer_finished(self, link: PeerLink) -> bool:
        return False

    def link_lost(self, link: PeerLink, reason: str) -> None:
        if link is self._link:
            self._link = None
            self._lose(reason)

    # ---- what became of it ---------------------------------------------------------------------------------------

    def _take_result(self, frame: WriteResultFrame) -> None:
        forwarded = self._sent.pop(frame.request_id, None)
        if forwarded is None:
            return
        self._sent_bytes -= forwarded.size
        if frame.error_code is not None:
            fields = _decode_fields(frame.error_fields)
            forwarded.fail(error_of_code(frame.error_code, frame.error_message or "", fields))
            return
        result = forwarded.result = WriteResult(Position(frame.epoch, frame.seq), frame.deleted)
        if frame.seq <= self._shared.store.applied.seq:
            self._make_visible(forwarded, result)
            return
        self._waiting.add(forwarded)
        forwarded.reached = self._shared.store.applied_reached(frame.seq)
        forwarded.reached.add_done_callback(lambda reached: self._stop_waiting(forwarded, result, reached))
        self._sweep_alarm.set(self._loop.time() + _SWEEP_S)

    def _stop_waiting(self, forwarded: _Forwarded, result: WriteResult, reached: asyncio.Future[None]) -> None:
        self._waiting.discard(forwarded)
        if reached.cancelled():
            return
        error = reached.exception()
        if error is None:
            self._make_visible(forwarded, result)
        else:
            forwarded.fail(OutcomeUnknown(f"the write was durable on the primary; {error}", **_names(result)))

    def _make_visible(self, forwarded: _Forwarded, result: WriteResult) -> None:
        """This node has come as far as the write; so it has the write, if it is of the same history."""
        if self._shared.store.history.epoch_of(result.position.seq) == result.position.epoch or not result.position.seq:
            forwarded.succeed(result)
        else:
            forwarded.fail(
                OutcomeUnknown("the write was durable on a primary whose history was given up", **_names(result))
            )

    def _sweep(self) -> None:
        """End the waits whose time is up."""
        now = self._loop.time()
        for forwarded in [each for each in self._waiting if now >= each.visible_by]:
            self._waiting.discard(forwarded)
            assert forwarded.result is not None
            assert forwarded.reached is not None
            forwarded.reached.cancel()
            forwarded.fail(
                ReplicationTimeout(
                    f"the write is durable on the primary, but was not applied here within {forwarded.timeout_s:g} s",
                    **_names(forwarded.result),
                )
            )
        if self._waiting:
            self._sweep_alarm.set(now + _SWEEP_S)

    def _lose(self, reason: str) -> None:
        """Nothing that was sent is answered any more."""
        self._ready = False
        self._last_error = reason
        self._changed.set()
        sent, self._sent, self._sent_bytes = self._sent, {}, 0
        for forwarded in sent.values():
            forwarded.fail(_unanswered(reason))

    # ---- the connection ------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        delay_s = _RETRY_FIRST_S
        while True:
            if await self._connect():
                delay_s = _RETRY_FIRST_S
                await self._attend()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_LAST_S)

    async def _connect(self) -> bool:
        """Whether WELCOME of a primary came."""
        shared = self._shared
        self._changed.clear()
        try:
            async with asyncio.timeout(_CONNECT_S):
                self._link = await connect(
                    self._primary, lambda: PeerLink(self, shared.config.max_frame_bytes, stranger=False)
                )
                await self._changed.wait()
        except (OSError, UnicodeError) as error:
            # The builtin TimeoutError is an OSError. The other is what Python says of a name that no host can have.
            self._last_error = "no answer in time" if isinstance(error, TimeoutError) else f"cannot connect: {error}"
            if self._link is not None:
                self._link.abort(self._last_error)
        return self._ready

    async def _attend(self) -> None:
        """Send signs of life and watch for the primary's, until the link is gone."""
        while self._ready and self._link is not None:
            now = self._loop.time()
            link = self._link
            self._heartbeat.progressed(link.progress, now)
            dead = self._heartbeat.dead(now)
            if dead is not None:
                link.abort(dead.message)
                return
            if self._heartbeat.ping_due(now):
                link.send(Ping(self._shared.store.applied.seq, self._shared.clock.now_ms()))
            for request_id in [each for each, forwarded in self._sent.items() if now >= forwarded.answer_by]:
                late = self._sent.pop(request_id)
                self._sent_bytes -= late.size
                late.fail(_unanswered("it took too long"))
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._heartbeat.wake_at):
                    await self._changed.wait()
            except TimeoutError:
                continue


def _decode_fields(encoded: bytes | None) -> dict[str, Any]:
    """The further members of an error object; what is none says nothing."""
    try:
        fields = msgspec.json.decode(encoded or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _outcome_of(error: KvError) -> ForwardOutcome:
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    return "timeout" if isinstance(error, ReplicationTimeout) else "refused"


def _unanswered(reason: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"the write was sent to the primary, and no answer came: {reason}; read it back to be sure")


def _names(result: WriteResult) -> dict[str, Any]:
    """What an error names the write by."""
    return {"seq": result.position.seq, "epoch": str(result.position.epoch)}
