"""Targets, keys and query parameters, decoded."""

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvnode.node.api import Acks, KeyRange, ReadToken
from kvnode.node.errors import InvalidRequest, TooLarge
from kvnode.node.rest.params import (
    LAG_PARAMETERS,
    NO_PARAMETERS,
    RANGE_PARAMETERS,
    READ_PARAMETERS,
    WRITE_PARAMETERS,
    decode_key,
    origin_form,
    parse_acks,
    parse_max_lag,
    parse_query,
    parse_range,
    parse_read_token,
)
from kvnode.protocol.types import Epoch

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT)
@example("/")
@example("..")
@example("a/../b")
@example("100%")
@example("%41")
@example("a+b c?d#e&f=g")
@example("\x00\n")
def test_key_comes_back_from_its_percent_encoding(key: str) -> None:
    assert decode_key(quote(key, safe=""), "key", 1 << 20) == key.encode()
    assert decode_key(quote(key, safe="/"), "key", 1 << 20) == key.encode()
    assert decode_key("".join(f"%{byte:02x}" for byte in key.encode()), "key", 1 << 20) == key.encode()


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("a/b", b"a/b"),
        ("a%2Fb", b"a/b"),
        ("a%2fb", b"a/b"),
        ("/", b"/"),
        ("a+b", b"a+b"),
        ("a%3Fb", b"a?b"),
        ("%252F", b"%2F"),
        ("%2525", b"%25"),
        ("..", b".."),
        ("./x/../y", b"./x/../y"),
        ("a//b/", b"a//b/"),
        ("%C3%A9", "é".encode()),
        ("%00", b"\x00"),
        ("\udcc3\udca9", "é".encode()),
        (":;@!$&'()*,=~_-.{}|^`", b":;@!$&'()*,=~_-.{}|^`"),
    ],
)
def test_escapes_are_decoded_once_and_nothing_else_is_touched(sent: str, key: bytes) -> None:
    assert decode_key(sent, "key", 4096) == key


@pytest.mark.parametrize(
    "sent", ["", "%", "%4", "a%", "%zz", "%%41", "%u0041", "%C3", "%FF", "%ED%A0%80", "%C0%AF", "\udcff", "% 1"]
)
def test_what_is_no_key_is_refused_by_name(sent: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_key(sent, "key", 4096)
    assert caught.value.fields == {"field": "key"}


def test_keys_are_measured_in_decoded_bytes() -> None:
    assert decode_key("%C3%A9%C3%A9", "key", 4) == "éé".encode()
    with pytest.raises(TooLarge) as caught:
        decode_key("%C3%A9%C3%A9a", "key", 4)
    assert caught.value.fields == {"limit": "max_key_bytes", "max": 4, "sent": 5}


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        ("/read/a?b=c", "/read/a?b=c"),
        ("http://host/read/a?b=c", "/read/a?b=c"),
        ("HTTP://user@host:5001/read/a", "/read/a"),
        ("http://host", "/"),
        ("http://host?a=b", "/?a=b"),
        ("//host/read/a", "//host/read/a"),
        ("/read/http://x/y", "/read/http://x/y"),
        ("*", "*"),
        ("host:443", "host:443"),
    ],
)
def test_targets_may_be_whole_urls(target: str, origin: str) -> None:
    assert origin_form(target) == origin


@pytest.mark.parametrize("target", ["/read/a#b", "http://host/#", "http://host#x"])
def test_fragments_are_refused(target: str) -> None:
    with pytest.raises(InvalidRequest, match="%23"):
        origin_form(target)


@given(TEXT)
def test_query_values_come_back_from_their_encoding(text: str) -> None:
    for sent in (quote(text, safe=""), quote(text, safe=" ").replace(" ", "+")):
        assert parse_query(f"start_key={sent}", RANGE_PARAMETERS) == {"start_key": text}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", {}),
        ("&&", {}),
        ("limit=1&&reverse=true&", {"limit": "1", "reverse": "true"}),
        ("limit", {"limit": ""}),
        ("start_key=a=b", {"start_key": "a=b"}),
        ("start_key=a+b", {"start_key": "a b"}),
        ("start_key=a%2Bb", {"start_key": "a+b"}),
        ("start%5fkey=a", {"start_key": "a"}),
        ("start_key=?/", {"start_key": "?/"}),
    ],
)
def test_query_is_read_as_a_form(text: str, query: dict[str, str]) -> None:
    assert parse_query(text, RANGE_PARAMETERS) == query


@pytest.mark.parametrize(
    ("text", "known", "field"),
    [
        ("limits=1", RANGE_PARAMETERS, "limits"),
        ("LIMIT=1", RANGE_PARAMETERS, "LIMIT"),
        ("=1", RANGE_PARAMETERS, ""),
        ("limit=1&limit=1", RANGE_PARAMETERS, "limit"),
        ("limit=1&l%69mit=2", RANGE_PARAMETERS, "limit"),
        ("start_key=%", RANGE_PARAMETERS, "start_key"),
        ("start_key=%FF", RANGE_PARAMETERS, "start_key"),
        ("%FF=1", RANGE_PARAMETERS, "query"),
        ("a=1", NO_PARAMETERS, "a"),
        (f"{'a' * 1000}=1", NO_PARAMETERS, "a" * 100),
        ("\n%0a=1", NO_PARAMETERS, "\n\n"),
    ],
)
def test_unknown_repeated_and_broken_parameters_are_named(text: str, known: frozenset[str], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_query(text, known)
    assert caught.value.fields == {"field": field}
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("", None),
        ("min_seq=0", ReadToken(0)),
        ("min_seq=18446744073709551615", ReadToken(2**64 - 1)),
        ("min_seq=7&wait=0", ReadToken(7, None, 0.0)),
        ("min_seq=7&wait=2.5", ReadToken(7, None, 2.5)),
        ("min_seq=7&wait=3600", ReadToken(7, None, 3600.0)),
        ("min_seq=7&wait=0.30000000000000004", ReadToken(7, None, 0.1 + 0.2)),
        ("min_seq=7&wait=1e-07", ReadToken(7, None, 1e-7)),
        ("min_seq=7&wait=2.2250738585072014E-308", ReadToken(7, None, 2.2250738585072014e-308)),
        ("min_seq=7&wait=3.6e%2B3", ReadToken(7, None, 3600.0)),
        ("min_seq=7&epoch=3.9f2c1a7b", ReadToken(7, Epoch.of(3, 0x9F2C1A7B), 1.0)),
    ],
)
def test_read_tokens(text: str, token: ReadToken | None) -> None:
    assert parse_read_token(parse_query(text, READ_PARAMETERS)) == token


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("min_seq=", "min_seq"),
        ("min_seq=-1", "min_seq"),
        ("min_seq=1.0", "min_seq"),
        ("min_seq=%D9%A1", "min_seq"),
        ("min_seq=18446744073709551616", "min_seq"),
        (f"min_seq={'1' * 5000}", "min_seq"),
        ("min_seq=1&epoch=3", "epoch"),
        ("min_seq=1&epoch=", "epoch"),
        ("min_seq=1&epoch=4294967296.00000000", "epoch"),
        ("min_seq=1&wait=", "wait"),
        ("min_seq=1&wait=.5", "wait"),
        ("min_seq=1&wait=1e", "wait"),
        ("min_seq=1&wait=3.601e3", "wait"),
        ("min_seq=1&wait=1e999", "wait"),
        ("min_seq=1&wait=1_0", "wait"),
        ("min_seq=1&wait=inf", "wait"),
        ("min_seq=1&wait=3600.001", "wait"),
        ("epoch=3.9f2c1a7b", "epoch"),
        ("wait=1", "wait"),
    ],
)
def test_bad_read_tokens_are_named(text: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_read_token(parse_query(text, READ_PARAMETERS))
    assert caught.value.fields == {"field": field}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", KeyRange()),
        ("start_key=a", KeyRange(b"a")),
        ("end_key=b", KeyRange(None, b"b")),
        ("start_key=a&end_key=a", KeyRange(b"a", b"a")),
        ("start_key=a&end_key=b&reverse=true&limit=1", KeyRange(b"a", b"b", b"", 1, True)),
        ("reverse=false", KeyRange()),
        ("limit=18446744073709551615", KeyRange(limit=2**64 - 1)),
        ("prefix=ab", KeyRange(prefix=b"ab")),
        ("prefix=ab&start_key=ab", KeyRange(b"ab", None, b"ab")),
        ("prefix=ab&start_key=abc&limit=5", KeyRange(b"abc", None, b"ab", 5)),
        ("prefix=ab&end_key=abc&reverse=true", KeyRange(None, b"abc", b"ab", None, True)),
        # Byte order: U+FF5E is EF BD 9E, U+1F600 is F0 9F 98 80. In UTF-16 they would be the other way round.
        ("start_key=%EF%BD%9E&end_key=%F0%9F%98%80", KeyRange("\uff5e".encode(), "\U0001f600".encode())),
    ],
)
def test_ranges(text: str, wanted: KeyRange) -> None:
    assert parse_range(parse_query(text, RANGE_PARAMETERS), 4096) == wanted


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("start_key=b&end_key=a", "start_key"),
        ("start_key=b&end_key=a&reverse=true", "start_key"),
        ("start_key=%F0%9F%98%80&end_key=%EF%BD%9E", "start_key"),
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=18446744073709551616", "limit"),
        ("reverse=1", "reverse"),
        ("reverse=True", "reverse"),
        ("reverse=", "reverse"),
        ("start_key=", "start_key"),
        ("end_key=", "end_key"),
        ("prefix=", "prefix"),
        ("prefix=a&end_key=ab", "end_key"),
        ("prefix=a&start_key=ab&end_key=ac", "end_key"),
        ("prefix=a&start_key=ab&reverse=true", "start_key"),
        ("prefix=a&end_key=ab&reverse=false", "end_key"),
        ("prefix=ab&start_key=a", "start_key"),
        ("prefix=ab&start_key=b", "start_key"),
        ("prefix=ab&end_key=a&reverse=true", "end_key"),
    ],
)
def test_bad_ranges_are_named(text: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_range(parse_query(text, RANGE_PARAMETERS), 4096)
    assert caught.value.fields == {"field": field}


@pytest.mark.parametrize("name", ["start_key", "end_key", "prefix"])
def test_range_bounds_have_the_limit_of_keys(name: str) -> None:
    parse_range({name: "abcd"}, 4)
    with pytest.raises(TooLarge) as caught:
        parse_range({name: "abcde"}, 4)
    assert caught.value.fields == {"limit": "max_key_bytes", "max": 4, "sent": 5}


def test_acks_and_lag() -> None:
    assert parse_acks({}) is None
    assert parse_acks(parse_query("acks=3&ack_timeout=0.5", WRITE_PARAMETERS)) == Acks(3, 0.5)
    assert parse_acks(parse_query("acks=majority", WRITE_PARAMETERS)) == Acks(None, 5.0)
    assert parse_acks(parse_query("acks=4294967295", WRITE_PARAMETERS)) == Acks(4294967295, 5.0)
    assert parse_max_lag({}) is None
    assert parse_max_lag(parse_query("max_lag=0", LAG_PARAMETERS)) == 0
    with pytest.raises(InvalidRequest) as caught:
        parse_max_lag({"max_lag": "x"})
    assert caught.value.fields == {"field": "max_lag"}
