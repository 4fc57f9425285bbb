"""The engine of `load`: batches in flight at the same time, an order that the end result keeps, and no silent loss.

**Order.** The last of a repeated key wins, as if the lines had been stored one by one. Batches in flight at
the same time never share a key: one that would waits until the others are settled. Within a batch the node keeps
the order. Once a batch was given up nothing more is sent, so that its records, loaded later, cannot overwrite
newer ones.

**Retries.** A batch is sent again after an answer that says "nothing was written, try later" (503, 507), when no
connection could be made, and after an outcome that nobody knows (a cut connection, a timeout, 504
`outcome_unknown`, 500): a batch sets keys to values, so a second time changes nothing. What it can do is overwrite what
*another* client wrote to the same key in between. What no client can exclude is an attempt that was left unanswered
and reaches the node only after later lines have. A batch that the node refuses as it is (400, 413) is halved until
the refused record stands alone, and only that one is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from kvnode.cli.client.results import Written
from kvnode.cli.errors import ClientError, NoNodeAvailable, ServerError, Unanswered, Unreachable
from kvnode.cli.lines import BadLine, Batch
from kvnode.protocol.types import Position

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0


class Cause(Enum):
    """Why records were not acknowledged."""

    #: The line is no record.
    BAD = "bad"
    #: The node refused the record as it is; it was not written.
    REJECTED = "rejected"
    #: Sent, but never acknowledged; some attempt may have been written.
    UNKNOWN = "unknown"
    #: Every attempt is known to have written nothing.
    UNWRITTEN = "unwritten"
    #: Not sent, because the load had stopped.
    UNSENT = "unsent"


class Reporter(Protocol):
    """Told what becomes of every line, exactly once for each that is not empty; called on the event loop."""

    def acknowledged(self, batch: Batch, position: Position) -> None:
        """The batch is durable."""

    def bad(self, line: BadLine) -> None:
        """The line is no record."""

    def failed(self, batch: Batch, cause: Cause, reason: str) -> None:
        """The batch was not acknowledged; `reason` is for people."""

    def retrying(self, error: ClientError) -> None:
        """The first failed attempt after things had gone well."""


@dataclass(slots=True)
class Summary:
    """What a load came to, counted in lines that are not empty.

    Attributes:
        acknowledged: durable.
        failed: not acknowledged, by cause.
        batches: acknowledged ones.
        retries: attempts beyond the first of each batch.
        position: the highest acknowledged.
        stopped_at_line: the first line that was not sent because the load had stopped, None when none was left.
            What comes before it was acknowledged, or reported line by line.
        interrupted: whether it was stopped from outside.
    """

    acknowledged: int
    failed: dict[Cause, int]
    batches: int = 0
    retries: int = 0
    position: Position | None = None
    stopped_at_line: int | None = None
    interrupted: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every record of the input was acknowledged."""
        return not any(self.failed.values()) and self.stopped_at_line is None and not self.interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How hard to try.

    Attributes:
        connections: batches in flight, at least 1.
        retries: attempts of a batch after its first, 0 or more.
        stop_on_error: send nothing more after the first line that is bad or rejected.
        keep_rest: after a stop, read the rest of the input and report it as unsent, instead of leaving it unread.
    """

    connections: int = 4
    retries: int = 10
    stop_on_error: bool = False
    keep_rest: bool = False


class Loader:
    """Sends batches until the input ends, a batch is given up, or the task is cancelled. Used once.

    Args:
        send: writes one batch of ``{"key", "value"}`` texts atomically; raises a `ClientError`.
        reporter: told about every line.
        policy: how hard to try.
        jitter: a random number from 0 to 1, new at each call.
        sleep: waits that many seconds.

    Attributes:
        summary: what the load came to so far.
    """

    def __init__(
        self,
        send: Callable[[Sequence[bytes]], Awaitable[Written]],
        reporter: Reporter,
        policy: Policy,
        *,
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.summary = Summary(0, dict.fromkeys(Cause, 0))
        self._send = send
        self._reporter = reporter
        self._policy = policy
        self._jitter = jitter
        self._sleep = sleep
        self._tasks: set[asyncio.Task[None]] = set()
        #: keys of the batches in flight, which have none in common
        self._keys: set[str] = set()
        self._stopped = False
        self._is_troubled = False

    async def run(self, source: AsyncIterator[Batch | BadLine]) -> Summary:
        """Load all of `source`.

        A cancellation ends it like a stop: what is in flight is reported, and the summary is returned.

        Raises:
            Exception: what the source or the reporter raised; the summary so far is in `summary`.
        """
        #: where the input goes on after all that was handed to a task or to the reporter; None past its end
        next_line: int | None = 1
        try:
            async for piece in source:
                next_line = _first_line(piece)
                if isinstance(piece, Batch):
                    await self._admit(piece)
                if self._stopped:
                    # Whatever still fails comes from earlier lines, and is to be reported before later ones.
                    await self._settle()
                    self._stop_at(next_line)
                    if not self._policy.keep_rest:
                        break
                self._take(piece)
                next_line = _last_line(piece) + 1
            else:
                next_line = None
            await self._settle()
        except asyncio.CancelledError:
            self.summary.interrupted = True
            if next_line is not None:
                self._stop_at(next_line)
        finally:
            await self._abandon()
        return self.summary

    def _stop_at(self, line: int) -> None:
        self.summary.stopped_at_line = min(line, self.summary.stopped_at_line or line)

    def _take(self, piece: Batch | BadLine) -> None:
        if isinstance(piece, BadLine):
            self.summary.failed[Cause.BAD] += 1
            self._reporter.bad(piece)
            self._stopped |= self._policy.stop_on_error
        elif self._stopped:
            self._fail(piece, Cause.UNSENT, "not sent")
        else:
            self._keys.update(piece.keys)
            self._tasks.add(asyncio.create_task(self._deliver(piece)))

    async def _admit(self, batch: Batch) -> None:
        """Return when the batch may be in flight beside the others, or when there is no use in sending it."""
        while not self._stopped and (
            len(self._tasks) >= self._policy.connections or not self._keys.isdisjoint(batch.keys)
        ):
            await self._wait(asyncio.FIRST_COMPLETED)

    async def _settle(self) -> None:
        """Return when nothing is in flight."""
        while self._tasks:
            await self._wait(asyncio.ALL_COMPLETED)

    async def _wait(self, until: str) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=until)
        errors = [error for task in done if (error := task.exception())]
        if errors:
            raise errors[0]

    async def _abandon(self) -> None:
        """End what is still in flight. Nothing is, unless this load was cancelled or broke."""
        # A task that is cancelled before it has begun would not report its batch.
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, batch: Batch) -> None:
        #: what is left to do, the first records last
        parts = [batch]
        try:
            while parts:
                parts += reversed(await self._store(parts.pop()))
                # The next part may hold a key of one that was given up.
                if self._stopped:
                    break
        finally:
            for part in reversed(parts):
                self._stop_at(part.first_line)
                self._fail(part, Cause.UNSENT, "not sent")
            self._keys.difference_update(batch.keys)

    async def _store(self, batch: Batch) -> tuple[Batch, ...]:
        """Try to write a batch until it is settled; return its parts if the node refused it as a whole."""
        cause = Cause.UNWRITTEN
        retries = 0
        try:
            while True:
                try:
                    written = await self._send(batch.texts)
                except ClientError as error:
                    if _is_refused(error):
                        return self._split(batch, error)
                    if error.maybe_written:
                        cause = Cause.UNKNOWN
                    if retries == self._policy.retries or not _is_passing(error):
                        attempts = f" after {retries + 1} attempts" if retries else ""
                        self._fail(batch, cause, f"{error.message} ({error.code}){attempts}")
                        self._stopped = True
                        return ()
                    if not self._is_troubled:
                        self._is_troubled = True
                        self._reporter.retrying(error)
                    delay_s = self._delay_s(error, retries)
                else:
                    self._is_troubled = False
                    self._acknowledge(batch, written.position)
                    return ()
                retries += 1
                self.summary.retries += 1
                await self._sleep(delay_s)
        except asyncio.CancelledError:
            self._fail(batch, Cause.UNKNOWN, "interrupted")
            raise

    def _split(self, batch: Batch, error: ClientError) -> tuple[Batch, ...]:
        if len(batch.texts) > 1:
            return batch.halves()
        self._fail(batch, Cause.REJECTED, f"{error.message} ({error.code})")
        self._stopped |= self._policy.stop_on_error
        return ()

    def _acknowledge(self, batch: Batch, position: Position) -> None:
        summary = self.summary
        summary.acknowledged += len(batch.texts)
        summary.batches += 1
        if summary.position is None or position > summary.position:
            summary.position = position
        self._reporter.acknowledged(batch, position)

    def _fail(self, batch: Batch, cause: Cause, reason: str) -> None:
        self.summary.failed[cause] += len(batch.texts)
        self._reporter.failed(batch, cause, reason)

    def _delay_s(self, error: ClientError, retries: int) -> float:
        backoff_s = min(_FIRST_BACKOFF_S * 2.0 ** min(retries, 16), _LONGEST_BACKOFF_S)
        return max(backoff_s * (1 + self._jitter()) / 2, error.retry_after_s or 0.0)


def _first_line(piece: Batch | BadLine) -> int:
    return piece.first_line if isinstance(piece, Batch) else piece.line.number


def _last_line(piece: Batch | BadLine) -> int:
    return piece.last_line if isinstance(piece, Batch) else piece.line.number


def _is_refused(error: ClientError) -> bool:
    """Whether the node will never take these records together."""
    return isinstance(error, ServerError) and error.status in {400, 413}


def _is_passing(error: ClientError) -> bool:
    """Whether the same batch may succeed later."""
    if isinstance(error, ServerError):
        return error.status >= 500
    return isinstance(error, Unreachable | Unanswered | NoNodeAvailable)
