"""Writes that a replica passes on to a primary which the test plays: each ends once, and never as a false "failed"."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvnode.node.api import Acks, WriteResult
from kvnode.node.config import Address
from kvnode.node.errors import (
    Draining,
    InvalidJson,
    InvalidRequest,
    NoPrimary,
    NotEnoughReplicas,
    NotPrimary,
    OutcomeUnknown,
    Overloaded,
    ReplicationTimeout,
    StorageFull,
    Syncing,
    TooLarge,
)
from kvnode.node.replication import forwarding as forwarding_module
from kvnode.node.replication.forwarding import Forwarder
from kvnode.node.replication.ports import Shared
from kvnode.node.rest.errors import STATUS_OF_CODE
from kvnode.protocol.errors import KvError
from kvnode.protocol.messages import Error, Hello, Message, Ping, Purpose, Role, Write
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.session import Timing
from kvnode.protocol.types import Epoch, History, Op, Position, Reign, delete, put
from support.fake_replicated_store import FakeReplicatedStore, sharing, store_of
from support.holds import turns
from support.peers import CLUSTER_ID, EPOCH, PATIENCE_S, REPLICA_ID, Peer, PeerServer, until, welcome

OTHER = Epoch.of(2, 7)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the pauses between attempts."""
    monkeypatch.setattr(forwarding_module, "_RETRY_FIRST_S", 0.005)
    monkeypatch.setattr(forwarding_module, "_RETRY_LAST_S", 0.01)
    monkeypatch.setattr(forwarding_module, "_SWEEP_S", 0.005)


class Forwarding:
    """A forwarder, and its primary's port."""

    def __init__(self, shared: Shared, server: PeerServer, primary: Address) -> None:
        self.shared = shared
        self.server = server
        self.forwarder = Forwarder(shared, primary)

    @property
    def store(self) -> FakeReplicatedStore:
        return store_of(self.shared)

    async def connected(self) -> Peer:
        """The next connection, over which writes can be sent."""
        peer = await self.server.accept()
        await peer.take(Hello)
        peer.send(welcome())
        await self.until_ready()
        return peer

    async def until_ready(self, ready: bool = True) -> None:
        await until(lambda: self.forwarder.ready is ready)

    def write(
        self, *ops: Op, acks: int | None = 0, timeout_s: float = PATIENCE_S, size: int = 100
    ) -> "asyncio.Future[WriteResult]":
        return self.forwarder.write(ops or (put(b"k", b"1"),), Acks(acks, timeout_s), size)

    async def fail(self, future: "asyncio.Future[WriteResult]") -> KvError:
        """The error that a write ends with."""
        await asyncio.wait([future], timeout=PATIENCE_S)
        error = future.exception()
        assert isinstance(error, KvError)
        return error

    def refusal(self) -> KvError:
        """Why no write is taken now."""
        with pytest.raises(KvError) as refused:
            self.write()
        return refused.value


@asynccontextmanager
async def forwarding(
    *, listening: bool = True, primary: Address | None = None, **settings: Any
) -> AsyncIterator[Forwarding]:
    async with PeerServer() as server, sharing(role="replica", **settings) as shared:
        if not listening:
            server.stop()
        at = Forwarding(shared, server, primary or server.address)
        try:
            yield at
        finally:
            await at.forwarder.stop()
            await turns()
        assert isinstance(at.refusal(), NoPrimary)


def answer(
    number: int, seq: int = 1, epoch: Epoch = EPOCH, *, deleted: int = 0, error: tuple[str, str, Any] | None = None
) -> WriteResultFrame:
    """What a primary answers."""
    if error is None:
        return WriteResultFrame(number, epoch, seq, deleted, None, None, None)
    code, message, fields = error
    encoded = fields if isinstance(fields, bytes | None) else json.dumps(fields).encode()
    return WriteResultFrame(number, epoch, seq, deleted, code, message, encoded)


# ---- the connection --------------------------------------------------------------------------------------------


async def test_it_says_who_it_is_and_is_ready_when_a_primary_answers() -> None:
    async with forwarding() as at:
        peer = await at.server.accept()
        hello = await peer.take(Hello)
        assert (hello.purpose, hello.node_id, hello.cluster_id) == (Purpose.CLIENT, REPLICA_ID, CLUSTER_ID)
        assert not at.forwarder.ready
        refusal = at.refusal()
        assert isinstance(refusal, NoPrimary)
        assert "nothing was written" in refusal.message
        peer.send(welcome())
        await at.until_ready()


async def test_without_a_primary_nothing_is_written_and_why_is_said() -> None:
    async with forwarding(listening=False) as at:
        first = at.refusal()
        assert isinstance(first, NoPrimary)
        assert first.fields == {"reason": "not connected yet"}
        await until(lambda: "cannot connect" in str(at.refusal().fields["reason"]))
        assert str(at.server.address) in at.refusal().message
        await at.server.listen()
        await at.connected()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (welcome(role=Role.REPLICA, name="r2"), "r2 is no primary"),
        (Error("wrong_cluster", "this node belongs to another"), "wrong_cluster: this node belongs to another"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"\xff\xff\xff\xff", "protocol_error: a frame announces"),
    ],
)
async def test_who_is_no_primary_is_left_and_asked_again(said: Message | bytes, reason: str) -> None:
    async with forwarding() as at:
        for _ in range(2):
            peer = await at.server.accept()
            await peer.take(Hello)
            peer.send(said)
            await peer.rest()
            await until(lambda: reason in str(at.refusal().fields["reason"]))
        await at.connected()


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_an_address_that_no_host_can_have(host: str) -> None:
    async with forwarding(primary=Address(host, 7001)) as at:
        await until(lambda: "cannot connect" in str(at.refusal().fields["reason"]))
        assert not at.forwarder._task.done()


async def test_a_primary_that_does_not_answer_hello_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding_module, "_CONNECT_S", 0.02)
    async with forwarding() as at:
        peer = await at.server.accept()
        assert [type(each) for each in await peer.rest()] == [Hello]
        assert at.refusal().fields == {"reason": "no answer in time"}
        await at.server.accept()


async def test_a_silent_primary_is_left_and_a_speaking_one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding_module, "Timing", lambda: Timing(ping_s=0.01, silence_s=0.2))
    async with forwarding() as at:
        at.store.publish(3)
        peer = await at.connected()
        for _ in range(40):
            assert (await peer.take(Ping, skip=())).last_seq == 3
            peer.send(Ping(0, 0))
        assert at.forwarder.ready
        future = at.write()
        assert isinstance(await at.fail(future), OutcomeUnknown)
        await at.until_ready(False)
        await at.connected()


# ---- writes ----------------------------------------------------------------------------------------------------


async def test_a_write_is_answered_once_it_is_applied_here() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        ops = (put(b"a", b'"x"'), delete(b"b"))
        future = at.write(*ops, acks=2, timeout_s=1.5)
        frame = await peer.take(Write)
        assert frame == Write(frame.request_id, ops, 2, 1500)
        peer.send(answer(frame.request_id, 3, deleted=1), Ping(3, 0))
        at.store.publish(2)
        await turns(20)
        assert not future.done()
        at.store.publish(1)
        assert await future == WriteResult(Position(EPOCH, 3), 1)


async def test_what_is_applied_already_is_answered_at_once() -> None:
    async with forwarding() as at:
        at.store.publish(5)
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id, 4))
        assert (await future).position.seq == 4


async def test_a_write_without_effect_on_an_empty_store() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write(delete(b"k"))
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id, 0, Epoch(0)))
        assert await future == WriteResult(Position(Epoch(0), 0), 0)


@pytest.mark.parametrize(
    ("acks", "wanted", "timeout_ms"),
    [(None, 0, 5000), (Acks(None, 2.0), None, 2000), (Acks(1, 1e9), 1, 0xFFFFFFFF), (Acks(0, 0.0), 0, 0)],
)
async def test_acks_travel_with_it(acks: Acks | None, wanted: int | None, timeout_ms: int) -> None:
    async with forwarding() as at:
        peer = await at.connected()
        at.forwarder.write((put(b"k", b"1"),), acks, 10)
        frame = await peer.take(Write)
        assert (frame.acks, frame.ack_timeout_ms) == (wanted, timeout_ms)


async def test_answers_in_another_order() -> None:
    async with forwarding() as at:
        at.store.publish(100)
        peer = await at.connected()
        futures = [at.write(put(b"k%d" % number, b"1")) for number in range(100)]
        frames = [await peer.take(Write) for _ in range(100)]
        assert [frame.ops[0].key for frame in frames] == [b"k%d" % number for number in range(100)]
        for seq, frame in reversed(list(enumerate(frames, start=1))):
            peer.send(answer(frame.request_id, seq))
        results = await asyncio.gather(*futures)
        assert [result.position.seq for result in results] == list(range(1, 101))


async def test_answers_that_nobody_asked_for_are_nothing() -> None:
    async with forwarding() as at:
        at.store.publish(1)
        peer = await at.connected()
        peer.send(answer(77), answer(0))
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id), answer(frame.request_id, 9))
        assert (await future).position.seq == 1
        await turns()
        assert at.forwarder.ready


async def test_a_client_that_left_is_not_answered() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        for end in (answer, None):
            future = at.write()
            frame = await peer.take(Write)
            future.cancel()
            if end is None:
                peer.reset()
                await at.until_ready(False)
            else:
                peer.send(answer(frame.request_id, 1))
                await turns(20)
        at.store.publish(1)


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("invalid_json", InvalidJson),
        ("invalid_request", InvalidRequest),
        ("too_large", TooLarge),
        ("overloaded", Overloaded),
        ("not_enough_replicas", NotEnoughReplicas),
        ("syncing", Syncing),
        ("not_primary", NotPrimary),
        ("draining", Draining),
        ("storage_full", StorageFull),
        ("replication_timeout", ReplicationTimeout),
        ("outcome_unknown", OutcomeUnknown),
    ],
)
async def test_an_error_comes_back_as_if_it_arose_here(code: str, cls: type[KvError]) -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        fields = {"limit": "max_value_bytes", "max": 4, "seq": 7, "asked": 2, "hint": "less of it"}
        peer.send(answer(frame.request_id, 7, error=(code, "it says why", fields)))
        error = await at.fail(future)
        assert type(error) is cls
        assert (error.code, error.message, error.hint) == (code, "it says why", "less of it")
        assert error.fields == {"limit": "max_value_bytes", "max": 4, "seq": 7, "asked": 2}
        assert error.code in STATUS_OF_CODE


async def test_an_error_without_fields() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id, 0, Epoch(0), error=("draining", "it stops", None)))
        error = await at.fail(future)
        assert (type(error), error.hint, error.fields) == (Draining, None, {})


@pytest.mark.parametrize("code", ["internal", "log_failed", "of_a_later_version", "key_not_found"])
async def test_a_code_that_no_write_ends_with_is_unknown(code: str) -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id, 0, Epoch(0), error=(code, "something", {"a": 1})))
        error = await at.fail(future)
        assert (type(error), error.code) == (OutcomeUnknown, "outcome_unknown")
        assert "something" in error.message


@pytest.mark.parametrize("fields", [b"{", b"1", b"[]", b'"x"', b"null", b"\xff", b'{"a":NaN}', b"[" * 5000])
async def test_an_error_whose_fields_are_no_object_ends_the_write_all_the_same(fields: bytes) -> None:
    async with forwarding() as at:
        peer = await at.connected()
        futures = [at.write(), at.write()]
        frames = [await peer.take(Write) for _ in futures]
        peer.send(answer(frames[0].request_id, 0, Epoch(0), error=("draining", "it stops", fields)))
        error = await at.fail(futures[0])
        assert error.code in ("draining", "outcome_unknown")
        # The other one is answered or told to be unknown, by a connection that is kept or made again.
        peer.send(answer(frames[1].request_id, 0, Epoch(0), error=("draining", "it stops", None)))
        assert (await at.fail(futures[1])).code in ("draining", "outcome_unknown")


# ---- what became of it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["reset", "close", "half_close"])
async def test_a_lost_link_leaves_unknown_what_was_under_way_and_nothing_is_sent_again(end: str) -> None:
    async with forwarding() as at:
        peer = await at.connected()
        taken, not_taken = at.write(put(b"a", b"1")), at.write(put(b"b", b"1"))
        await peer.take(Write)
        getattr(peer, end)()
        for future in (taken, not_taken):
            error = await at.fail(future)
            assert type(error) is OutcomeUnknown
            assert "no answer came" in error.message
            assert "not written" not in error.message
        peer = await at.connected()
        later = at.write(put(b"c", b"1"))
        frame = await peer.take(Write)
        assert frame.ops[0].key == b"c"
        assert frame.request_id > 2
        at.store.publish(1)
        peer.send(answer(frame.request_id))
        await later


async def test_garbage_is_a_lost_link() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        await peer.take(Write)
        peer.send(b"\x00\x00\x00\x01\xc1")
        assert isinstance(await at.fail(future), OutcomeUnknown)
        await at.connected()


async def test_an_error_frame_is_a_lost_link() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        await peer.take(Write)
        peer.send(Error("draining", "this node is stopping"))
        error = await at.fail(future)
        assert isinstance(error, OutcomeUnknown)
        assert "draining: this node is stopping" in error.message


async def test_an_answer_that_never_comes_is_unknown_and_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding_module, "_ANSWER_S", 0.02)
    monkeypatch.setattr(forwarding_module, "Timing", lambda: Timing(ping_s=0.01, silence_s=PATIENCE_S))
    async with forwarding() as at:
        at.store.publish(1)
        peer = await at.connected()
        future = at.write(timeout_s=0.01)
        frame = await peer.take(Write)
        error = await at.fail(future)
        assert isinstance(error, OutcomeUnknown)
        assert "took too long" in error.message
        peer.send(answer(frame.request_id))
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id))
        assert (await future).position.seq == 1


async def test_what_is_not_applied_here_in_time_says_that_it_is_durable_and_where() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        soon, patient = at.write(timeout_s=0.02), at.write()
        frames = [await peer.take(Write) for _ in range(2)]
        for seq, frame in enumerate(frames, start=1):
            peer.send(answer(frame.request_id, seq))
        error = await at.fail(soon)
        assert type(error) is ReplicationTimeout
        assert error.fields == {"seq": 1, "epoch": str(EPOCH)}
        assert "is durable on the primary" in error.message
        assert not patient.done()
        at.store.publish(2)
        assert (await patient).position.seq == 2


async def test_a_link_that_is_lost_leaves_alone_what_the_primary_has_answered() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id, 1))
        await until(lambda: at.forwarder._waiting)
        peer.reset()
        await at.until_ready(False)
        assert not future.done()
        at.store.publish(1)
        assert (await future).position.seq == 1


async def test_a_history_that_is_given_up_leaves_it_unknown() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id, 9))
        await until(lambda: at.forwarder._waiting)
        at.store.end_applied_waits("this node's log has diverged from its primary's")
        error = await at.fail(future)
        assert type(error) is OutcomeUnknown
        assert error.fields == {"seq": 9, "epoch": str(EPOCH)}
        assert "diverged" in error.message


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_entry_of_another_history_at_its_seq_is_not_taken_for_it(when: str) -> None:
    async with forwarding() as at:
        at.store.history = History((Reign(OTHER, 1),))
        if when == "before":
            at.store.publish(5)
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        peer.send(answer(frame.request_id, 3))
        await turns(20)
        if when == "after":
            at.store.publish(5)
        error = await at.fail(future)
        assert type(error) is OutcomeUnknown
        assert error.fields == {"seq": 3, "epoch": str(EPOCH)}


# ---- what it costs ---------------------------------------------------------------------------------------------


async def test_what_waits_for_the_primary_is_bounded() -> None:
    async with forwarding(
        max_queued_bytes=1 << 20, max_batch_items=10, max_batch_bytes=1000, max_value_bytes=1000
    ) as at:
        at.store.publish(1)
        peer = await at.connected()
        futures = [at.write(size=1 << 18) for _ in range(4)]
        refusal = at.refusal()
        assert isinstance(refusal, Overloaded)
        assert refusal.fields == {"limit": "max_queued_bytes", "max": 1 << 20, "queued": 1 << 20, "sent": 100}
        frames = [await peer.take(Write) for _ in futures]
        peer.send(answer(frames[0].request_id))
        await futures[0]
        futures.append(at.write(size=1 << 18))
        assert isinstance(at.refusal(), Overloaded)
        peer.reset()
        for future in futures[1:]:
            assert isinstance(await at.fail(future), OutcomeUnknown)
        await at.connected()
        at.write(size=1 << 20)


async def test_a_primary_that_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding_module, "Timing", lambda: Timing(ping_s=0.02, silence_s=PATIENCE_S, stall_s=0.1))
    async with forwarding() as at:
        peer = await at.connected()
        peer.pause()
        futures = [at.write(put(b"k", b'"%b"' % (b"x" * 4_000_000)), size=4_000_000) for _ in range(12)]
        for future in futures:
            assert isinstance(await at.fail(future), OutcomeUnknown)


# ---- the end ---------------------------------------------------------------------------------------------------


async def test_stop_leaves_unknown_what_was_under_way() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        future = at.write()
        await peer.take(Write)
        await at.forwarder.stop()
        error = await at.fail(future)
        assert isinstance(error, OutcomeUnknown)
        assert "this node stops forwarding" in error.message
        assert await peer.rest() == []
        assert isinstance(at.refusal(), NoPrimary)
        await turns(50)
        assert at.server.waiting == 0


async def test_stop_while_it_connects() -> None:
    async with forwarding() as at:
        await at.server.accept()
        await at.forwarder.stop()
    async with forwarding(listening=False) as at:
        await at.forwarder.stop()


# ---- what is counted -------------------------------------------------------------------------------------------


async def test_each_write_is_counted_once_by_what_became_of_it() -> None:
    async with forwarding() as at:
        counters = at.shared.counters
        at.store.publish(1)
        peer = await at.connected()
        futures = [at.write(timeout_s=0.01 if number == 2 else PATIENCE_S) for number in range(5)]
        frames = [await peer.take(Write) for _ in futures]
        assert sum(counters.forwarded.values()) == 0
        futures[0].cancel()
        peer.send(answer(frames[0].request_id, 1))
        peer.send(answer(frames[1].request_id, 0, Epoch(0), error=("draining", "it stops", None)))
        # The third is never applied here.
        peer.send(answer(frames[2].request_id, 9))
        peer.send(answer(frames[3].request_id, 1))
        assert isinstance(await at.fail(futures[2]), ReplicationTimeout)
        await futures[3]
        peer.reset()
        assert isinstance(await at.fail(futures[4]), OutcomeUnknown)
        assert counters.forwarded == {"ok": 2, "refused": 1, "timeout": 1, "unknown": 1}
        assert counters.forwarded_seconds.count == 5
        # What was never sent is none of them.
        await at.until_ready(False)
        at.refusal()
        assert counters.forwarded_seconds.count == 5
