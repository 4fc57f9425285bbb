"""Bodies to operations, against the standard library's decoder as the reference of what is JSON."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvnode.node.errors import InvalidJson, InvalidRequest, TooLarge
from kvnode.node.rest.body import decode_batch, decode_delete, decode_put
from kvnode.protocol.errors import KvError
from kvnode.protocol.types import delete, put

batch = functools.partial(decode_batch, max_items=1000)


def is_json(text: bytes) -> bool:
    """Whether the standard library takes it, without its extensions."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        # Numbers are not converted: the reference's limit of digits is not the format's.
        json.loads(text.decode("utf-8"), parse_constant=refuse, parse_int=len, parse_float=len)
    except (ValueError, RecursionError):
        return False
    return True


# Pieces of strings that are about escapes, and about what looks like one.
CODES = ["d800", "D83D", "dbff", "DC00", "dE00", "dfff", "e000", "E000", "E000d800", "0041", "0000", "FFFD", "d7ff"]
PIECES = st.one_of(
    st.sampled_from([f"\\u{code}" for code in CODES]),
    st.sampled_from([f"\\\\u{code}" for code in CODES]),
    st.sampled_from(["\\\\", "\\n", '\\"', "\\/", "d800", "u", "ue000", "\ue000", "\ud7ff", "😀", "é", " "]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=3),
)
STRINGS = st.lists(PIECES, max_size=8).map(lambda pieces: f'"{"".join(pieces)}"')
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["1.0", "-0", "-0.0", "1E5", "1e+05", "0.10", "12345678901234567890123456789", "1e999"]),
)
SPACE = st.text(" \t\n\r", max_size=2)


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    items = st.tuples(SPACE, inner, SPACE).map("".join)
    members = st.tuples(SPACE, STRINGS, SPACE, st.just(":"), items).map("".join)
    return st.one_of(
        st.lists(items, min_size=1, max_size=3).map(lambda texts: f"[{','.join(texts)}]"),
        st.lists(members, min_size=1, max_size=3).map(lambda texts: f"{{{','.join(texts)}}}"),
        st.tuples(st.sampled_from(["[]", "{}"]), SPACE).map(lambda pair: pair[0][0] + pair[1] + pair[0][1]),
    )


SCALARS = st.one_of(STRINGS, NUMBERS, st.sampled_from(["null", "true", "false"]))
VALUES = st.recursive(SCALARS, _containers, max_leaves=8)


def has_lone_surrogate(key_text: str) -> bool:
    key: str = json.loads(key_text)
    try:
        key.encode()
    except UnicodeEncodeError:
        return True
    return False


@given(STRINGS, VALUES, SPACE)
@example('"k"', '"\\ud800"', "")
@example('"k"', '"\\\\ud800"', "")
@example('"k"', '"\\\\\\ud800\\\\"', "")
@example('"k"', '"\\ud800\\ue000\\ue000d800\\udc00"', "")
@example('"\\ue000d800"', '"\\ud800"', "")
@example('"\\ud83d\\ude00"', '"\\ude00"', "")
@example('"\\ude00\\ud83d"', "1", "")
@settings(max_examples=500)
def test_put_gives_the_value_as_it_was_sent(key_text: str, value: str, space: str) -> None:
    body = f'{space}{{"key"{space}:{space}{key_text}{space},"value"{space}:{space}{value}{space}}}{space}'.encode()
    key = json.loads(key_text)
    if not key or has_lone_surrogate(key_text):
        with pytest.raises(InvalidRequest) as caught:
            decode_put(body)
        assert caught.value.fields == {"field": "key"}
        return
    assert decode_put(body) == (key, put(key.encode(), value.encode()))


@given(st.lists(st.tuples(STRINGS, VALUES), min_size=1, max_size=4), SPACE)
@settings(max_examples=300)
def test_batch_gives_the_values_as_they_were_sent(items: list[tuple[str, str]], space: str) -> None:
    texts = [f'{space}{{"value":{value},"key":{key}}}{space}' for key, value in items]
    body = f"[{','.join(texts)}]".encode()
    bad = [index for index, (key, _) in enumerate(items) if not json.loads(key) or has_lone_surrogate(key)]
    if bad:
        with pytest.raises(InvalidRequest) as caught:
            batch(body)
        assert caught.value.fields["field"] in {f"$[{index}].key" for index in bad}
        return
    assert batch(body) == [put(json.loads(key).encode(), value.encode()) for key, value in items]


DAMAGE = st.sampled_from([b"", b'"', b"\\", b"u", b"d8", b"\x00", b"\xff", b"{", b"]", b",", b"1", b" "])
MUTATIONS = st.lists(st.tuples(st.integers(0, 10_000), DAMAGE), min_size=1, max_size=3)


@given(VALUES, MUTATIONS)
@settings(max_examples=500)
def test_damaged_bodies_are_taken_exactly_if_they_are_json(value: str, mutations: list[tuple[int, bytes]]) -> None:
    """Only the value's text is damaged; whatever the standard library then takes as the whole body is a put of it."""
    text = value.encode()
    for place, replacement in mutations:
        at = place % (len(text) + 1)
        text = text[:at] + replacement + text[at + 1 :]
    body = b'{"key":"k","value":' + text + b"}"
    try:
        _, op = decode_put(body)
    except InvalidJson:
        assert not is_json(body)
    except InvalidRequest:
        # The damage closed the string or the object early, and made other members.
        assert not is_json(text)
    else:
        assert is_json(body)
        if is_json(text):
            assert op.value == text.strip(b" \t\n\r")


@given(st.binary(max_size=40))
@settings(max_examples=500)
def test_garbage_is_refused_as_a_clients_mistake(body: bytes) -> None:
    for decode in (decode_put, batch, decode_delete):
        with pytest.raises((InvalidJson, InvalidRequest)):
            decode(body)


# What RFC 8259 has no production for, and some that only looks like it.
# fmt: off
NO_JSON = [
    "NaN", "Infinity", "-Infinity", "nan", "01", "-01", "00", "1.", ".5", "-.5", "+1", "1e", "1e+", "1.e5",
    "0x10", "1_0", "-", "--1", "1 2", "tru", "True", "nul", "None", "'a'", "a", "", "/**/1", "1//",
    "[1,]", "[,1]", "[1 2]", "[", "]", "[1}", '{"a":1,}', '{"a"}', '{"a":}', "{1:2}", "{", '{"a":1]',
    '{"a":1 "b":2}', '"', '"\\"', '"\\x"', '"\\a"', '"\\u12"', '"\\u12g4"', '"\\uD8"', '"\\ud8zz"',
    '"\x00"', '"\n"', '"\t"', '"\x1f"', "\x0b1", "\x0c1", "\xa01", "\ufeff1",
    '"\\ud800', '["\\ud800"', '"\\ud800\n"', '"\\ud800",', '"\\ud800" "\\ud800"', "\\ud800", '"\\ud800"\\u0041',
]
# fmt: on


@pytest.mark.parametrize("value", NO_JSON)
def test_what_is_no_json_is_refused(value: str) -> None:
    assert not is_json(value.encode())
    with pytest.raises(InvalidJson):
        decode_put(b'{"key":"k","value":' + value.encode() + b"}")
    with pytest.raises(InvalidJson):
        batch(b'[{"key":"k","value":' + value.encode() + b"}]")


# fmt: off
UNUSUAL_JSON = [
    "1.0", "-0", "1e999999", "1" * 10_000, "0." + "1" * 10_000, "null", "[]", '{"a":1,"a":2}', '""', '"\x7f"',
    '"\\/"', '"\\ud800"', '"\\udc00\\ud800"', '{"\\ud800":"\\udc00"}', '["\\uD83D\\uDE00","\\ud83d"]',
    '"\\ue000d800\\ud800"', "[" * 100 + "]" * 100,
]
# fmt: on


@pytest.mark.parametrize("value", UNUSUAL_JSON, ids=lambda value: value[:30])
def test_unusual_json_is_taken_and_kept(value: str) -> None:
    assert is_json(value.encode())
    assert decode_put(b'{"key":"k","value": ' + value.encode() + b" }")[1].value == value.encode()
    assert batch(b'[{"key":"k","value": ' + value.encode() + b" }]")[0].value == value.encode()


@pytest.mark.parametrize(
    "encoded", [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe9", b"\x80"]
)
@pytest.mark.parametrize("body", [b'{"key":"k","value":"%b"}', b'{"key":"%b","value":1}', b'{"%b":1}', b'"%b"', b"%b"])
def test_what_is_no_utf_8_is_refused_anywhere(encoded: bytes, body: bytes) -> None:
    for decode in (decode_put, batch, decode_delete):
        with pytest.raises(InvalidJson, match="UTF-8"):
            decode(body % encoded)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(InvalidJson):
        decode_put('{"key":"ké","value":1}'.encode(encoding))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("surrogate", ["", '"\\ud800",'])
@pytest.mark.parametrize("ending", [True, False])
def test_absurd_nesting_is_refused(opening: str, surrogate: str, ending: bool) -> None:
    depth = 200_000
    closing = ("]" if opening == "[" else "}") * depth if ending else ""
    value = f"[{surrogate}{opening * depth}1{closing}]"
    with pytest.raises(InvalidJson):
        decode_put(f'{{"key":"k","value":{value}}}'.encode())


def test_escapes_of_the_keys_name_are_its_name() -> None:
    assert decode_put(b'{"\\u006bey":"k","value":1}') == ("k", put(b"k", b"1"))


def test_a_repeated_member_counts_as_the_last_one_says() -> None:
    assert decode_put(b'{"key":"a","value":1,"key":"b","value":2}') == ("b", put(b"b", b"2"))
    assert decode_put(b'{"key":"\\ud800","value":1,"key":"b","value":"\\ud800"}') == ("b", put(b"b", b'"\\ud800"'))


@pytest.mark.parametrize(
    ("key", "is_taken"), [("\\u0000", True), ("\ue000d800", True), ("\\ue000d800", True), ("\\ud800", False)]
)
@pytest.mark.parametrize("value", ["1", '"\\ud800"'])
def test_keys_are_decoded_alike_whether_or_not_the_value_has_a_lone_surrogate(
    key: str, is_taken: bool, value: str
) -> None:
    for body, decode in (
        (f'{{"key":"{key}","value":{value}}}', lambda body: decode_put(body)[1].key),
        (f'[{{"key":"{key}","value":{value}}}]', lambda body: batch(body)[0].key),
    ):
        if is_taken:
            assert decode(body.encode()) == json.loads(f'"{key}"').encode()
        else:
            with pytest.raises(InvalidRequest, match="lone surrogate"):
                decode(body.encode())


def test_delete() -> None:
    assert decode_delete(b' {"key" : "a/\\u00e9"} ') == ("a/é", delete("a/é".encode()))
    for body in (b"{}", b'{"key":""}', b'{"key":"\\ud800"}', b'{"key":null}', b'{"key":["\\ud800"]}'):
        with pytest.raises(InvalidRequest) as caught:
            decode_delete(body)
        assert caught.value.fields == {"field": "key"}


@pytest.mark.parametrize(
    ("decode", "body", "field"),
    [
        (decode_put, '{"key":"k","value":1,"%s":1}', "%s"),
        (batch, '[{"key":"k","value":1,"%s":1}]', "$[0].%s"),
        (decode_delete, '{"key":"k","%s":1}', "%s"),
    ],
)
@pytest.mark.parametrize("name", ["ttl", "", "k" * 10_000, "a`b", "x` - at `$[7].y"])
def test_unknown_members_are_named(decode: Callable[[bytes], Any], body: str, field: str, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode((body % name).encode())
    assert caught.value.fields == {"field": (field % name)[:200]}
    assert len(caught.value.message) < 300
    # It can be told to the client.
    caught.value.fields["field"].encode()
    caught.value.message.encode()


@pytest.mark.parametrize("name", ["\\ud800", "\\uD83D\\ude00", "key\\udfff", "\\ud7ff", "key\\\\"])
def test_unknown_members_with_odd_names_are_named(name: str) -> None:
    for decode, body in (
        (decode_put, f'{{"key":"k","value":"\\ud800","{name}":1}}'),
        (batch, f'[{{"key":"k","value":"\\ud800","{name}":1}}]'),
        (decode_delete, f'{{"{name}":1,"key":"\\ud800"}}'),
    ):
        with pytest.raises(InvalidRequest, match="unknown field") as caught:
            decode(body.encode())
        # Nearly as sent, or decoded where it could be.
        assert caught.value.fields["field"] in (name.lower(), json.loads(f'"{name}"'))


@pytest.mark.parametrize("value", ["1", '"\\ud800"'])
def test_a_batch_at_its_limit_and_one_past(value: str) -> None:
    body = ",".join([f'{{"key":"k","value":{value}}}'] * 10)
    assert len(decode_batch(f"[{body}]".encode(), 10)) == 10
    with pytest.raises(TooLarge) as caught:
        decode_batch(f"[{body}]".encode(), 9)
    assert caught.value.fields == {"limit": "max_batch_items", "max": 9, "sent": 10}


def test_offsets_are_told_where_they_are_right() -> None:
    with pytest.raises(InvalidJson, match=r"\(byte 19\)"):
        decode_put(b'{"key":"k","value":x}')
    for value in (b'["\\ud800",x]', b'"\\ud80x"'):
        with pytest.raises(InvalidJson) as caught:
            decode_put(b'{"key":"k","value":' + value + b"}")
        assert "byte" not in caught.value.message


def test_numbers_are_never_converted() -> None:
    assert math.isinf(json.loads("1e999"))
    assert decode_put(b'{"key":"k","value":1e999}')[1].value == b"1e999"


@given(st.binary(max_size=200))
def test_every_error_can_be_told(body: bytes) -> None:
    try:
        decode_put(b'{"key":"k","value":1,"' + body + b'":1}')
    except KvError as error:
        error.message.encode()
