"""JSON taken apart without touching the values, on both of its ways."""

from collections.abc import Callable

import pytest

from kvnode.cli.jsontext import Item, as_plain_text, check_json, item_text, parse_item, split_array, split_object

# Each pair: an object, and what it holds. The lone surrogates need the slow way.
GOOD = [
    (b'{"key":"a","value":1.0}', Item("a", b"1.0")),
    (b'{"value":12345678901234567890,"key":"a"}', Item("a", b"12345678901234567890")),
    (b' {"key" : "a" , "value" : { "b" : [ ] } } \r', Item("a", b'{ "b" : [ ] }')),
    ('{"key":"ü/\U0001f600","value":"\u2028"}'.encode(), Item("ü/\U0001f600", '"\u2028"'.encode())),
    (b'{"key":"\\u00fc\\ud83d\\ude00","value":"\\u00FC"}', Item("ü\U0001f600", b'"\\u00FC"')),
    (b'{"key":"a","value":"\\ud800"}', Item("a", b'"\\ud800"')),
    (b'{"key":"a","value":"\\udc00\\ud800 and more"}', Item("a", b'"\\udc00\\ud800 and more"')),
    (b' { "value" : [1.0 , "\\ud800"] , "key" : "a" } ', Item("a", b'[1.0 , "\\ud800"]')),
    (b'{"key":"value","value":{"value":"\\ud800"}}', Item("value", b'{"value":"\\ud800"}')),
    (b'{"key":"a","value":["\\ud800",1' + b"0" * 5000 + b"]}", Item("a", b'["\\ud800",1' + b"0" * 5000 + b"]")),
]

BAD = [
    b"",
    b"bad",
    b"[1]",
    b'"key"',
    b'{"key":"a"}',
    b'{"value":1}',
    b'{"key":1,"value":1}',
    b'{"key":"a","value":1,"more":2}',
    b'{"key":"a","value":NaN}',
    b'{"key":"a","value":01}',
    b'{"key":"a","value":1}}',
    b'{"key":"a","value":1',
    b'{"key":"a","value":"\xff\\u0041',
    b'{"key":"\\ud800","value":1}',
    b'{"key":"a","value":"\\ud800"',
    b'{"key":"a","value":"\\ud800","more":2}',
    b'{"key":"a","valve":"\\ud800"}',
    b'{"value":"\\ud800"}',
    b'{"key":"a","value":"\\ud800"} x',
    b'{"key":"a","value":["\\ud800",NaN]}',
    b'{"key":"a","value":"\\ud800","key":}',
    b'{"key":["\\ud800"],"value":1}',
    b'["\\ud800"]',
    b'{"key":"a","value":"\xff\\ud800"}',
    b'{"key":"a","value":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"key":"a","value":["\\ud800",' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
]


@pytest.mark.parametrize(("text", "item"), GOOD)
def test_item_keeps_the_bytes_of_its_value(text: bytes, item: Item) -> None:
    assert parse_item(text) == item


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:40]))
def test_what_is_no_item_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_item(text)


@pytest.mark.parametrize("item", [item for _, item in GOOD])
def test_item_text_is_read_back(item: Item) -> None:
    assert parse_item(item_text(*item)) == item


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b" 1.0\n", b"1.0"),
        (b'{"a" : 1}', b'{"a" : 1}'),
        (b' "\\ud800" ', b'"\\ud800"'),
        (b'\n["\\ud800" , 1.0]\n', b'["\\ud800" , 1.0]'),
    ],
)
def test_check_json_returns_the_one_value(text: bytes, value: bytes) -> None:
    assert check_json(text) == value


@pytest.mark.parametrize(
    "text", [b"", b"  ", b"1 2", b"{", b'"\\ud800" 1', b'"\\ud800', b"Infinity", b'["\\ud800",Infinity]']
)
def test_check_json_refuses_anything_else(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_json(text)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'"plain"', b"plain"),
        (b'"\\u00fc\\n"', "ü\n".encode()),
        (b'"\\ud800"', b'"\\ud800"'),
        (b"1.0", b"1.0"),
        (b'{"a":"b"}', b'{"a":"b"}'),
    ],
)
def test_plain_text_unquotes_strings_only(value: bytes, shown: bytes) -> None:
    assert as_plain_text(value) == shown


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (b"{}", {}),
        (b" { } ", {}),
        (b'{"a":1.0,"b" : [ "x" , 2 ] }', {"a": b"1.0", "b": b'[ "x" , 2 ]'}),
        (b'{"a":"\\ud800","b" : [ 1.0 ] , "\\u00fc":{}}', {"a": b'"\\ud800"', "b": b"[ 1.0 ]", "ü": b"{}"}),
        (b'{"a":"\\ud800","a":2}', {"a": b"2"}),
        (b'{"a":1,"a":2}', {"a": b"2"}),
    ],
)
def test_split_object_returns_the_texts_of_its_members(text: bytes, members: dict[str, bytes]) -> None:
    assert split_object(text) == members


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        (b"[]", []),
        (b" [ ] ", []),
        (b'[1.0, {"a": 1} ,"x"]', [b"1.0", b'{"a": 1}', b'"x"']),
        (b'[ "\\ud800" , 1.0,[ ] ]', [b'"\\ud800"', b"1.0", b"[ ]"]),
    ],
)
def test_split_array_returns_the_texts_of_its_elements(text: bytes, elements: list[bytes]) -> None:
    assert split_array(text) == elements


@pytest.mark.parametrize("split", [split_object, split_array])
@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"1", b'"\\ud800"', b"{", b"[", b"[1,]", b'{"a":1,}', b'{"a":"\\ud800",}', b'["\\ud800",]'),
        *(b'{"a" "\\ud800"}', b'{"\\ud800"}', b"{1:2}", b'["\\ud800"] 1', b'{"a":"\\ud800"} 1', b'["\\ud800"}'),
        *(b"[" * 100_000, b'["\\ud800",' + b"[" * 100_000),
    ],
    ids=lambda text: text[:12].decode() if isinstance(text, bytes) else "",
)
def test_split_refuses_anything_else(split: Callable[[bytes], object], text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        split(text)
