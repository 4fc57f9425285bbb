"""The engine of `load`: what is retried and for how long, what keeps the order, and that each line is accounted for."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import msgspec
import pytest

from kvnode.cli.client import Written
from kvnode.cli.errors import BadAnswer, ClientError, NoNodeAvailable, ServerError, Unanswered, Unreachable
from kvnode.cli.lines import BadLine, Batch, Line, read_batches
from kvnode.cli.loading import Cause, Loader, Policy, Summary
from kvnode.protocol.types import Epoch, Position

OVERLOADED = ServerError(503, "overloaded", "too much is queued", retry_after_s=None)
FULL = ServerError(507, "storage_full", "the disk is full")
UNKNOWN = ServerError(504, "outcome_unknown", "the write may or may not be durable")
INTERNAL = ServerError(500, "internal", "a bug")
REFUSED = ServerError(400, "invalid_request", "the key is odd")
TOO_LARGE = ServerError(413, "too_large", "value is limited")
NO_ROUTE = ServerError(404, "route_not_found", "no such route")
NOBODY = Unreachable("cannot connect")
CUT = Unanswered("the connection broke")
NONE_OF_TWO = NoNodeAvailable({"http://a": NOBODY, "http://b": OVERLOADED})
STRANGE = BadAnswer("an answer that cannot be read")


def record(key: str, value: object = 1) -> bytes:
    return msgspec.json.encode({"key": key, "value": value})


def batches(*texts: bytes, items: int = 1) -> list[Batch | BadLine]:
    return list(read_batches((Line(number, text) for number, text in enumerate(texts, 1)), items, 1 << 20))


async def source(pieces: Iterable[Batch | BadLine]) -> AsyncIterator[Batch | BadLine]:
    for piece in pieces:
        yield piece


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.acknowledged_lines: list[int] = []
        self.failures: list[tuple[int, int, Cause]] = []
        self.failed_texts: list[bytes] = []
        self.bad_lines: list[int] = []
        self.reasons: list[str] = []
        self.warnings: list[ClientError] = []

    def acknowledged(self, batch: Batch, position: Position) -> None:
        self.acknowledged_lines += range(batch.first_line, batch.last_line + 1)

    def bad(self, line: BadLine) -> None:
        self.bad_lines.append(line.line.number)

    def failed(self, batch: Batch, cause: Cause, reason: str) -> None:
        self.failures.append((batch.first_line, batch.last_line, cause))
        self.failed_texts += batch.texts
        self.reasons.append(reason)

    def retrying(self, error: ClientError) -> None:
        self.warnings.append(error)


class Rig:
    """A loader with a node that is a function, and a clock that does not wait.

    Args:
        send: called with the decoded records of an attempt; raises what the node answers.
    """

    def __init__(self, send: Callable[[list[dict[str, object]]], Awaitable[None]], policy: Policy) -> None:
        self.attempts: list[list[bytes]] = []
        self.delays_s: list[float] = []
        self.report = Recorder()
        self._send = send
        self.loader = Loader(self.send, self.report, policy, jitter=lambda: 1.0, sleep=self.sleep)

    async def send(self, texts: Sequence[bytes]) -> Written:
        self.attempts.append(list(texts))
        number = len(self.attempts)
        await self._send([msgspec.json.decode(text) for text in texts])
        return Written(Position(Epoch.of(1, 0), number))

    async def sleep(self, seconds: float) -> None:
        self.delays_s.append(seconds)
        await asyncio.sleep(0)


async def load(
    pieces: Iterable[Batch | BadLine], outcomes: Iterable[ClientError | None], policy: Policy
) -> tuple[Rig, Summary]:
    """Load through one connection; the attempts have these outcomes, and all later ones succeed."""
    script = iter(outcomes)

    async def send(records: list[dict[str, object]]) -> None:
        await asyncio.sleep(0)
        if error := next(script, None):
            raise error

    rig = Rig(send, policy)
    return rig, await rig.loader.run(source(pieces))


def check_every_line_once(rig: Rig, total: int) -> None:
    failed = [line for first, last, _ in rig.report.failures for line in range(first, last + 1)]
    assert Counter(rig.report.acknowledged_lines + failed + rig.report.bad_lines) == Counter(range(1, total + 1))


ONE = Policy(connections=1, retries=3)
A, B, C, D = (record(key) for key in "abcd")


async def test_everything_is_sent_once_and_in_order() -> None:
    rig, summary = await load(batches(A, B, C, D, items=2), [], ONE)
    assert rig.attempts == [[A, B], [C, D]]
    assert summary.is_complete
    assert (summary.acknowledged, summary.batches, summary.retries) == (4, 2, 0)
    assert summary.position == Position(Epoch.of(1, 0), 2)
    assert rig.report.acknowledged_lines == [1, 2, 3, 4]


async def test_nothing_to_load_is_complete() -> None:
    _, summary = await load([], [], ONE)
    assert summary.is_complete
    assert (summary.acknowledged, summary.position) == (0, None)


@pytest.mark.parametrize("error", [OVERLOADED, FULL, UNKNOWN, INTERNAL, NOBODY, CUT, NONE_OF_TWO], ids=lambda e: e.code)
async def test_what_may_pass_is_tried_again(error: ClientError) -> None:
    rig, summary = await load(batches(A, B), [error, error], ONE)
    assert rig.attempts == [[A], [A], [A], [B]]
    assert summary.is_complete
    assert summary.retries == 2
    assert rig.report.warnings == [error], "one warning until things go well again"


async def test_waits_grow_to_a_bound_and_respect_retry_after() -> None:
    policy = Policy(connections=1, retries=9)
    rig, _ = await load(batches(A), [OVERLOADED] * 8, policy)
    assert rig.delays_s == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    asked = ServerError(503, "overloaded", "", retry_after_s=7.0)
    soon = ServerError(503, "overloaded", "", retry_after_s=0.0)
    rig, _ = await load(batches(A), [asked, soon], policy)
    assert rig.delays_s == pytest.approx([7.0, 0.2])


@pytest.mark.parametrize(
    ("outcomes", "cause"),
    [
        ([OVERLOADED] * 4, Cause.UNWRITTEN),
        ([NOBODY, FULL, OVERLOADED, NOBODY], Cause.UNWRITTEN),
        ([NOBODY, NONE_OF_TWO, OVERLOADED, NONE_OF_TWO], Cause.UNWRITTEN),
        ([OVERLOADED, OVERLOADED, OVERLOADED, CUT], Cause.UNKNOWN),
        ([CUT, OVERLOADED, OVERLOADED, OVERLOADED], Cause.UNKNOWN),
        ([UNKNOWN] * 4, Cause.UNKNOWN),
        ([STRANGE], Cause.UNKNOWN),
        ([NO_ROUTE], Cause.UNWRITTEN),
    ],
)
async def test_a_batch_that_is_given_up_ends_the_load(outcomes: list[ClientError], cause: Cause) -> None:
    rig, summary = await load(batches(A, B, C), [None, *outcomes], ONE)
    assert rig.attempts == [[A]] + [[B]] * len(outcomes)
    assert rig.report.failures == [(2, 2, cause)]
    assert rig.report.reasons[0].startswith(outcomes[-1].message)
    assert (summary.acknowledged, summary.failed[cause], summary.stopped_at_line) == (1, 1, 3)
    assert not summary.is_complete


async def test_without_retries_the_first_failure_is_the_last() -> None:
    rig, summary = await load(batches(A, B), [OVERLOADED], Policy(connections=1, retries=0))
    assert (rig.attempts, summary.retries) == ([[A]], 0)


async def test_the_rest_can_be_kept() -> None:
    policy = Policy(connections=1, retries=0, keep_rest=True)
    rig, summary = await load(batches(A, B, b"bad", C, D), [None, NOBODY], policy)
    assert rig.attempts == [[A], [B]]
    assert rig.report.failures == [(2, 2, Cause.UNWRITTEN), (4, 4, Cause.UNSENT), (5, 5, Cause.UNSENT)]
    assert rig.report.bad_lines == [3]
    assert rig.report.failed_texts == [B, C, D]
    assert (summary.failed[Cause.UNSENT], summary.stopped_at_line) == (2, 4)
    check_every_line_once(rig, 5)


async def test_a_bad_line_is_counted_and_passed_over() -> None:
    rig, summary = await load(batches(A, b"bad", B), [], ONE)
    assert rig.attempts == [[A], [B]]
    assert rig.report.bad_lines == [2]
    assert (summary.acknowledged, summary.failed[Cause.BAD], summary.stopped_at_line) == (2, 1, None)
    assert not summary.is_complete


async def test_a_bad_line_can_stop_the_load() -> None:
    rig, summary = await load(batches(A, b"bad", B), [], Policy(stop_on_error=True))
    assert rig.attempts == [[A]]
    assert (summary.acknowledged, summary.stopped_at_line) == (1, 3)


def refusing(*keys: str, error: ServerError = REFUSED) -> Callable[[list[dict[str, object]]], Awaitable[None]]:
    async def send(records: list[dict[str, object]]) -> None:
        await asyncio.sleep(0)
        if any(record["key"] in keys for record in records):
            raise error

    return send


@pytest.mark.parametrize("error", [REFUSED, TOO_LARGE], ids=lambda error: error.code)
@pytest.mark.parametrize("refused", ["a", "d", "e", "ae", "abcde", "cd"])
async def test_a_refused_record_alone_is_left_out(refused: str, error: ServerError) -> None:
    rig = Rig(refusing(*refused, error=error), ONE)
    summary = await rig.loader.run(source(batches(*(record(key) for key in "abcde"), items=5)))
    lines = ["abcde".index(key) + 1 for key in refused]
    assert rig.report.failures == [(line, line, Cause.REJECTED) for line in lines]
    assert rig.report.acknowledged_lines == [line for line in range(1, 6) if line not in lines]
    assert (summary.failed[Cause.REJECTED], summary.stopped_at_line) == (len(lines), None)
    assert summary.retries == 0


async def test_a_refused_record_can_stop_the_load() -> None:
    rig = Rig(refusing("b"), Policy(connections=1, stop_on_error=True))
    summary = await rig.loader.run(source(batches(A, B, C, D, record("e"), items=4)))
    assert rig.report.acknowledged_lines == [1]
    assert rig.report.failures == [(2, 2, Cause.REJECTED), (3, 4, Cause.UNSENT)]
    assert summary.stopped_at_line == 3


class Gate:
    """A node that holds every attempt until it is let go."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.highest = 0

    async def __call__(self, records: list[dict[str, object]]) -> None:
        name = "".join(str(each["key"]) for each in records)
        self.waiting[name] = asyncio.get_running_loop().create_future()
        self.highest = max(self.highest, len(self.waiting))
        try:
            await self.waiting[name]
        finally:
            del self.waiting[name]

    async def until(self, *names: str) -> None:
        """Let the loader work until exactly these batches are in flight, and it has nothing else to do."""
        for _ in range(50):
            await asyncio.sleep(0)
        assert sorted(self.waiting) == sorted(names)

    def let_go(self, name: str, error: ClientError | None = None) -> None:
        if error is None:
            self.waiting[name].set_result(None)
        else:
            self.waiting[name].set_exception(error)


async def test_batches_fly_together_up_to_the_number_of_connections() -> None:
    gate = Gate()
    rig = Rig(gate, Policy(connections=3))
    task = asyncio.create_task(rig.loader.run(source(batches(*(record(key) for key in "abcde")))))
    await gate.until("a", "b", "c")
    gate.let_go("b")
    await gate.until("a", "c", "d")
    for name in "acd":
        gate.let_go(name)
    await gate.until("e")
    gate.let_go("e")
    assert (await task).is_complete
    assert gate.highest == 3


async def test_batches_with_a_common_key_never_fly_together() -> None:
    gate = Gate()
    rig = Rig(gate, Policy(connections=4))
    texts = [record("a", 1), record("b", 1), record("b", 2), record("c", 2), record("d"), record("e")]
    task = asyncio.create_task(rig.loader.run(source(batches(*texts, items=2))))
    await gate.until("ab")
    gate.let_go("ab")
    await gate.until("bc", "de")
    gate.let_go("de")
    gate.let_go("bc")
    assert (await task).is_complete


async def test_later_lines_wait_for_a_batch_that_is_being_retried() -> None:
    gate = Gate()
    rig = Rig(gate, Policy(connections=2, retries=2))
    task = asyncio.create_task(rig.loader.run(source(batches(record("a", 1), B, record("a", 2)))))
    await gate.until("a", "b")
    gate.let_go("b")
    gate.let_go("a", OVERLOADED)
    await gate.until("a")
    gate.let_go("a", CUT)
    await gate.until("a")
    gate.let_go("a")
    await gate.until("a")
    assert [texts[0] for texts in rig.attempts] == [record("a", 1), B, *[record("a", 1)] * 2, record("a", 2)]
    gate.let_go("a")
    assert (await task).is_complete


async def test_the_rest_is_kept_after_what_was_in_flight() -> None:
    """Else a later load of the kept lines would store them in another order."""
    gate = Gate()
    rig = Rig(gate, Policy(connections=2, retries=0, keep_rest=True))
    pieces = batches(A, record("b", 1), record("b", 2))
    task = asyncio.create_task(rig.loader.run(source(pieces)))
    await gate.until("a", "b")
    gate.let_go("a", NOBODY)
    await gate.until("b")
    gate.let_go("b", NOBODY)
    await task
    assert rig.report.failed_texts == [A, record("b", 1), record("b", 2)]


async def test_a_cancelled_load_accounts_for_what_was_in_flight() -> None:
    gate = Gate()
    rig = Rig(gate, Policy(connections=2))
    task = asyncio.create_task(rig.loader.run(source(batches(A, B, C, D))))
    await gate.until("a", "b")
    gate.let_go("a")
    await gate.until("b", "c")
    task.cancel()
    summary = await task
    assert summary.interrupted
    assert not summary.is_complete
    assert summary.stopped_at_line == 4
    assert sorted(rig.report.failures) == [(2, 2, Cause.UNKNOWN), (3, 3, Cause.UNKNOWN)]
    assert rig.report.acknowledged_lines == [1]


async def test_a_cancelled_load_whose_input_has_ended_was_not_stopped_anywhere() -> None:
    gate = Gate()
    rig = Rig(gate, Policy())
    task = asyncio.create_task(rig.loader.run(source(batches(A))))
    await gate.until("a")
    task.cancel()
    summary = await task
    assert (summary.interrupted, summary.stopped_at_line) == (True, None)
    assert rig.report.failures == [(1, 1, Cause.UNKNOWN)]


async def test_a_source_that_breaks_leaves_nothing_in_flight_or_unsaid() -> None:
    async def breaking() -> AsyncIterator[Batch | BadLine]:
        for piece in batches(A, B):
            yield piece
        raise OSError("read error")

    rig = Rig(Gate(), Policy())
    with pytest.raises(OSError, match="read error"):
        await rig.loader.run(breaking())
    assert sorted(rig.report.failures) == [(1, 1, Cause.UNKNOWN), (2, 2, Cause.UNKNOWN)]
    assert rig.loader.summary.failed[Cause.UNKNOWN] == 2


async def test_a_reporter_that_breaks_ends_the_load() -> None:
    rig = Rig(refusing(), Policy(connections=1))

    def full(batch: Batch, position: Position) -> None:
        raise OSError("no space left on device")

    rig.report.acknowledged = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no space left"):
        await rig.loader.run(source(batches(*[A] * 100)))
    assert len(rig.attempts) < 5


@pytest.mark.parametrize("keep_rest", [True, False], ids=["rest kept", "rest left"])
@pytest.mark.parametrize("seed", range(150))
async def test_loading_what_failed_leads_to_the_same_end(seed: int, keep_rest: bool) -> None:
    """Few keys, many of them repeated; attempts that take long, fail, or fail after they were applied."""
    chance = random.Random(seed)
    lines = [record(chance.choice("abcdefghx"), number) for number in range(1, 101)]
    trouble = chance.choice([0.0, 0.2, 0.6])
    state: dict[str, object] = {}

    def apply(records: list[dict[str, object]]) -> None:
        state.update((str(each["key"]), each["value"]) for each in records)

    async def send(records: list[dict[str, object]]) -> None:
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        if any(each["key"] == "x" for each in records):
            raise REFUSED
        error = chance.choice([OVERLOADED, NOBODY, CUT, UNKNOWN]) if chance.random() < trouble else None
        if error is None or (error in (CUT, UNKNOWN) and chance.random() < 0.5):
            apply(records)
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        if error:
            raise error

    rig = Rig(send, Policy(connections=chance.randint(1, 5), retries=2, keep_rest=keep_rest))
    summary = await rig.loader.run(source(batches(*lines, items=chance.randint(1, 7))))
    stop = len(lines) + 1 if keep_rest or summary.stopped_at_line is None else summary.stopped_at_line
    assert summary.acknowledged == len(rig.report.acknowledged_lines)
    assert sum(summary.failed.values()) == len(rig.report.failed_texts)
    # What follows the stop was acknowledged or reported at most once, what precedes it exactly once.
    failed = [line for first, last, _ in rig.report.failures for line in range(first, last + 1)]
    seen = Counter(rig.report.acknowledged_lines + failed)
    assert set(seen) >= set(range(1, stop))
    assert set(seen.values()) <= {1}

    for text in rig.report.failed_texts + lines[stop - 1 :]:
        each = msgspec.json.decode(text)
        if each["key"] != "x":
            apply([each])
    in_order = {}
    for text in lines:
        each = msgspec.json.decode(text)
        if each["key"] != "x":
            in_order[each["key"]] = each["value"]
    assert state == in_order
