"""The event log: one event a line in both forms, whatever the values are."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvnode.node.config import Address
from kvnode.node.eventlog import EventLog, open_event_log
from kvnode.protocol.types import Epoch, Position

HEAD = re.compile(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(\w+) event=(.*)")


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """The process's logger, put back after the test."""
    logger = logging.getLogger("kvnode")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def opened(log_format: str) -> tuple[EventLog, io.StringIO]:
    stream = io.StringIO()
    return open_event_log(log_format, stream), stream


def text_of(**fields: Any) -> str:
    """What the text form makes of fields."""
    events, stream = opened("text")
    events.info("happened", **fields)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    match = HEAD.fullmatch(line[:-1])
    assert match is not None
    assert match[1] == "info"
    return match[2]


def json_of(**fields: Any) -> dict[str, Any]:
    """What the JSON form makes of fields."""
    events, stream = opened("json")
    events.info("happened", **fields)
    line = stream.getvalue()
    assert line.count("\n") == 1
    line.encode("utf-8")
    decoded: dict[str, Any] = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", decoded.pop("time"))
    assert decoded.pop("level") == "info"
    assert decoded.pop("event") == "happened"
    return decoded


@pytest.mark.parametrize(
    ("value", "text", "member"),
    [
        (7, "7", 7),
        (-1, "-1", -1),
        (2**70, "1180591620717411303424", 2**70),
        (True, "true", True),
        (False, "false", False),
        (None, "-", None),
        (0.25, "0.25", 0.25),
        (1 / 3, "0.333333", 1 / 3),
        (float("nan"), "nan", None),
        (float("inf"), "inf", None),
        ("", '""', ""),
        ("plain", "plain", "plain"),
        ("a b", '"a b"', "a b"),
        ("a=b", '"a=b"', "a=b"),
        ('say "hi"', r'"say \"hi\""', 'say "hi"'),
        ("back\\slash", "back\\slash", "back\\slash"),
        ("two\nlines\r\t\x00\x1b[31m", r'"two\nlines\r\t\u0000\u001b[31m"', "two\nlines\r\t\x00\x1b[31m"),
        ("grün 🌱", '"grün 🌱"', "grün 🌱"),
        # A file name that is not UTF-8.
        ("/data/\udcff", "/data/\\udcff", "/data/\\udcff"),
        (b"\xff", r"""b'\xff'""", r"b'\xff'"),
        (Path("/data/n 1"), '"/data/n 1"', "/data/n 1"),
        (Path("/data/\udcfe"), "/data/\\udcfe", "/data/\\udcfe"),
        (Address("::1", 5001), "[::1]:5001", "[::1]:5001"),
        (Epoch.of(3, 10), "3.0000000a", "3.0000000a"),
        (Position(Epoch.of(3, 10), 42), "3.0000000a-42", "3.0000000a-42"),
        (ValueError("no"), "no", "no"),
        (["a", 1], "\"['a', 1]\"", "['a', 1]"),
        ({"a": 1}, "\"{'a': 1}\"", "{'a': 1}"),
    ],
)
def test_value_in_both_forms(value: Any, text: str, member: Any) -> None:
    assert text_of(value=value) == f"happened value={text}"
    assert json_of(value=value) == {"value": member}


def test_fields_keep_their_order_and_names() -> None:
    assert text_of(b=1, a="x y", name="n1") == 'happened b=1 a="x y" name=n1'
    assert list(json_of(b=1, a="x y", name="n1")) == ["b", "a", "name"]
    assert text_of() == "happened"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_levels(log_format: str) -> None:
    events, stream = opened(log_format)
    events.info("a")
    events.warning("b")
    events.error("c")
    lines = stream.getvalue().splitlines()
    if log_format == "json":
        found = [(each["level"], each["event"]) for each in map(json.loads, lines)]
    else:
        found = [match.group(1, 2) for line in lines if (match := HEAD.fullmatch(line))]
    assert found == [("info", "a"), ("warning", "b"), ("error", "c")]


def raised() -> Exception:
    try:
        raise ValueError("broken \udcff")
    except ValueError as error:
        return error


def test_traceback_follows_in_text() -> None:
    events, stream = opened("text")
    events.error("failed", raised(), code="internal")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("level=error event=failed code=internal")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1].startswith("ValueError: broken ")


def test_traceback_is_a_member_in_json() -> None:
    events, stream = opened("json")
    events.error("failed", raised(), code="internal")
    (line,) = stream.getvalue().splitlines()
    decoded = json.loads(line)
    assert decoded["code"] == "internal"
    assert decoded["traceback"].startswith("Traceback (most recent call last):")
    assert decoded["traceback"].endswith("ValueError: broken \\udcff")


def test_expected_failures_have_no_traceback() -> None:
    events, stream = opened("json")
    events.error("refused", code="x")
    assert "traceback" not in json.loads(stream.getvalue())


def test_opening_again_replaces_the_stream_and_the_form(logger: logging.Logger) -> None:
    _, first = opened("text")
    events, second = opened("json")
    events.info("once")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["event"] == "once"
    assert len(logger.handlers) == 1
    assert not logger.propagate


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    open_event_log("text").info("here", n=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("event=here n=1\n")
