"""Who follows a store's log, as the store sees them; `kvnode.node.replication.cluster` is the one that really does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from kvnode.node.api import Acks, WriteResult
from kvnode.node.errors import NotEnoughReplicas
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import Seq


class Followers(Protocol):
    """Who follows this log, as the store sees them. Called on the event loop."""

    def admit(self, acks: Acks) -> int:
        """How many replicas a write will wait for.

        Raises:
            NotEnoughReplicas: fewer follow.
        """

    def hold(self, future: asyncio.Future[WriteResult], result: WriteResult, wanted: int, timeout_s: float) -> None:
        """Answer a write, which is durable and visible here, when `wanted` replicas hold it too."""

    def published(self, first_seq: Seq, records: Sequence[LogRecord]) -> None:
        """These entries are durable and visible; the writes among them that wait for replicas are held already.

        Without records: all before `first_seq` is, and it is not said what that was.
        """

    def pinned_seq(self) -> Seq | None:
        """From where on the log must stay for those who need it; None = they need nothing."""

    def log_trimmed(self, first_seq: Seq) -> None:
        """The log is about to begin here."""

    def log_replaced(self) -> None:
        """Log and data are those of a full sync now."""


class Nobody:
    """`Followers` of a store that nobody has attached any to."""

    def admit(self, acks: Acks) -> int:
        if acks.count:
            raise NotEnoughReplicas(
                f"{acks.count} replicas were asked for, none follows this node", asked=acks.count, following=0
            )
        return 0

    def hold(self, future: asyncio.Future[WriteResult], result: WriteResult, wanted: int, timeout_s: float) -> None:
        raise AssertionError("nobody was admitted")

    def published(self, first_seq: Seq, records: Sequence[LogRecord]) -> None:
        pass

    def pinned_seq(self) -> Seq | None:
        return None

    def log_trimmed(self, first_seq: Seq) -> None:
        pass

    def log_replaced(self) -> None:
        pass
