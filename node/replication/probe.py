"""Asking a node who it is and how far it is, or for its status: one short session of purpose `probe`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from kvnode.node.config import Address
from kvnode.node.replication.connecting import connect
from kvnode.node.replication.link import PeerLink
from kvnode.protocol.errors import KvError
from kvnode.protocol.fields import ID_BYTES
from kvnode.protocol.follow import position_of
from kvnode.protocol.messages import (
    MAX_VERSION,
    MIN_VERSION,
    Error,
    Hello,
    Message,
    Purpose,
    Status,
    StatusResult,
    Welcome,
)
from kvnode.protocol.types import Position

T = TypeVar("T")

#: The largest answer to HELLO: a history of very many reigns.
_ANSWER_BYTES = 1024 * 1024


class ProbeFailed(KvError):
    """Nobody who speaks this protocol answers at the address, or it refuses to talk.

    Attributes:
        refused: the code of its ERROR; None when nobody answered.
    """

    code = "probe_failed"

    def __init__(self, message: str, refused: str | None = None) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Found:
    """What a node says of itself."""

    welcome: Welcome

    @property
    def position(self) -> Position:
        """Its last durable entry."""
        return position_of(self.welcome.history, self.welcome.last_seq)

    @property
    def term(self) -> int:
        """Of the latest reign in its history."""
        return self.welcome.history.current.term


async def probe(address: Address, timeout_s: float, cluster_id: bytes = b"") -> Found:
    """Ask one node.

    Args:
        cluster_id: if given, a node of another cluster refuses.

    Raises:
        ProbeFailed: see there.
    """
    return Found(await _ask(address, timeout_s, _AskingWho(cluster_id)))


async def probe_all(
    addresses: Iterable[Address], timeout_s: float, cluster_id: bytes
) -> dict[Address, Found | ProbeFailed]:
    """Ask several nodes at once."""

    async def ask(address: Address) -> Found | ProbeFailed:
        try:
            return await probe(address, timeout_s, cluster_id)
        except ProbeFailed as error:
            return error

    wanted = list(dict.fromkeys(addresses))
    return dict(zip(wanted, await asyncio.gather(*map(ask, wanted)), strict=True))


async def ask_status(address: Address, timeout_s: float, cluster_id: bytes) -> dict[str, Any]:
    """What a node answers to GET /status, asked by the peer protocol.

    Raises:
        ProbeFailed: as for `probe`.
    """
    text: bytes = await _ask(address, timeout_s, _AskingStatus(cluster_id))
    try:
        status: dict[str, Any] = msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise ProbeFailed(f"{address} answers no JSON") from None
    return status


async def _ask(address: Address, timeout_s: float, asking: _Asking[T]) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            await connect(address, lambda: PeerLink(asking, _ANSWER_BYTES, stranger=False))
            return await asking.answer
    except TimeoutError:
        raise ProbeFailed(f"{address} gives no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ProbeFailed(f"cannot connect to {address}: {error.strerror or error}") from None
    except UnicodeError as error:
        # So says Python of a name that no host can have.
        raise ProbeFailed(f"cannot connect to {address}: {error}") from None
    finally:
        asking.end()


class _Asking(Generic[T]):
    """One probe. Implements `LinkOwner`."""

    def __init__(self, cluster_id: bytes) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._cluster_id = cluster_id
        self._link: PeerLink | None = None

    def end(self) -> None:
        self.answer.cancel()
        if self._link is not None:
            self._link.close("the probe is done")

    def link_made(self, link: PeerLink) -> None:
        self._link = link
        link.send(
            Hello(
                min_version=MIN_VERSION,
                max_version=MAX_VERSION,
                cluster_id=self._cluster_id,
                node_id=secrets.token_bytes(ID_BYTES),
                boot_id=secrets.token_bytes(ID_BYTES),
                name="",
                purpose=Purpose.PROBE,
                features=(),
                auth=b"",
                address="",
            )
        )

    def frame_received(self, link: PeerLink, message: Message) -> None:
        if self.answer.done():
            return
        if isinstance(message, Error):
            self.answer.set_exception(ProbeFailed(message.message, message.code))
        elif not self._take(link, message):
            self.answer.set_exception(ProbeFailed(f"{message.TYPE.name} came instead of {self._awaited}"))

    def _take(self, link: PeerLink, message: Message) -> bool:
        """Take in a frame; returns whether it is one that was to come."""
        raise NotImplementedError

    @property
    def _awaited(self) -> str:
        """The frame that is to come."""
        return "WELCOME"

    def link_drained(self, link: PeerLink) -> None:
        """One small frame is sent."""

    def peer_finished(self, link: PeerLink) -> bool:
        return False

    def link_lost(self, link: PeerLink, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ProbeFailed(f"{link.peer}: {reason}"))


class _AskingWho(_Asking[Welcome]):
    """Asks a node who it is."""

    def _take(self, link: PeerLink, message: Message) -> bool:
        if isinstance(message, Welcome):
            self.answer.set_result(message)
            return True
        return False


class _AskingStatus(_Asking[bytes]):
    """Asks it for its status, once it said who it is."""

    _is_welcome = False

    def _take(self, link: PeerLink, message: Message) -> bool:
        if isinstance(message, Welcome) and not self._is_welcome:
            self._is_welcome = True
            link.send(Status(1))
            return True
        if isinstance(message, StatusResult) and self._is_welcome:
            self.answer.set_result(message.status)
            return True
        return False

    @property
    def _awaited(self) -> str:
        return "STATUS_RESULT" if self._is_welcome else "WELCOME"
