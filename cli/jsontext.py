"""JSON text taken apart without decoding its values, so that they stay byte for byte as they were sent.

msgspec does it fast, but refuses a lone surrogate escape (``"\\ud800"``) even in a value that it only skips.
JSON allows it and so does kvnode, in a value; such texts take a slower way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import msgspec


class Item(NamedTuple):
    """A key with its value.

    Attributes:
        key: 1 to 4,096 bytes in UTF-8.
        value: JSON text, UTF-8.
    """

    key: str
    value: bytes


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    value: msgspec.Raw


_item_decoder = msgspec.json.Decoder(_Item)
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.Encoder().encode

_BLANKS = " \t\n\r"


def parse_item(text: bytes) -> Item:
    """Read ``{"key": ..., "value": ...}``, the value as the bytes that stand there.

    Raises:
        ValueError: it is not such an object; the message says why.
    """
    try:
        item = _item_decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"\\u" not in text:
            raise
        return _parse_item_slowly(text)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    # Raw is a view that would keep the whole text alive.
    return Item(item.key, bytes(item.value))


def check_json(text: bytes) -> bytes:
    """The one JSON value in `text`, as it stands there without the blanks around it.

    Raises:
        ValueError: there is none, or more than one; the message says why.
    """
    try:
        return bytes(_raw_decoder.decode(text))
    except msgspec.DecodeError:
        if b"\\u" not in text:
            raise
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    decoded = text.decode("utf-8")
    start = _skip_blanks(decoded, 0)
    _, stop = _scan(decoded, start)
    if _skip_blanks(decoded, stop) != len(decoded):
        raise ValueError("JSON is malformed: more than one value")
    return decoded[start:stop].encode("utf-8")


def to_json(value: object) -> bytes:
    """`value` as JSON text without blanks.

    Raises:
        UnicodeEncodeError: a string in it holds a lone surrogate, which UTF-8 cannot carry.
    """
    return _encode(value)


def item_text(key: str, value: bytes) -> bytes:
    """``{"key":...,"value":...}`` with `value`, which is JSON text, put in as it is.

    Raises:
        UnicodeEncodeError: `key` holds a lone surrogate.
    """
    return b'{"key":%b,"value":%b}' % (_encode(key), value)


def as_plain_text(value: bytes) -> bytes:
    """How to show `value` to a person: a string as its characters in UTF-8, anything else as it was sent.

    A string with a lone surrogate has no UTF-8 form and is shown as it was sent, too.
    """
    if not value.startswith(b'"'):
        return value
    try:
        return msgspec.json.decode(value, type=str).encode("utf-8")
    except ValueError:
        return value


def split_object(text: bytes) -> dict[str, bytes]:
    """The members of a JSON object: each name with its value's text, which may be any JSON, as it stands there.

    Raises:
        ValueError: it is not an object; the message says why.
    """
    try:
        return {name: bytes(value) for name, value in _object_decoder.decode(text).items()}
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"\\u" not in text:
            raise
        return dict(_split_slowly(text, "{}"))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def split_array(text: bytes) -> list[bytes]:
    """The texts of the elements of a JSON array, which may be any JSON, as they stand there.

    Raises:
        ValueError: it is not an array; the message says why.
    """
    try:
        return list(map(bytes, _array_decoder.decode(text)))
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"\\u" not in text:
            raise
        return [value for _, value in _split_slowly(text, "[]")]
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _parse_item_slowly(text: bytes) -> Item:
    members = dict(_split_slowly(text, "{}"))
    for name in ("key", "value"):
        if name not in members:
            raise ValueError(f"Object missing required field `{name}`")
    for name in members:
        if name not in ("key", "value"):
            raise ValueError(f"Object contains unknown field {name!a}")
    return Item(msgspec.json.decode(members["key"], type=str), members["value"])


def _split_slowly(text: bytes, brackets: str) -> Iterator[tuple[str, bytes]]:
    """Yield the values of an object ("{}") with their names, or of an array ("[]") with empty ones."""
    opening, closing = brackets[0], brackets[1]
    document = text.decode("utf-8")
    at = _skip_blanks(document, _expect(document, 0, opening))
    more = document[at : at + 1] != closing
    while more:
        name = ""
        if opening == "{":
            _expect(document, at, '"')
            name, at = _scan(document, _skip_blanks(document, at))
            at = _expect(document, at, ":")
        at = _skip_blanks(document, at)
        _, stop = _scan(document, at)
        yield name, document[at:stop].encode("utf-8")
        at = _skip_blanks(document, stop)
        more = document[at : at + 1] == ","
        at += more
    if _skip_blanks(document, _expect(document, at, closing)) != len(document):
        raise ValueError("JSON is malformed: something follows its end")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON is malformed: {name} is not JSON")


def _keep_text(number: str) -> str:
    # Only the number's extent is of interest; and int() refuses more than 4,300 digits.
    return number


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_keep_text, parse_float=_keep_text)


def _scan(document: str, start: int) -> tuple[Any, int]:
    """Decode the value that begins at `start`; return it and where it ends."""
    try:
        return _decoder.raw_decode(document, start)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _skip_blanks(document: str, at: int) -> int:
    while document[at : at + 1] and document[at] in _BLANKS:
        at += 1
    return at


def _expect(document: str, at: int, character: str) -> int:
    at = _skip_blanks(document, at)
    if document[at : at + 1] != character:
        raise ValueError(f"JSON is malformed: expected {character} (character {at})")
    return at + 1
