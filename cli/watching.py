"""Looking at a node again and again: what each look found, whether the node answers or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvnode.cli.client import Client
from kvnode.cli.errors import ClientError, Unanswered
from kvnode.cli.nodestatus import NodeStatus, Rates, rates_between, read_status

#: A look that takes longer shows nothing new for too long.
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look at a node found.

    Attributes:
        when: it was over.
        status: as of now, or of the last look that was answered; None if none was.
        fields: the same, as the node sent it.
        rates: since the look before; None where nothing can be said.
        error: why this look was not answered; None if it was.
        silent_since: when the first look began of those that were not answered since; None if this one was.
    """

    when: datetime
    status: NodeStatus | None = None
    fields: dict[str, Any] | None = None
    rates: Rates | None = None
    error: ClientError | None = None
    silent_since: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """The node's own members, if it answered, and one more, `watch`, about the look itself."""
        watch: dict[str, Any] = {"time": _iso(self.when), "reachable": self.error is None}
        if self.rates is not None:
            watch |= self.rates._asdict()
        if self.error is None:
            return {**(self.fields or {}), "watch": watch}
        assert self.silent_since is not None
        watch["since"] = _iso(self.silent_since)
        watch["error"] = {"code": self.error.code, "message": self.error.message}
        return {"watch": watch}


async def looks(
    client: Client, interval_s: float, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> AsyncGenerator[Look, None]:
    """Look at a node at once, and then every `interval_s`, for ever; one look at a time.

    A look that is not answered is one, too; it is no error.
    """
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    last: Look | None = None
    while True:
        last = await _look(client, last, max(_PATIENCE_S, interval_s), now)
        yield last
        # A look that took long makes the next one late, and does not make it two.
        due_s = max(due_s + interval_s, loop.time())
        await asyncio.sleep(due_s - loop.time())


async def _look(client: Client, last: Look | None, patience_s: float, now: Callable[[], datetime]) -> Look:
    began = now()
    try:
        try:
            async with asyncio.timeout(patience_s):
                fields = (await client.status()).fields
        except TimeoutError:
            raise Unanswered(f"no answer came within {patience_s:g} s") from None
        status = read_status(fields)
    except ClientError as error:
        return Look(
            when=now(),
            status=None if last is None else last.status,
            error=error,
            silent_since=(last and last.silent_since) or began,
        )
    rates = None
    if last is not None and last.status is not None and last.error is None:
        rates = rates_between(last.status, status)
    return Look(when=now(), status=status, fields=fields, rates=rates)


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
