"""Python's objects as JSON text and back, and text that is not touched."""

from typing import Any

import pytest

from kvnode.cli.client.jsonvalues import JsonText, encode_value

TEXTS = [b"1.0", b"1e400", b"-0", b'"\\ud800"', b'{"b" : 1,"b":2,"a":[ ]}', b"null", b"[1,\n2]", '"ü\u2028"'.encode()]


@pytest.mark.parametrize("text", TEXTS)
def test_json_text_is_kept(text: bytes) -> None:
    assert JsonText(text) == text
    assert JsonText(b" \n" + text + b"\t") == text
    assert JsonText(text.decode()) == text
    assert encode_value(JsonText(text)) == text


@pytest.mark.parametrize("text", [b"", b"{", b"1 2", b'1},{"key":"x","value":2', b"NaN", b"\xff", b"[" * 100_000])
def test_what_is_not_one_json_value_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        JsonText(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("hello", b'"hello"'),
        ('ü"\n', '"ü\\"\\n"'.encode()),
        ("\ud800", b'"\\ud800"'),
        ({"\ud800": 1}, b'{"\\ud800":1}'),
        (1, b"1"),
        (2**100, str(2**100).encode()),
        (1.0, b"1.0"),
        (True, b"true"),
        (None, b"null"),
        ([1, (2, "ü")], '[1,[2,"ü"]]'.encode()),
        ({"b": 1, "a": {}}, b'{"b":1,"a":{}}'),
    ],
)
def test_python_values_have_one_text(value: Any, text: bytes) -> None:
    assert encode_value(value) == text
    back = JsonText(text).decode_value()
    assert back == ([1, [2, "ü"]] if isinstance(value, list) else value)


def test_what_json_does_not_have_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for wrong in (float("nan"), float("-inf"), [float("inf")], circle):
        with pytest.raises(ValueError, match=r"."):
            encode_value(wrong)
    for wrong in (b"1", bytearray(b"1"), memoryview(b"1"), [b"1"], {1, 2}, object(), 1j, {(1, 2): 3}):
        with pytest.raises(TypeError, match=r"."):
            encode_value(wrong)  # type: ignore[arg-type]


def test_bytes_are_told_what_they_can_be() -> None:
    with pytest.raises(TypeError, match="JsonText"):
        encode_value(b"1")  # type: ignore[arg-type]


def test_what_python_cannot_read_still_has_its_text() -> None:
    digits = JsonText(b"1" * 5000)
    assert len(digits) == 5000
    with pytest.raises(ValueError, match="4300"):
        digits.decode_value()
    assert JsonText(b"1e400").decode_value() == float("inf")
    assert JsonText(b'{"a":1,"a":2}').decode_value() == {"a": 2}
