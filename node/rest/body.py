"""JSON request bodies to operations: validated once, with every value kept as the bytes it arrived as.

msgspec does the work: a member of type Raw is checked for syntax but not decoded, and comes out as exactly its bytes,
without the white space around it. Two gaps of its check are closed here:

- It does not look whether the strings inside a Raw are UTF-8. So a body that is not ASCII is decoded as a whole first.
- It refuses the escape of a lone surrogate (``"\\ud800"``) anywhere. RFC 8259 allows it, and a value is to stay as it
  was sent. When it refuses a body that has escapes of surrogates, the body is *veiled* and tried again: each of them is
  turned into another escape behind a byte that no UTF-8 has. That changes neither what is a string nor where it ends,
  and nobody minds the byte inside a Raw, see above. What comes out is unveiled. Keys are then decoded on their own, so
  that a lone surrogate in one is refused.

All of this takes time in proportion to the body, with no step in Python for an escape: a body of nothing but surrogates
must not keep the event loop for seconds.

A member that is given twice counts as the last one says, as in most decoders; RFC 8259 calls it unpredictable. Inside
values nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import repeat
from typing import NoReturn, TypeVar

import msgspec

from kvnode.node.errors import InvalidJson, InvalidRequest, TooLarge
from kvnode.protocol.types import OP_PUT, Delete, Put, delete, new_tuple, put


class _PutBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: str
    value: msgspec.Raw


class _DeleteBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: str


class _VeiledPutBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: msgspec.Raw
    value: msgspec.Raw


class _VeiledDeleteBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: msgspec.Raw


_PUT = msgspec.json.Decoder(_PutBody)
_BATCH = msgspec.json.Decoder(list[_PutBody])
_DELETE = msgspec.json.Decoder(_DeleteBody)
_VEILED_PUT = msgspec.json.Decoder(_VeiledPutBody)
_VEILED_BATCH = msgspec.json.Decoder(list[_VeiledPutBody])
_VEILED_DELETE = msgspec.json.Decoder(_VeiledDeleteBody)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_KEY = msgspec.json.Decoder(str)

_T = TypeVar("_T")

#: Texts and what veils them, which cannot be in UTF-8. Escaped backslashes come first: each ``\\u`` that is left then
#: begins an escape. Those from U+D000 to U+DFFF are all surrogates, and some more which it does no harm to veil.
_VEILS = ((b"\\\\", b"\xff\xff"), (b"\\ud", b"\xfe\\u0"), (b"\\uD", b"\xfd\\u0"))

_VEILED_IN_NAME = re.compile("[\udcfd\udcfe](.)", re.DOTALL)
_OFFSET = re.compile(r" \(byte [0-9]+\)$")
_SMALLEST_ITEM_BYTES = len('{"key":"k","value":1},')
_BOM = b"\xef\xbb\xbf"
# msgspec's complaints. Of a field that is missing or unknown, with the path of its object unless that is the body
# itself; and of a type, with the path of the value. A field's name may have anything in it.
_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(.*)`", re.DOTALL)
_ITEMS_FIELD = re.compile(rf"{_FIELD.pattern} - at `(\$\[[0-9]+\])`", re.DOTALL)
_TYPE_AT = re.compile(r"Expected .* - at `\$\.?(.*)`")
#: How much of a client's text an error message repeats.
_SHOWN_CHARS = 200


def decode_put(body: bytes) -> tuple[str, Put]:
    """The key as text, and the operation, of a body ``{"key", "value"}``.

    Raises:
        InvalidJson: it is not JSON.
        InvalidRequest: it is not of that form; says where.
    """
    decoded = _decode(body, _PUT)
    if decoded is None:
        veiled = _decode_veiled(body, _VEILED_PUT)
        key = _unveil_key(veiled.key, "key")
        return key, put(_encode_key(key, "key"), _unveil(bytes(veiled.value)))
    key = decoded.key
    return key, put(_encode_key(key, "key"), bytes(decoded.value))


def decode_batch(body: bytes, max_items: int) -> Sequence[Put]:
    """The operations of a body ``[{"key", "value"}, ...]``, in its order, at least one.

    Raises:
        InvalidJson: it is not JSON.
        InvalidRequest: it is not of that form; says where, ``$[0]`` being the first item.
        TooLarge: it has more items than `max_items`.
    """
    if len(body) > max_items * _SMALLEST_ITEM_BYTES:
        # So many could be in it. To count them is cheap beside decoding far too many.
        items = _decode(body, _ITEMS)
        count = len(_decode_veiled(body, _ITEMS) if items is None else items)
        if count > max_items:
            raise TooLarge("max_batch_items", max_items, count)
    decoded = _decode(body, _BATCH)
    if decoded is None:
        veiled = _decode_veiled(body, _VEILED_BATCH)
        ops = []
        for index, item in enumerate(veiled):
            field = f"$[{index}].key"
            ops.append(put(_encode_key(_unveil_key(item.key, field), field), _unveil(bytes(item.value))))
    else:
        keys = [item.key.encode() for item in decoded]
        if not all(keys):
            raise _empty_key(f"$[{keys.index(b'')}].key")
        values = [bytes(item.value) for item in decoded]
        ops = list(map(new_tuple, repeat(Put), zip(repeat(OP_PUT), keys, repeat(0), values)))
    if not ops:
        raise InvalidRequest(None, "a batch needs at least one item")
    return ops


def decode_delete(body: bytes) -> tuple[str, Delete]:
    """The key as text, and the operation, of a body ``{"key"}``.

    Raises:
        InvalidJson: it is not JSON.
        InvalidRequest: it is not of that form; says where.
    """
    decoded = _decode(body, _DELETE)
    key = _unveil_key(_decode_veiled(body, _VEILED_DELETE).key, "key") if decoded is None else decoded.key
    return key, delete(_encode_key(key, "key"))


def check_value(value: bytes) -> None:
    """Check a value that did not come in a body: that it is one JSON text, with no white space around it.

    Raises:
        InvalidJson, InvalidRequest: it is not.
    """
    _, op = decode_put(b'{"key":"k","value":%b}' % value)
    if op.value != value:
        # What looks like one member from inside the object may be several.
        raise InvalidJson("a value must be exactly one JSON text")


def _decode(body: bytes, decoder: msgspec.json.Decoder[_T]) -> _T | None:
    """What a body holds; None when it has to be veiled first."""
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidJson(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _raise_invalid(body, str(error))
    except msgspec.DecodeError as error:
        if b"\\ud" in body or b"\\uD" in body:
            return None
        raise _malformed(body, str(error)) from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None


def _decode_veiled(body: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    try:
        return decoder.decode(_veil(body))
    except msgspec.ValidationError as error:
        _raise_invalid(body, str(error))
    except msgspec.DecodeError as error:
        # An offset would be one in the veiled body.
        raise _malformed(body, _OFFSET.sub("", str(error))) from None
    except UnicodeDecodeError as error:
        # Keys and values are not decoded here: it is the name of a member, and no member that we know has such a name.
        _raise_invalid(b"", f"Object contains unknown field `{_unveil_name(error.object)}`")
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None


def _veil(body: bytes) -> bytes:
    """A body of the same structure in which no surrogate is escaped."""
    for text, veil in _VEILS:
        body = body.replace(text, veil)
    return body


def _unveil(veiled: bytes) -> bytes:
    for text, veil in _VEILS:
        veiled = veiled.replace(veil, text)
    return veiled


def _unveil_name(decoded: bytes) -> str:
    """A member's name as people can read it, from its veiled form in which escapes are decoded already."""
    text = decoded.decode("utf-8", "surrogateescape").replace("\udcff\udcff", "\\")
    return _VEILED_IN_NAME.sub(lambda match: f"\\ud{ord(match[1]):03x}", text)


def _unveil_key(key: msgspec.Raw, field: str) -> str:
    try:
        return _KEY.decode(_unveil(bytes(key)))
    except msgspec.ValidationError as error:
        raise InvalidRequest(field, f"{error} - at `{field}`") from None
    except msgspec.DecodeError:
        # Its syntax was found right, so this can only be what the veil was for.
        raise InvalidRequest(field, f"{field}: a key must not have a lone surrogate") from None


def _encode_key(key: str, field: str) -> bytes:
    if not key:
        raise _empty_key(field)
    return key.encode()


def _empty_key(field: str) -> InvalidRequest:
    return InvalidRequest(field, f"{field} must not be empty")


def _malformed(body: bytes, reason: str) -> InvalidJson:
    if not body.strip(b" \t\n\r"):
        return InvalidJson("the body is empty, expected JSON")
    if body.startswith(_BOM):
        return InvalidJson("the body begins with a byte order mark, which JSON does not allow")
    return InvalidJson(reason)


def _raise_invalid(body: bytes, message: str) -> NoReturn:
    """Raise msgspec's complaint as ours, with the field it is about."""
    field: str | None = None
    if body.lstrip(b" \t\n\r").startswith(b"["):
        if match := _ITEMS_FIELD.fullmatch(message):
            field = f"{match[2]}.{match[1]}"
    elif match := _FIELD.fullmatch(message):
        field = match[1]
    if field is None and (match := _TYPE_AT.fullmatch(message)):
        field = match[1] if not match[1].startswith("[") else f"${match[1]}"
    shown = message if len(message) <= _SHOWN_CHARS else f"{message[:_SHOWN_CHARS]}..."
    raise InvalidRequest(None if field is None else field[:_SHOWN_CHARS], shown) from None
