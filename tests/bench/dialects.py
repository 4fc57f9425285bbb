"""The same puts and reads for every server, each in the form that the server wants.

Keys are of the form `key-00000042`, values are strings whose JSON text has 20 to 100 bytes.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from bench.load import http_request

#: Requests a pool holds.
POOL = 20_000

#: Values are cut out of this text: that is cheap, and what is near one another in a table has little in common.
_TEXT = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=1 << 16))


def key_of(number: int) -> str:
    """A key."""
    return f"key-{number:08d}"


def value_of(number: int, size_bytes: int | None = None) -> str:
    """A value, always the same for a number.

    Args:
        size_bytes: of its JSON text, quotes included; None for 20 to 100, evenly.
    """
    start = number * 40_503 % 65_000
    return _TEXT[start : start + (18 + number * 7919 % 81 if size_bytes is None else size_bytes - 2)]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a kind of server is asked over HTTP.

    Attributes:
        put: makes the request that sets a key.
        get: makes the request that reads one.
        shows: whether the body of an answer to `get` has this value.
    """

    put: Callable[[str, str], bytes]
    get: Callable[[str], bytes]
    shows: Callable[[bytes, str], bool]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _post(target: str, fields: dict[str, str]) -> bytes:
    return http_request("POST", target, json.dumps(fields, separators=(",", ":")).encode())


#: kvnode's REST, which the no-op application and the FastAPI application speak, too.
KVNODE = Dialect(
    put=lambda key, value: _post("/put", {"key": key, "value": value}),
    get=lambda key: http_request("GET", f"/read/{key}"),
    shows=lambda body, value: json.loads(body)["value"] == value,
)

#: The JSON gateway of etcd, in which keys and values are base64.
ETCD = Dialect(
    put=lambda key, value: _post("/v3/kv/put", {"key": _base64(key), "value": _base64(value)}),
    get=lambda key: _post("/v3/kv/range", {"key": _base64(key)}),
    shows=lambda body, value: json.loads(body)["kvs"][0]["value"] == _base64(value),
)

#: Redis behind webdis: the command is the path, or the body of a POST.
WEBDIS = Dialect(
    put=lambda key, value: http_request("POST", "/", f"SET/{key}/{value}".encode()),
    get=lambda key: http_request("GET", f"/GET/{key}"),
    shows=lambda body, value: json.loads(body)["GET"] == value,
)


def puts(dialect: Dialect, keys: int, seed: int, size: int = POOL) -> list[bytes]:
    """Puts of random keys out of `keys`; the same ones for every dialect."""
    chooser = random.Random(seed)
    return [dialect.put(key_of(chooser.randrange(keys)), value_of(chooser.randrange(1 << 30))) for _ in range(size)]


def gets(dialect: Dialect, keys: int, seed: int, size: int = POOL) -> list[bytes]:
    """Reads of random keys out of `keys`; the same ones for every dialect."""
    chooser = random.Random(seed)
    return [dialect.get(key_of(chooser.randrange(keys))) for _ in range(size)]


def fills(dialect: Dialect, keys: int) -> list[bytes]:
    """One put of every key of `keys`."""
    return [dialect.put(key_of(number), value_of(number)) for number in range(keys)]
