"""One connection of the peer protocol with many requests in flight, and what becomes of each when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast

from kvnode.cli.errors import Unanswered, Unreachable
from kvnode.cli.peer import make_hello
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.errors import KvError, RemoteProtocolError
from kvnode.protocol.messages import Error, Message, Purpose, ReadResult, StatusResult, WriteResult

#: How exact the end of a call's time is.
_SWEEP_S = 0.25

_READ_BACK = "a write may have happened: read it back to find out"

_T = TypeVar("_T", WriteResult, ReadResult, StatusResult)


class _Call:
    """Requests with consecutive ids that were made together and are on their way.

    Attributes:
        ids: of the requests.
        ended: resolves when all are answered.
        end_by: when their time is up, by the loop's clock.
        is_sent: whether the transport has them.
        results: in the order of the requests; None where there is none yet.
    """

    __slots__ = ("_left", "end_by", "ended", "ids", "is_sent", "results")

    def __init__(self, ids: range, ended: asyncio.Future[None], end_by: float) -> None:
        self.ids = ids
        self.ended = ended
        self.end_by = end_by
        self.is_sent = False
        self.results: list[Message | None] = [None] * len(ids)
        self._left = len(ids)

    def take(self, result: ReadResult | WriteResult | StatusResult) -> None:
        """Keep a result, the first one of its request."""
        self.results[result.request_id - self.ids.start] = result
        self._left -= 1
        if not self._left and not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: KvError) -> None:
        """End it, unless it has ended."""
        if not self.ended.done():
            self.ended.set_exception(error)
            # Whoever called may have been cancelled in this turn: an error that nobody fetches is no event.
            self.ended.exception()


class Pipeline(asyncio.Protocol):
    """A connection: requests out, each with an id of its own, and results in."""

    def __init__(self, url: str, timeout_s: float, most_in_flight: int) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._welcome: asyncio.Future[Message | None] = self._loop.create_future()
        self._next_id = 1
        #: by request id: of the requests that are sent or about to be, and not answered
        self._calls: dict[int, _Call] = {}
        #: frames of this turn of the loop, with their calls: a transport would make a system call of each
        self._unsent: list[tuple[_Call, bytes]] = []
        self._slots = asyncio.Semaphore(most_in_flight)
        self._may_write = asyncio.Event()
        self._may_write.set()
        #: why nothing can be sent any more; None = it can
        self._reason: str | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def greet(self) -> Message | None:
        """Say HELLO, and return the answer; None where there is none."""
        assert self._transport is not None
        self._transport.write(encode(make_hello(Purpose.CLIENT)))
        return await self._welcome

    async def ask(self, make: Callable[[int], Message], kind: type[_T]) -> _T:
        """Send a request and return its result; see `ask_all`.

        Args:
            make: the message, given its request id.
        """
        (result,) = await self.ask_all(lambda number: encode(make(number)), 1, kind)
        return result

    async def ask_all(self, make: Callable[[int], bytes], count: int, kind: type[_T]) -> list[_T]:
        """Send requests together and return their results, in the order of the requests.

        Args:
            make: their frames, given the request id of the first; the others have those that follow.
            count: of the requests.
            kind: of the results.

        Raises:
            Unreachable: they were not sent.
            Unanswered: they were, and not all are answered.
            LocalProtocolError: the format does not allow one; none was sent.
        """
        end_by = self._loop.time() + self._timeout_s
        await self._take_slot(end_by)
        ids = range(self._next_id, self._next_id + count)
        self._next_id = ids.stop
        try:
            call = self._send(ids, make(ids.start), end_by)
            await call.ended
        finally:
            for number in ids:
                self._calls.pop(number, None)
            self._slots.release()
        results = [result for result in call.results if isinstance(result, kind)]
        if len(results) < count:
            self.close(f"something else than {kind.__name__} came for a request")
            raise Unanswered(f"{self._url} answered something else than what it was asked", url=self._url)
        return results

    def close(self, reason: str = "this client was closed") -> None:
        """Send no more, and give up what is not answered."""
        self._end(reason)
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            # The node may never take it, and nobody waits for what comes of it.
            self._transport.abort()
        else:
            self._transport.close()

    # ---- out -------------------------------------------------------------------------------------------------------

    async def _take_slot(self, end_by: float) -> None:
        """Return when a request may be sent; its slot is to be released.

        Raises:
            Unreachable: it may not in time.
        """
        if self._may_write.is_set() and not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout_at(end_by):
                await self._may_write.wait()
                await self._slots.acquire()
        except TimeoutError:
            message = f"{self._url} takes no more requests: this one was not sent within {self._timeout_s:g} s"
            raise Unreachable(message, url=self._url) from None

    def _send(self, ids: range, frames: bytes, end_by: float) -> _Call:
        if self._reason is not None:
            raise self._not_sent()
        call = _Call(ids, self._loop.create_future(), end_by)
        for number in ids:
            self._calls[number] = call
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append((call, frames))
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(_SWEEP_S, self._sweep)
        return call

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            for call, _ in unsent:
                call.is_sent = True
            self._transport.write(b"".join([frames for _, frames in unsent]))

    # ---- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._reason is not None:
            return
        try:
            self._decoder.feed(data)
            for message in self._decoder:
                self._take(message)
        except RemoteProtocolError as error:
            if not self._welcome.done():
                self._welcome.set_exception(error)
            self.close(str(error))

    def _take(self, message: Message) -> None:
        match message:
            case ReadResult() | WriteResult() | StatusResult():
                call = self._calls.pop(message.request_id, None)
                # There is none when its time was up, or it was cancelled.
                if call is not None:
                    call.take(message)
            case Error(code, text) if self._welcome.done():
                self._end(f"{code}: {text}")
            case _ if not self._welcome.done():
                self._welcome.set_result(message)

    def eof_received(self) -> bool:
        # The node is done: it sends no more answers.
        return False

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._end("the node closed the connection" if error is None else f"the connection broke: {error}")
        self._transport = None

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """Nothing more can be sent, and no more answers come."""
        if self._reason is not None:
            return
        self._reason = reason
        self._unsent.clear()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for call in self._calls.values():
            call.fail(self._unanswered(reason) if call.is_sent else self._not_sent())
        if not self._welcome.done():
            self._welcome.set_result(None)
        # Those that wait find out that it is too late.
        self._may_write.set()

    def _sweep(self) -> None:
        """End the calls whose time is up."""
        now = self._loop.time()
        for call in self._calls.values():
            if now >= call.end_by:
                call.fail(self._unanswered(f"no answer came within {self._timeout_s:g} s"))
        self._sweep_timer = self._loop.call_later(_SWEEP_S, self._sweep) if self._calls else None

    def _unanswered(self, reason: str) -> Unanswered:
        return Unanswered(f"{self._url}: sent, and not answered: {reason}", hint=_READ_BACK, url=self._url)

    def _not_sent(self) -> Unreachable:
        return Unreachable(f"{self._url}: not sent: {self._reason}", hint="connect again", url=self._url)
