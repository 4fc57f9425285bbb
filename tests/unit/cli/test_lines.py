"""Lines and batches: what comes out does not depend on how the input is cut into reads, and memory is bounded."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from kvnode.cli.lines import BadLine, Batch, Line, ReadAhead, read_batches, read_lines


def reader(content: bytes, *sizes: int) -> Callable[[int], bytes]:
    """Reads `content` in pieces of those sizes, the last one again and again."""
    position = 0
    left = list(sizes)

    def read(size: int) -> bytes:
        nonlocal position
        piece = min(size, left.pop(0) if len(left) > 1 else left[0])
        position += piece
        return content[position - piece : position]

    return read


@pytest.mark.parametrize("size", range(1, 13))
@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"\n\none\r\n", [b"", b"", b"one\r"]),
        (b"12345678\n1234567890\n1", [b"12345678", None, b"1"]),
        (b"123456789", [None]),
        (b"123456789\n", [None]),
    ],
)
def test_lines_are_the_same_for_any_reads(content: bytes, texts: list[bytes | None], size: int) -> None:
    lines = list(read_lines(reader(content, size), max_line_bytes=8))
    assert lines == [Line(number, text) for number, text in enumerate(texts, 1)]


def test_an_endless_line_is_not_kept() -> None:
    reads = 0

    def read(size: int) -> bytes:
        nonlocal reads
        reads += 1
        return b"x" * size if reads <= 4096 else b""

    # A gigabyte; keeping it would show as a test that takes all memory.
    assert list(read_lines(read, max_line_bytes=1024)) == [Line(1, None)]


def lines_of(*texts: bytes | None) -> Iterator[Line]:
    return (Line(number, text) for number, text in enumerate(texts, 1))


def record(key: str, value: str = "1") -> bytes:
    return f'{{"key":"{key}","value":{value}}}'.encode()


def test_batches_are_bounded_in_records_and_bytes() -> None:
    a, b, c, long = record("a"), record("b"), record("c"), record("d", "1" * 100)
    got = list(read_batches(lines_of(a, b, c, long, a), max_items=2, max_bytes=2 * len(a)))
    assert got == [
        Batch(1, [a, b], ["a", "b"], 2 * len(a)),
        Batch(3, [c], ["c"], len(c)),
        Batch(4, [long], ["d"], len(long)),
        Batch(5, [a], ["a"], len(a)),
    ]


@pytest.mark.parametrize(
    "bad", [b"bad", b'{"key":"a"}', b'{"key":"","value":1}', b'{"key":"a","value":1,"ttl":3}', None]
)
def test_a_bad_line_is_reported_in_its_place_and_ends_the_batch(bad: bytes | None) -> None:
    a, b = record("a"), record("b")
    first, middle, last = read_batches(lines_of(a, bad, b), max_items=10, max_bytes=1000)
    assert first == Batch(1, [a], ["a"], len(a))
    assert isinstance(middle, BadLine)
    assert middle.line == Line(2, bad)
    assert middle.reason
    assert last == Batch(3, [b], ["b"], len(b))


def test_empty_lines_are_left_out_and_leave_no_gap_in_a_batch() -> None:
    a, b = record("a"), record("b")
    got = list(read_batches(lines_of(b"", a, b" \r", b, b""), max_items=10, max_bytes=1000))
    assert got == [Batch(2, [a], ["a"], len(a)), Batch(4, [b], ["b"], len(b))]


def test_halves_share_out_the_lines() -> None:
    texts = [record(key) for key in "abc"]
    batch = Batch(7, texts, ["a", "b", "c"], sum(map(len, texts)))
    first, second = batch.halves()
    assert (first.first_line, first.last_line, first.texts, first.keys) == (7, 7, texts[:1], ["a"])
    assert (second.first_line, second.last_line, second.texts, second.keys) == (8, 9, texts[1:], ["b", "c"])
    assert first.size + second.size == batch.size


async def test_read_ahead_hands_over_everything_in_order() -> None:
    assert [item async for item in ReadAhead(iter(range(100)), depth=3)] == list(range(100))


async def test_read_ahead_stays_within_its_depth() -> None:
    taken: list[int] = []
    is_waiting = threading.Event()

    def source() -> Iterator[int]:
        for number in range(10):
            if number == 3:
                is_waiting.set()
            taken.append(number)
            yield number

    ahead = ReadAhead(source(), depth=2)
    # Two are handed over; the third is in the thread's hand, as there is no room for it.
    assert await anext(ahead) == 0
    assert await asyncio.to_thread(is_waiting.wait, 10)
    assert len(taken) <= 4
    assert [item async for item in ahead] == list(range(1, 10))


async def test_read_ahead_raises_what_its_source_raised_after_the_items() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    ahead = ReadAhead(source(), depth=2)
    assert await anext(ahead) == 1
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            await anext(ahead)


async def test_read_ahead_ends_its_thread_when_closed() -> None:
    ahead = ReadAhead(iter(range(100)), depth=1)
    assert await anext(ahead) == 0
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
    ahead.close()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
