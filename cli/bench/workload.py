"""What a benchmark asks of a node: a mix of operations on keys of one prefix, chosen by a seed."""

from __future__ import annotations

import math
import random
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from typing import NamedTuple

#: Exponent of the Zipf distribution, as YCSB has it: the n-th most popular key is asked for 1/n**0.99 times as often.
ZIPF_EXPONENT = 0.99

#: Scatters popular keys over the key space; a prime above all numbers of keys, so that no two keys become one.
_SCATTER = 2_654_435_761

#: Values are cut from a text of random characters that is this much longer than the longest.
_SPARE_CHARACTERS = 64 * 1024

#: The longest value that can be asked for; far above what a node takes unless it was told to.
_MAX_VALUE_BYTES = 64 * 1024 * 1024


class Kind(Enum):
    """An operation; its value is its name in --mix."""

    PUT = "put"
    GET = "get"
    DELETE = "delete"
    BATCH = "batch"
    RANGE = "range"


class Distribution(Enum):
    """Which keys are asked for how often."""

    UNIFORM = "uniform"
    ZIPF = "zipf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked, in full; two runs with an equal one ask the same.

    Attributes:
        mix: weight of each operation; above 0.
        keys: how many there are, at least 1.
        prefix: of all keys; not empty.
        key_bytes: length of every key, prefix included.
        value_bytes: shortest and longest value, as characters of a JSON string.
        distribution: of the keys that are asked for.
        batch_items: puts in a batch.
        range_items: limit of a range read.
        seed: of all choices.

    Raises:
        ValueError: the keys do not fit in `key_bytes`, or the values are too long.
    """

    mix: Mapping[Kind, float]
    keys: int
    prefix: str
    key_bytes: int
    value_bytes: tuple[int, int]
    distribution: Distribution
    batch_items: int
    range_items: int
    seed: int

    def __post_init__(self) -> None:
        least = len(self.prefix.encode()) + len(str(self.keys - 1))
        if self.key_bytes < least:
            raise ValueError(
                f"{self.keys:,} keys with the prefix {self.prefix!r} take at least {least} bytes each, "
                f"not {self.key_bytes}"
            )

        if self.value_bytes[1] > _MAX_VALUE_BYTES:
            raise ValueError(f"values of {self.value_bytes[1]:,} bytes are over the limit of {_MAX_VALUE_BYTES:,}")

    def key(self, number: int) -> str:
        """The key with a number from 0 on; keys are in the order of their numbers."""
        return f"{self.prefix}{number:0{self.key_bytes - len(self.prefix.encode())}d}"

    def is_own(self, key: str) -> bool:
        """Whether it is one of the keys."""
        number = key.removeprefix(self.prefix)
        return number.isascii() and number.isdigit() and int(number) < self.keys and self.key(int(number)) == key


class Request(NamedTuple):
    """One operation.

    Attributes:
        kind: which.
        key: what it is about; of a range where it begins, of a batch the first one.
        items: keys and JSON texts to be written.
    """

    kind: Kind
    key: str
    items: tuple[tuple[str, bytes], ...] = ()


class Requests:
    """An endless source of requests.

    Args:
        text: `value_text` of the workload, which all sources share.
        stream: tells sources with the same workload apart.
    """

    def __init__(self, workload: Workload, text: bytes, stream: int = 0) -> None:
        self._workload = workload
        self._random = random.Random(f"{workload.seed}/{stream}")
        self._kinds = list(workload.mix)
        self._weights = list(accumulate(workload.mix.values()))
        self._text = text
        self._zipf = Zipf(workload.keys) if workload.distribution is Distribution.ZIPF else None

    def next(self) -> Request:
        """The next one."""
        (kind,) = self._random.choices(self._kinds, cum_weights=self._weights)
        key = self._key()
        match kind:
            case Kind.PUT:
                return Request(kind, key, ((key, self._value()),))
            case Kind.BATCH:
                keys = (key, *(self._key() for _ in range(self._workload.batch_items - 1)))
                return Request(kind, key, tuple((each, self._value()) for each in keys))
            case _:
                return Request(kind, key)

    def fill(self, first: int, stop: int) -> Iterator[tuple[str, bytes]]:
        """A put for every key of this part of the key space."""
        return ((self._workload.key(number), self._value()) for number in range(first, stop))

    def _key(self) -> str:
        if self._zipf is None:
            return self._workload.key(self._random.randrange(self._workload.keys))
        rank = self._zipf.rank(self._random.random())
        return self._workload.key(rank * _SCATTER % self._workload.keys)

    def _value(self) -> bytes:
        shortest, longest = self._workload.value_bytes
        size = shortest if shortest == longest else self._random.randint(shortest, longest)
        start = self._random.randrange(_SPARE_CHARACTERS)
        return b'"%b"' % self._text[start : start + size]


def value_text(workload: Workload) -> bytes:
    """The random characters that values are cut from; they need no escape in JSON."""
    size = workload.value_bytes[1] + _SPARE_CHARACTERS
    return b64encode(random.Random(workload.seed).randbytes(size))[:size]


class Zipf:
    """Ranks from 0 on, of which the n-th is drawn in proportion to 1 / n**0.99, without a table of all.

    A draw takes the rank in which a uniform number falls under the integral of the curve. That is the discrete
    distribution but for the most popular ranks: the share of the first is too high by a tenth, that of the second by
    two percent, which is near enough for a benchmark.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._power = 1 - ZIPF_EXPONENT
        self._low = self._integral(0.5)
        self._span = self._integral(count + 0.5) - self._low

    def rank(self, uniform: float) -> int:
        """The rank, below the count, for a number from 0 up to 1."""
        area = self._low + uniform * self._span
        x = math.pow(area * self._power, 1 / self._power)
        return min(self._count, max(1, math.floor(x + 0.5))) - 1

    def _integral(self, x: float) -> float:
        return math.pow(x, self._power) / self._power
