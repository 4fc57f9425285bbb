"""Which node is asked next and what is asked again: the table line by line, with a clock that does not wait."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kvnode.cli.client.failover import NOTHING_DONE, FailOver, Next, Nodes, after
from kvnode.cli.client.transport import Limits
from kvnode.cli.errors import (
    BadAnswer,
    ClientClosed,
    ClientError,
    HistoryLost,
    NoNodeAvailable,
    ServerError,
    Unanswered,
    Unreachable,
)

A, B, C = "http://a", "http://b", "http://c"

NOBODY = Unreachable("cannot connect", hint="is it running?")
CUT = Unanswered("the connection broke")
STRANGE = BadAnswer("an answer that cannot be read")
LOST = HistoryLost(409, "history_lost", "1.0badcafe-7 is not in this node's history")
BUSY = ServerError(503, "overloaded", "too much is queued", retry_after_s=3)


def server_error(status: int, code: str) -> ServerError:
    return ServerError(status, code, f"told to answer {code}")


# ---- the table -------------------------------------------------------------------------------------------------

TABLE: list[tuple[ClientError, Next, Next]] = [
    # error, a read, a write
    (NOBODY, Next.AGAIN, Next.AGAIN),
    *((server_error(503, code), Next.AGAIN, Next.AGAIN) for code in sorted(NOTHING_DONE)),
    (server_error(503, "not_caught_up"), Next.AGAIN, Next.RAISE),
    (server_error(503, "some_later_code"), Next.AGAIN, Next.RAISE),
    (CUT, Next.AGAIN, Next.RAISE),
    (ClientClosed("the client was closed"), Next.RAISE, Next.RAISE),
    (server_error(500, "internal"), Next.ELSEWHERE, Next.RAISE),
    (server_error(504, "outcome_unknown"), Next.ELSEWHERE, Next.RAISE),
    (server_error(504, "replication_timeout"), Next.ELSEWHERE, Next.RAISE),
    (STRANGE, Next.ELSEWHERE, Next.RAISE),
    (LOST, Next.ELSEWHERE, Next.RAISE),
    (server_error(400, "invalid_request"), Next.RAISE, Next.RAISE),
    (server_error(404, "key_not_found"), Next.RAISE, Next.RAISE),
    (server_error(405, "method_not_allowed"), Next.RAISE, Next.RAISE),
    (server_error(409, "member_connected"), Next.RAISE, Next.RAISE),
    (server_error(413, "too_large"), Next.RAISE, Next.RAISE),
    (server_error(507, "storage_full"), Next.RAISE, Next.RAISE),
]


@pytest.mark.parametrize(("error", "read", "write"), TABLE, ids=lambda each: getattr(each, "code", None))
def test_table(error: ClientError, read: Next, write: Next) -> None:
    assert (after(error, is_read=True), after(error, is_read=False)) == (read, write)


@pytest.mark.parametrize(("error", "read", "write"), TABLE, ids=lambda each: getattr(each, "code", None))
def test_a_write_that_may_have_happened_is_in_no_line_that_repeats_it(
    error: ClientError, read: Next, write: Next
) -> None:
    assert not (error.maybe_written and write is not Next.RAISE)


# ---- the order -------------------------------------------------------------------------------------------------


def test_the_node_that_answered_last_is_asked_first() -> None:
    nodes = Nodes([A, B, C])
    assert (nodes.preferred, nodes.in_order(0)) == (A, [A, B, C])
    nodes.answered(B)
    assert (nodes.preferred, nodes.in_order(0)) == (B, [B, C, A])


def test_a_node_that_failed_is_asked_last_for_a_while() -> None:
    nodes = Nodes([A, B, C])
    nodes.failed(A, 100.0)
    nodes.failed(C, 101.0)
    assert nodes.in_order(101.0) == [B, A, C]
    # The first one is free again, and preferred as before.
    assert nodes.in_order(105.5) == [A, B, C]
    nodes.failed(A, 106.0)
    assert nodes.in_order(107.0) == [B, C, A]
    nodes.answered(A)
    assert nodes.in_order(107.0) == [A, B, C]


# ---- calls -----------------------------------------------------------------------------------------------------

Answers = Mapping[str, list[ClientError | str]]


class Rig:
    """A `FailOver` on nodes whose answers are lists, the last of which is repeated."""

    def __init__(self, answers: Answers, *, retries: int | None = None, timeout_s: float = 30.0) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.limits: list[Limits] = []
        self.pauses: list[float] = []
        #: what an attempt takes
        self.takes: Callable[[Limits], float] = lambda limits: 0.0
        self._answers = {url: list(listed) for url, listed in answers.items()}
        self.failover = FailOver(
            list(answers),
            timeout_s=timeout_s,
            node_timeout_s=5.0,
            retries=retries,
            clock=lambda: self.now,
            jitter=lambda: 1.0,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def _attempt(self, url: str, limits: Limits) -> str:
        self.asked.append(url)
        self.limits.append(limits)
        self.now += self.takes(limits)
        listed = self._answers[url]
        answer = listed.pop(0) if len(listed) > 1 else listed[0]
        if isinstance(answer, ClientError):
            raise answer
        return answer

    async def call(self, *, is_read: bool = True, **more: Any) -> str:
        return await self.failover.call(self._attempt, is_read=is_read, **more)


async def test_one_good_node_is_kept() -> None:
    rig = Rig({A: ["a"], B: ["b"]})
    assert [await rig.call() for _ in range(3)] == ["a"] * 3
    assert rig.asked == [A] * 3


@pytest.mark.parametrize("is_read", [True, False])
async def test_what_was_not_sent_goes_to_the_next_node_which_is_kept(is_read: bool) -> None:
    rig = Rig({A: [NOBODY, "a"], B: ["b"]})
    assert await rig.call(is_read=is_read) == "b"
    rig.now += 60
    assert await rig.call(is_read=is_read) == "b"
    assert rig.asked == [A, B, B]
    assert not rig.pauses


async def test_when_all_nodes_failed_there_is_a_growing_pause_before_each_other_round() -> None:
    rig = Rig({A: [NOBODY], B: [NOBODY] * 7 + ["b"]})
    assert await rig.call(is_read=False) == "b"
    assert rig.asked == [A, B] * 8
    assert rig.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


async def test_a_pause_lasts_as_long_as_a_node_asks_for() -> None:
    rig = Rig({A: [NOBODY], B: [BUSY, "b"]})
    assert await rig.call(is_read=False) == "b"
    assert rig.pauses == [3.0]


async def test_a_node_that_waited_itself_is_asked_again_soon() -> None:
    lagging = ServerError(503, "not_caught_up", "seq 7 is not applied here yet", retry_after_s=1)
    rig = Rig({A: [lagging, "a"]})
    assert await rig.call() == "a"
    assert rig.pauses == [0.1]


async def test_a_call_ends_with_its_time() -> None:
    rig = Rig({A: [NOBODY], B: [NOBODY]}, timeout_s=10)
    with pytest.raises(NoNodeAvailable):
        await rig.call(is_read=False)
    assert 1000 + 10 - 2 <= rig.now <= 1010
    # A pause that would last beyond the end is not made at all.
    rig = Rig({A: [BUSY]}, timeout_s=3)
    with pytest.raises(ServerError):
        await rig.call(is_read=False)
    assert (rig.asked, rig.pauses) == ([A], [])


async def test_a_call_whose_time_is_over_asks_no_other_node() -> None:
    rig = Rig({A: [CUT], B: ["b"]})
    rig.takes = lambda limits: 30.0
    with pytest.raises(NoNodeAvailable, match="none of 2 nodes could do it, with time to ask only 1: http://a: "):
        await rig.call()
    assert rig.asked == [A]


async def test_an_attempt_that_the_calls_end_cut_short_does_not_hide_why_those_before_failed() -> None:
    lagging = server_error(503, "not_caught_up")
    rig = Rig({A: [lagging, CUT]}, timeout_s=3)
    rig.takes = lambda limits: 1.0 if len(rig.asked) == 1 else limits.answer_s
    with pytest.raises(ServerError) as caught:
        await rig.call()
    assert (caught.value, rig.asked) == (lagging, [A, A])


async def test_each_node_keeps_its_reason_where_the_last_round_is_cut_short() -> None:
    lagging = server_error(503, "not_caught_up")
    rig = Rig({A: [lagging, CUT], B: [BUSY, NOBODY]}, timeout_s=9)
    rig.takes = lambda limits: 1.0 if len(rig.asked) <= 2 else limits.answer_s
    with pytest.raises(NoNodeAvailable) as caught:
        await rig.call()
    assert caught.value.failures == {A: lagging, B: BUSY}
    assert len(rig.asked) == 4


async def test_a_node_that_had_its_time_and_was_silent_is_said_to_be() -> None:
    rig = Rig({A: [BUSY, CUT], B: [NOBODY]}, timeout_s=60, retries=1)
    rig.takes = lambda limits: 0.0 if len(rig.asked) <= 2 else 5.0
    with pytest.raises(NoNodeAvailable) as caught:
        await rig.call()
    assert caught.value.failures == {A: CUT, B: NOBODY}
    # Nor does it matter how much time there was where a connection broke.
    rig = Rig({A: [BUSY, CUT]}, timeout_s=8, retries=1)
    with pytest.raises(Unanswered):
        await rig.call()


@pytest.mark.parametrize("retries", [0, 2])
async def test_retries_are_counted_in_rounds(retries: int) -> None:
    rig = Rig({A: [NOBODY], B: [NOBODY]}, retries=retries)
    with pytest.raises(NoNodeAvailable):
        await rig.call()
    assert rig.asked == [A, B] * (1 + retries)
    with pytest.raises(NoNodeAvailable):
        await rig.call(retries=1)
    assert len(rig.asked) == 2 * (1 + retries) + 4


async def test_a_single_nodes_error_is_raised_as_it_is() -> None:
    rig = Rig({A: [BUSY]}, retries=0)
    with pytest.raises(ServerError) as caught:
        await rig.call(is_read=False)
    assert caught.value is BUSY


async def test_when_all_nodes_failed_the_error_tells_why_of_each() -> None:
    rig = Rig({A: [NOBODY], B: [BUSY], C: [NOBODY]}, retries=0)
    with pytest.raises(NoNodeAvailable) as caught:
        await rig.call(is_read=False)
    error = caught.value
    assert error.message == (
        "none of 3 nodes could do it: http://a: cannot connect (unreachable); "
        "http://b: too much is queued (overloaded); http://c: cannot connect (unreachable)"
    )
    assert error.failures == {A: NOBODY, B: BUSY, C: NOBODY}
    assert (error.hint, error.retry_after_s, error.maybe_written) == ("is it running?", 3, False)


@pytest.mark.parametrize("error", [CUT, STRANGE, server_error(500, "internal"), server_error(504, "outcome_unknown")])
async def test_a_write_that_may_have_happened_is_never_repeated(error: ClientError) -> None:
    rig = Rig({A: [error], B: ["b"]})
    with pytest.raises(type(error)) as caught:
        await rig.call(is_read=False)
    assert caught.value is error
    assert error.maybe_written
    assert rig.asked == [A]


async def test_after_a_write_that_was_not_answered_the_next_call_begins_with_another_node() -> None:
    rig = Rig({A: [CUT], B: ["b"]})
    with pytest.raises(Unanswered):
        await rig.call(is_read=False)
    assert await rig.call(is_read=False) == "b"
    assert rig.asked == [A, B]


async def test_a_node_that_refused_a_request_is_kept() -> None:
    rig = Rig({A: [NOBODY], B: [server_error(400, "invalid_request"), "b"]})
    with pytest.raises(ServerError):
        await rig.call()
    assert await rig.call() == "b"
    assert rig.asked == [A, B, B]


async def test_a_read_that_was_not_answered_goes_to_the_next_node() -> None:
    rig = Rig({A: [CUT], B: ["b"]})
    assert await rig.call() == "b"


@pytest.mark.parametrize("error", [STRANGE, server_error(500, "internal"), LOST])
async def test_what_a_node_would_say_again_is_asked_of_the_others_once(error: ClientError) -> None:
    assert await Rig({A: [error], B: ["b"]}).call() == "b"
    rig = Rig({A: [error], B: [NOBODY]})
    with pytest.raises(HistoryLost if error is LOST else NoNodeAvailable):
        await rig.call()
    assert rig.asked == [A, B]
    alone = Rig({A: [error]})
    with pytest.raises(type(error)):
        await alone.call()
    assert alone.asked == [A]


async def test_each_node_has_its_share_of_a_reads_time() -> None:
    rig = Rig({A: [CUT], B: [CUT], C: ["c"]}, timeout_s=9)
    rig.takes = lambda limits: limits.answer_s
    assert await rig.call() == "c"
    assert [limits.answer_s for limits in rig.limits] == pytest.approx([3.0, 3.0, 3.0])
    assert {limits.silence_s for limits in rig.limits} == {9}
    # But no more than one node is ever given.
    rig = Rig({A: [CUT], B: ["b"]}, timeout_s=100)
    assert await rig.call() == "b"
    assert [limits.answer_s for limits in rig.limits] == [5.0, 5.0]


async def test_a_single_node_and_a_write_have_all_the_time() -> None:
    rig = Rig({A: ["a"]})
    await rig.call()
    assert rig.limits == [Limits(1030.0, 30.0, 5.0, 30.0, 30.0)]
    rig = Rig({A: [NOBODY], B: ["b"]}, timeout_s=8)
    rig.takes = lambda limits: limits.connect_s
    await rig.call(is_read=False)
    assert rig.limits == [Limits(1008.0, 4.0, 4.0, 8.0, 8.0), Limits(1008.0, 4.0, 4.0, 4.0, 8.0)]
