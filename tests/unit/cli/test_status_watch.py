"""`status --watch`: the looks, what is shown of them, and that nothing a node sends commands the terminal."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta
from io import StringIO
from socket import create_server
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvnode.cli.client import Client
from kvnode.cli.commands.status import _view
from kvnode.cli.errors import BadAnswer, ClientError, Unreachable
from kvnode.cli.nodestatus import NodeStatus, rates_between, read_status
from kvnode.cli.printable import printable
from kvnode.cli.statusview import live_view
from kvnode.cli.watching import Look, looks
from support.stub_server import Answer, Cut, Say, StubServer

Kvnode = Callable[..., Result]

REPLICA = {
    "name": "web2",
    "address": "192.168.100.12:7002",
    "state": "streaming",
    "sent_seq": 1234567,
    "acked_seq": 1234567,
    "applied_seq": 1234567,
    "lag_entries": 0,
    "lag_s": 0.0,
    "retention": "reserved",
}


def primary_status(**changes: Any) -> dict[str, Any]:
    replicas = [REPLICA, {**REPLICA, "name": "web3", "state": "disconnected", "lag_entries": 12, "lag_s": None}]
    return {
        "name": "web1",
        "role": "primary",
        "last_seq": 1000,
        "uptime_s": 10.0,
        "cache": {"hits": 80, "misses": 20},
        "replicas": replicas,
        **changes,
    }


def rendered(fields: dict[str, Any], width: int = 80, **options: Any) -> str:
    console = Console(file=StringIO(), width=width, highlight=False, markup=False, **options)
    console.print(live_view(read_status(fields), "http://127.0.0.1:5001", None))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


# ---- rates ---------------------------------------------------------------------------------------------------------


def test_rates_are_what_happened_by_the_nodes_clock() -> None:
    before = read_status(primary_status())
    after = read_status(primary_status(last_seq=1500, uptime_s=12.5, cache={"hits": 160, "misses": 40}))
    assert rates_between(before, after) == (2.5, 200.0, 40.0, 0.8)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"uptime_s": 3.0}, None),
        ({"uptime_s": 10.0}, None),
        ({"last_seq": 900}, (1.0, None, 0.0, None)),
        ({"cache": {"hits": 1, "misses": 1}}, (1.0, 0.0, None, None)),
        ({"cache": None}, (1.0, 0.0, None, None)),
        ({}, (1.0, 0.0, 0.0, None)),
    ],
    ids=["restarted", "same moment", "another history", "another cache", "no cache", "idle"],
)
def test_rates_are_not_made_up(changes: dict[str, Any], rates: tuple[float | None, ...] | None) -> None:
    after = read_status(primary_status(**{"uptime_s": 11.0, **changes}))
    assert rates_between(read_status(primary_status()), after) == rates


def test_a_status_that_is_none_is_told_not_shown() -> None:
    with pytest.raises(BadAnswer, match="a status that cannot be read"):
        read_status({"last_seq": "many"})


# ---- the looks -----------------------------------------------------------------------------------------------------


async def test_a_node_that_goes_and_comes_back() -> None:
    async with StubServer() as stub, Client(stub.url) as client:
        stub.status = primary_status()
        stub.faults["/status"].extend([Answer(500, "internal")])
        seen: list[Look] = []
        async with aclosing(looks(client, 0.001)) as coming:
            async for look in coming:
                seen.append(look)
                if len(seen) == 2:
                    odd = Say(b"<html>", "text/html"), Say(b'{"last_seq":"x"}')
                    stub.faults["/status"].extend([Answer(503, "draining"), *odd])
                if len(seen) == 5:
                    stub.status = primary_status(uptime_s=11.0, last_seq=1010)
                if len(seen) == 6:
                    stub.status = primary_status(uptime_s=12.0, last_seq=1040)
                if len(seen) == 7:
                    break
    assert [look.error.code if look.error else None for look in seen] == [
        "internal",
        None,
        "draining",
        "bad_answer",
        "bad_answer",
        None,
        None,
    ]
    assert [look.status is None for look in seen] == [True] + [False] * 6
    # While it does not answer, the time of the first of those looks stands, and what it said before.
    assert len({look.silent_since for look in seen[2:5]}) == 1
    assert {look.status for look in seen[1:5]} == {read_status(primary_status())}
    # The pause is no time to count rates over.
    assert seen[5].rates is None
    assert seen[6].rates is not None
    assert seen[6].rates.writes_per_s == 30.0


async def test_a_node_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.cli.watching._PATIENCE_S", 0.05)
    with closing(create_server(("127.0.0.1", 0))) as mute:
        client = Client(f"http://127.0.0.1:{mute.getsockname()[1]}")
        async with client, aclosing(looks(client, 0.01)) as coming:
            look = await anext(coming)
    assert look.error is not None
    assert "no answer came within" in look.error.message


def test_in_json_it_is_the_nodes_object_and_one_member_more() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    look = Look(when=when, status=NodeStatus(), fields={"name": "n", "new": [1]})
    watch: dict[str, Any] = {"time": "2026-01-02T03:04:05.678Z", "reachable": True}
    assert look.to_json() == {"name": "n", "new": [1], "watch": watch}
    lost = Look(when=when, status=NodeStatus(), fields={"name": "n"}, error=BadAnswer("odd"), silent_since=when)
    watch = {"time": watch["time"], "reachable": False, "since": watch["time"]}
    assert lost.to_json() == {"watch": {**watch, "error": {"code": "bad_answer", "message": "odd"}}}


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_states_have_colours_and_are_words_without() -> None:
    coloured = rendered(primary_status(), force_terminal=True, color_system="standard")
    assert "\x1b[32mstreaming" in coloured
    assert "\x1b[1;31mdisconnected" in coloured
    grey = rendered(primary_status(), force_terminal=True, no_color=True)
    assert "\x1b[3" not in grey.replace("\x1b[3mreplicas", "")
    assert "streaming" in grey
    assert "disconnected" in grey


@pytest.mark.parametrize("width", [200, 80, 60, 50, 40, 30])
def test_where_there_is_no_room_columns_go_and_lines_stay_whole(width: int) -> None:
    lines = rendered(primary_status(), width).splitlines()
    assert all(len(line) <= width for line in lines)
    for name, state in (("web2", "streaming"), ("web3", "disconnected")):
        (line,) = [line for line in lines if line.startswith(name)]
        assert state in line
    heading = next(line for line in lines if line.startswith("name"))
    assert ("sent" in heading) is (width >= 100)
    assert ("address" in heading) is (width >= 80)
    assert "lag" in heading


@pytest.mark.parametrize(
    ("error", "what"),
    [(Unreachable("refused", hint="is it there?"), "UNREACHABLE"), (BadAnswer("\x1bodd"), "NO STATUS")],
)
def test_a_node_that_does_not_answer_is_said_to_be_so_above_what_it_said_last(error: ClientError, what: str) -> None:
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    look = Look(
        when=since + timedelta(seconds=75), status=read_status(primary_status()), error=error, silent_since=since
    )
    console = Console(file=StringIO(), width=80, highlight=False, markup=False)
    console.print(_view(look, "http://127.0.0.1:5001"))
    assert isinstance(console.file, StringIO)
    first, second, *others = console.file.getvalue().splitlines()
    clock = f"{since.astimezone():%H:%M:%S}"
    assert first.strip() == f"{what}: http://127.0.0.1:5001, since {clock}, for 1 min 15 s"
    assert second.strip() == f"{printable(error.message)} ({error.code})"
    assert ("hint: is it there?" in map(str.strip, others)) is (error.hint is not None)
    assert "This is what it said last:" in map(str.strip, others)
    assert any(line.startswith("web2") for line in others)


HOSTILE = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x1b\x9b\r\n\x07[]:\u202e"), min_size=1)


@given(text=HOSTILE)
def test_what_a_node_sends_is_text_and_nothing_else(text: str) -> None:
    fields = {
        **primary_status(name=text, role=text, epoch=text, fenced=text, version=text, diverged=[text]),
        "primary": {"address": text, "error": {"code": text, "message": text}},
        "sync": {"state": text},
        "replicas": [{**REPLICA, "name": text, "state": text, "retention": text, "address": text}],
    }
    shown = rendered(fields, 120)
    assert all(char == "\n" or char.isprintable() for char in shown)


def test_the_plain_status_and_errors_are_text_as_well(kvnode: Kvnode, stub: StubServer) -> None:
    stub.status = primary_status(name="\x1b[2J", replicas=[{"name": "\x1b]0;x\x07", "state": "[red]"}])
    shown = kvnode("status").stdout
    assert "\\x1b[2J" in shown
    assert "[red]" in shown
    assert "\x1b" not in shown


# ---- as a command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--interval", "1"], ["--watch", "--interval", "0"], ["--watch", "--interval", "x"]]
)
def test_an_interval_that_makes_no_sense(kvnode: Kvnode, arguments: list[str]) -> None:
    result = kvnode("status", *arguments)
    assert result.exit_code == 2
    assert "--interval" in result.stderr


def watch(stub: StubServer, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "kvnode.cli", "status", "--watch", "--interval", "0.1", "--url", stub.url]
    return subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def test_a_line_of_json_at_each_look_until_ctrl_c(stub: StubServer) -> None:
    stub.status = primary_status()
    with watch(stub, "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        stub.faults["/status"].extend([Cut()] * 1000)
        while lines[-1]["watch"]["reachable"]:
            lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(30) == 130
    assert lines[0]["name"] == "web1"
    assert lines[-1].keys() == {"watch"}
    assert lines[-1]["watch"]["error"]["code"] == "unanswered"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_it_ends_with_whoever_reads_it(stub: StubServer, arguments: list[str]) -> None:
    stub.status = primary_status()
    with watch(stub, *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "web1" in process.stdout.readline() + process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 141


async def test_on_a_terminal_it_takes_the_screen_and_gives_it_back(stub: StubServer) -> None:
    stub.status = primary_status(name="\x1b[2Jweb1")
    master, slave = os.openpty()
    command = [sys.executable, "-P", "-m", "kvnode.cli", "status", "--watch", "--interval", "0.1", "--url", stub.url]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = await asyncio.create_subprocess_exec(*command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = await asyncio.to_thread(_read_until, master, b"disconnected")
    process.terminate()
    shown += await asyncio.to_thread(_read_until, master, b"\x1b[?1049l")
    assert await process.wait() == 128 + signal.SIGTERM
    os.close(master)
    assert shown.count(b"\x1b[?1049h") == 1
    assert b"\\x1b[2Jweb1" in shown
    assert b"\x1b[?25h" in shown, "the cursor is there again"


def _read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += os.read(fd, 65536)
    return seen
