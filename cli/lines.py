"""Reading a JSON lines file for `load`: whole batches at a time, on a thread of its own, with bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from kvnode.cli.jsontext import parse_item

KiB = 1024
MiB = 1024 * KiB

#: What one read asks for.
_CHUNK_BYTES = 256 * KiB
#: A longer line is no record that a node would take (its request body limit), and is not kept in memory.
MAX_LINE_BYTES = 32 * MiB

_T = TypeVar("_T")


class Line(NamedTuple):
    """One line of the input.

    Attributes:
        number: from 1.
        text: without its end; None when it was too long to be kept.
    """

    number: int
    text: bytes | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that may go into one atomic write, from lines that follow each other directly.

    Attributes:
        first_line: the number of the first record's line; the others count on from it.
        texts: the lines, each ``{"key", "value"}``; at least one.
        keys: the key of each of them.
        size: their length in bytes. Never less than what the node counts, keys and values.
    """

    first_line: int
    texts: list[bytes]
    keys: list[str]
    size: int

    @property
    def last_line(self) -> int:
        """The number of the last record's line."""
        return self.first_line + len(self.texts) - 1

    def halves(self) -> tuple[Batch, Batch]:
        """This batch, of at least two records, as two."""
        middle = len(self.texts) // 2
        return self._part(0, middle), self._part(middle, len(self.texts))

    def _part(self, start: int, stop: int) -> Batch:
        texts = self.texts[start:stop]
        return Batch(self.first_line + start, texts, self.keys[start:stop], sum(map(len, texts)))


class BadLine(NamedTuple):
    """A line that is no record.

    Attributes:
        line: where it stands.
        reason: what is wrong with it.
    """

    line: Line
    reason: str


def read_lines(read: Callable[[int], bytes], max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Yield the lines of a stream, the last one also without an end; memory is bounded by the longest allowed.

    Args:
        read: gives at most that many bytes, and none at the end; may block.
    """
    number = 1
    parts: list[bytes] = []
    held = 0
    too_long = False
    while chunk := read(_CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        for text in [first, *others[:-1]] if others else ():
            if too_long or held + len(text) > max_line_bytes:
                yield Line(number, None)
            else:
                yield Line(number, b"".join((*parts, text)) if parts else text)
            number += 1
            parts, held, too_long = [], 0, False
        rest = others[-1] if others else first
        held += len(rest)
        if held > max_line_bytes:
            parts, too_long = [], True
        elif rest:
            parts.append(rest)
    if too_long or parts:
        yield Line(number, None if too_long else b"".join(parts))


def read_batches(lines: Iterable[Line], max_items: int, max_bytes: int) -> Iterator[Batch | BadLine]:
    """Group lines into batches, in their order. Empty lines are left out.

    A batch ends early at a line that is no record, so that its lines are without gaps.

    Args:
        max_items: at least 1.
        max_bytes: of a batch; a single longer line is a batch of its own.
    """
    texts: list[bytes] = []
    keys: list[str] = []
    size = 0
    first_line = 0

    def gathered() -> Iterator[Batch]:
        nonlocal texts, keys, size
        if texts:
            yield Batch(first_line, texts, keys, size)
            texts, keys, size = [], [], 0

    for line in lines:
        if line.text is None:
            yield from gathered()
            yield BadLine(line, "the line is too long to be a record")
        elif not line.text or line.text.isspace():
            yield from gathered()
        else:
            try:
                key = parse_item(line.text).key
            except ValueError as error:
                yield from gathered()
                yield BadLine(line, str(error))
                continue
            if not key:
                yield from gathered()
                yield BadLine(line, "the key is empty")
                continue
            if len(texts) == max_items or size + len(line.text) > max_bytes:
                yield from gathered()
            if not texts:
                first_line = line.number
            texts.append(line.text)
            keys.append(key)
            size += len(line.text)
    yield from gathered()


class ReadAhead(Generic[_T]):
    """Runs an iterator that may block on a thread of its own, a few items ahead of an asynchronous reader.

    The thread is a daemon: one that waits for input which never comes must not keep the program from ending.

    Args:
        source: iterated on the thread only.
        depth: most items that wait to be taken.
    """

    def __init__(self, source: Iterable[_T], depth: int) -> None:
        self._source = source
        self._free = threading.Semaphore(depth)
        self._closed = False
        self._loop = asyncio.get_running_loop()
        #: items, then how it ended: None, or the exception that the source raised
        self._queue: asyncio.Queue[tuple[_T] | Exception | None] = asyncio.Queue()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def __aiter__(self) -> ReadAhead[_T]:
        return self

    async def __anext__(self) -> _T:
        """The next item.

        Raises:
            Exception: what the source raised.
        """
        got = await self._queue.get()
        self._free.release()
        if isinstance(got, tuple):
            return got[0]
        self._queue.put_nowait(got)
        raise got or StopAsyncIteration

    def close(self) -> None:
        """Let the thread end as soon as its source lets it."""
        self._closed = True
        self._free.release()

    def _run(self) -> None:
        end: Exception | None = None
        try:
            for item in self._source:
                self._free.acquire()
                if self._closed:
                    return
                self._hand_over((item,))
        except Exception as error:
            end = error
        self._hand_over(end)

    def _hand_over(self, item: tuple[_T] | Exception | None) -> None:
        # The loop can close between a check and this call.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
