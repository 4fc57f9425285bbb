"""Which node is asked next, and what may be asked again.

| what became of an attempt | a read | a write |
|---|---|---|
| nothing was sent: refused, no such host, no connection in time | again | again |
| 503 `overloaded` `draining` `syncing` `no_primary` `not_primary` `not_enough_replicas` | again | again |
| 503 `not_caught_up`, or a code that is not known here | again | raised |
| sent, but not answered: the connection broke, or time was up | again | raised |
| 500, 504, or an answer that no node gives | elsewhere | raised |
| 409 `history_lost` | elsewhere | raised |
| any other answer: 4xx, 507 | raised | raised |

*Again*: the next node at once; when all were asked, a pause, and all of them again. The pause grows, is partly random,
and is at least what a node's Retry-After asks for. It ends with the call's time, or after `retries` more rounds.
*Elsewhere*: the next node at once, but each only once: the same node would say the same again.
*Raised*: at once. A write that may have happened is never sent again, to no node.

The node that answered last is asked first. One that failed is asked last for a while.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TypeVar

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

#: The codes of 503 that say: this node cannot do it now, and nothing was done.
NOTHING_DONE = frozenset({"overloaded", "draining", "syncing", "no_primary", "not_primary", "not_enough_replicas"})

#: How long a node that failed is asked last.
_AVOID_S = 5.0

_CONNECT_S = 5.0

#: By how much a timer may be early.
_CLOCK_S = 0.001

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

_T = TypeVar("_T")


class Next(Enum):
    """What to do after an attempt that failed."""

    #: The next node, and after a pause this one, too.
    AGAIN = "again"
    #: The next node, but not this one a second time.
    ELSEWHERE = "elsewhere"
    #: Nothing.
    RAISE = "raise"


def after(error: ClientError, *, is_read: bool) -> Next:
    """What to do after an attempt that failed; the table above."""
    if isinstance(error, ClientClosed):
        return Next.RAISE
    if isinstance(error, Unreachable) or (isinstance(error, ServerError) and error.code in NOTHING_DONE):
        return Next.AGAIN
    if not is_read:
        return Next.RAISE
    match error:
        case Unanswered() | ServerError(status=503):
            return Next.AGAIN
        case BadAnswer() | HistoryLost() | ServerError(status=500 | 504):
            return Next.ELSEWHERE
    return Next.RAISE


class Nodes:
    """The order in which to ask nodes. Its memory is one number a node.

    Args:
        urls: of the nodes, at least one, in the order of preference.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = tuple(urls)
        self._first = 0
        #: until when a node is asked last, on the event loop's clock
        self._avoided_until = dict.fromkeys(urls, 0.0)

    @property
    def preferred(self) -> str:
        """The node that answered last; before the first answer, the first."""
        return self._urls[self._first]

    def in_order(self, now: float) -> list[str]:
        """All nodes in the order to ask them: those to be avoided last, of them the one that failed first in front."""
        from_first = (*self._urls[self._first :], *self._urls[: self._first])
        return sorted(from_first, key=lambda url: max(0.0, self._avoided_until[url] - now))

    def answered(self, url: str) -> None:
        """Prefer this one from now on."""
        self._first = self._urls.index(url)
        self._avoided_until[url] = 0.0

    def failed(self, url: str, now: float) -> None:
        """Ask this one last for a while."""
        self._avoided_until[url] = now + _AVOID_S


class FailOver:
    """Makes calls on nodes until one succeeds, may not be repeated, or has taken its time.

    Args:
        urls: of the nodes, at least one, in the order of preference.
        timeout_s: longest time that a call takes, with all its attempts.
        node_timeout_s: longest wait for one node's answer to a read while there are others.
        retries: how often all nodes are asked again; None for as often as the time allows.
        clock: seconds of the event loop.
        sleep: waits that many seconds.
        jitter: a random number from 0 to 1, new at each call.

    Raises:
        ValueError: a time is no finite number above 0, or `retries` is below 0.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float,
        node_timeout_s: float,
        retries: int | None,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        for name, seconds in (("timeout_s", timeout_s), ("node_timeout_s", node_timeout_s)):
            if not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"{name}: a finite number above 0, got {seconds!r}")
        if retries is not None and retries < 0:
            raise ValueError(f"retries: 0 or more, or None, got {retries!r}")
        self._nodes = Nodes(urls)
        self._count = len(urls)
        self._is_alone = self._count == 1
        self._timeout_s = timeout_s
        self._node_timeout_s = node_timeout_s
        self._retries = retries
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter

    @property
    def preferred(self) -> str:
        """The node that is asked first, unless it has just failed."""
        return self._nodes.preferred

    def failed(self, url: str) -> None:
        """Ask this node last for a while: it broke off what a call had begun."""
        self._nodes.failed(url, self._clock())

    async def call(
        self, attempt: Callable[[str, Limits], Awaitable[_T]], *, is_read: bool, retries: int | None = None
    ) -> _T:
        """What `attempt` returns for one of the nodes.

        Args:
            attempt: makes the request to the node with that URL within the limits.
            is_read: whether it may be made any number of times.
            retries: instead of those of the constructor.

        Raises:
            ClientError: what the attempt raised that could not be repeated; with one node, what it raised last.
            NoNodeAvailable: each of several nodes failed; a write was not made by any.
        """
        deadline = self._clock() + self._timeout_s
        most_rounds = self._retries if retries is None else retries
        failures: dict[str, ClientError] = {}
        for rounds in itertools.count():
            order = self._nodes.in_order(self._clock())
            may_go_on = most_rounds is None or rounds < most_rounds
            for place, url in enumerate(order):
                limits = self._limits(deadline, len(order) - place, is_read=is_read)
                began = self._clock()
                try:
                    result = await attempt(url, limits)
                except ClientError as error:
                    what = after(error, is_read=is_read)
                    self._note(url, error, what)
                    if what is Next.RAISE:
                        raise
                    if url not in failures or not self._was_cut_short(error, limits, self._clock() - began):
                        failures[url] = error
                    may_go_on &= what is Next.AGAIN
                    if self._clock() >= deadline:
                        break
                else:
                    self._nodes.answered(url)
                    return result
            pause_s = self._pause_s(rounds, failures.values())
            if not may_go_on or self._clock() + pause_s >= deadline:
                break
            await self._sleep(pause_s)
        raise self._sum_up(failures)

    def _limits(self, deadline: float, untried: int, *, is_read: bool) -> Limits:
        """What one attempt may take, so that each node that is left has its share."""
        left_s = max(0.0, deadline - self._clock())
        share_s = left_s / untried
        # A write that was sent is waited for to the end: no other node may be asked.
        answer_s = min(share_s, self._node_timeout_s) if is_read and not self._is_alone else left_s
        return Limits(deadline, share_s, min(_CONNECT_S, share_s), answer_s, self._timeout_s)

    def _was_cut_short(self, error: ClientError, limits: Limits, took_s: float) -> bool:
        """Whether an attempt failed only as the call's time was nearly over: that tells nothing about the node."""
        given_s = min(limits.begin_s, limits.answer_s)
        is_of_time = isinstance(error, Unreachable | Unanswered) and took_s >= given_s - _CLOCK_S
        return is_of_time and (self._is_alone or given_s < self._node_timeout_s)

    def _note(self, url: str, error: ClientError, what: Next) -> None:
        """Remember what an error says about the node."""
        if what is Next.RAISE and isinstance(error, ServerError):
            # It is the request that is at fault, or the whole cluster.
            self._nodes.answered(url)
        else:
            self._nodes.failed(url, self._clock())

    def _pause_s(self, rounds: int, failures: Iterable[ClientError]) -> float:
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(rounds, 16), _LONGEST_PAUSE_S)
        # A node that has not caught up has waited already, and needs no rest.
        asked_s = max((error.retry_after_s or 0.0 for error in failures if error.code != "not_caught_up"), default=0.0)
        return max(pause_s * (1 + self._jitter()) / 2, asked_s)

    def _sum_up(self, failures: Mapping[str, ClientError]) -> ClientError:
        for error in failures.values():
            # That the others did not know better does not make it less true.
            if self._is_alone or isinstance(error, HistoryLost):
                return error
        return NoNodeAvailable(failures, self._count)
