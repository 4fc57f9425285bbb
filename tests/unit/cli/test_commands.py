"""The commands as a user calls them: output, exit codes, and what is said when something goes wrong."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import SECTIONS, main
from support.stub_server import EPOCH, Answer, Cut, CutStream, Say, StubServer

Kvnode = Callable[..., Result]

COMMANDS = [name for commands in SECTIONS.values() for name in commands]


def error_of(result: Result) -> dict[str, object]:
    """The one error that a command with --json reported."""
    error: dict[str, object] = json.loads(result.stderr)["error"]
    return error


# ---- the overview ----------------------------------------------------------------------------------------------


def test_help_shows_every_command_in_its_section() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for title, commands in SECTIONS.items():
        assert f"\n{title}:\n" in result.stdout
        for name, listed in commands.items():
            assert any(line.split() == [name, *listed.summary.split()] for line in result.stdout.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_begins_with_its_summary_and_ends_with_examples(name: str) -> None:
    (listed,) = [commands[name] for commands in SECTIONS.values() if name in commands]
    result = CliRunner().invoke(main, [name, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].strip() == listed.summary
    assert f"Examples:\n    kvnode {name}" in result.stdout


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout == f"kvnode, version {version('kvnode')}\n"


@pytest.mark.parametrize("arguments", [["nope"], ["get"], ["get", "a", "b"], ["get", "a", "--nope"], []])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_an_overview_imports_no_command() -> None:
    code = (
        "import sys; from kvnode.cli.__main__ import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    loaded = set(output.stdout.splitlines()[-1].split())
    assert "kvnode.cli.__main__" in loaded
    assert not {name for name in loaded if name.startswith("kvnode.cli.commands.")}
    assert loaded.isdisjoint({"aiohttp", "asyncio", "rich", "plyvel", "kvnode.node.service"})


# ---- put and get -----------------------------------------------------------------------------------------------


def test_a_value_is_a_string_unless_told_otherwise(kvnode: Kvnode, stub: StubServer) -> None:
    assert kvnode("put", "a", "42").stdout == "OK\n"
    assert kvnode("put", "b", "-j", " 42.0 ").stdout == "OK\n"
    assert kvnode("put", "--json-value", "c", '{"n": 12345678901234567890, "s": "\\ud800"}').stdout == "OK\n"
    assert kvnode("put", "--", "d", "-5").stdout == "OK\n"
    assert kvnode("put", "e", "").stdout == "OK\n"
    assert stub.values() == {
        "a": '"42"',
        "b": "42.0",
        "c": '{"n": 12345678901234567890, "s": "\\ud800"}',
        "d": '"-5"',
        "e": '""',
    }


def test_a_value_can_come_from_a_file_or_the_standard_input(kvnode: Kvnode, stub: StubServer, tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes('ü\n"'.encode())
    assert kvnode("put", "a", "--file", str(path)).exit_code == 0
    assert kvnode("put", "b", "-", input='ü\n"'.encode()).exit_code == 0
    path.write_bytes(b'\n{"x": 1.0}\n')
    assert kvnode("put", "c", "-j", "-f", str(path)).exit_code == 0
    assert kvnode("put", "d", "-j", "-", input=b"[1]\n").exit_code == 0
    assert stub.values() == {"a": '"ü\\n\\""', "b": '"ü\\n\\""', "c": '{"x": 1.0}', "d": "[1]"}


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["a"], b"", "either VALUE or --file"),
        (["a", "1", "-f", __file__], b"", "either VALUE or --file"),
        (["a", "-f", "/nonexistent"], b"", "does not exist"),
        (["a", "-j", "{"], b"", "is not JSON"),
        (["a", "-j", "1 2"], b"", "is not JSON"),
        (["a", "-j", '1, "more": 2'], b"", "is not JSON"),
        (["a", "-"], b"\xff", "not UTF-8 text: invalid start byte at byte 0"),
        (["a", "\udcff"], b"", "not UTF-8"),
        (["\udcff", "1"], b"", "it is not UTF-8"),
        (["", "1"], b"", "at least one character"),
    ],
)
def test_wrong_values_and_keys_are_usage_errors(
    kvnode: Kvnode, stub: StubServer, arguments: list[str], stdin: bytes, message: str
) -> None:
    result = kvnode("put", *arguments, input=stdin)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not stub.requests


def test_put_json(kvnode: Kvnode) -> None:
    result = kvnode("put", "ü", "1", "--json")
    assert json.loads(result.stdout) == {"status": "OK", "key": "ü", "seq": 1, "epoch": EPOCH}


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ('"hello"', "hello\n"),
        ('"two\\nlines \\u00fc"', "two\nlines ü\n"),
        ('"\\ud800"', '"\\ud800"\n'),
        ("1.0", "1.0\n"),
        ('{"a" : 12345678901234567890}', '{"a" : 12345678901234567890}\n'),
        ("null", "null\n"),
    ],
)
def test_get_prints_strings_plainly_and_all_else_untouched(
    kvnode: Kvnode, stub: StubServer, value: str, plain: str
) -> None:
    stub.records["k"] = (3, value)
    stub.seq = 7
    assert kvnode("get", "k").stdout == plain
    in_json = kvnode("get", "k", "--json").stdout
    assert in_json == f'{{"key":"k","value":{value},"version":"{EPOCH}-3","seq":7,"epoch":"{EPOCH}"}}\n'


def test_get_of_a_missing_key(kvnode: Kvnode) -> None:
    result = kvnode("get", "nope")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: no such key (key_not_found)\n")
    result = kvnode("get", "nope", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert error_of(result) == {"code": "key_not_found", "message": "no such key", "key": "nope"}


def test_delete(kvnode: Kvnode, stub: StubServer) -> None:
    stub.records.update({"a": (1, "1"), "b": (1, "1")})
    stub.seq = 1
    assert kvnode("delete", "a").stdout == "deleted\n"
    result = kvnode("delete", "b", "--json")
    assert json.loads(result.stdout) == {"key": "b", "deleted": True, "seq": 3, "epoch": EPOCH}
    assert not stub.records


def test_delete_of_a_missing_key(kvnode: Kvnode) -> None:
    result = kvnode("delete", "a")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: no such key (key_not_found)\n")
    result = kvnode("delete", "a", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout) == {"key": "a", "deleted": False, "seq": 0, "epoch": EPOCH}


# ---- range -----------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(stub: StubServer) -> StubServer:
    stub.records.update({key: (1, f'"{key.upper()}"') for key in ("a", "b/1", "b/2", "c", "ü")})
    return stub


@pytest.mark.parametrize(
    ("arguments", "keys", "more"),
    [
        ([], ["a", "b/1", "b/2", "c", "ü"], ""),
        (["--start", "b/2"], ["b/2", "c", "ü"], ""),
        (["--start", "b", "--end", "b/2"], ["b/1", "b/2"], ""),
        (["--prefix", "b/", "--reverse"], ["b/2", "b/1"], ""),
        (["--limit", "5"], ["a", "b/1", "b/2", "c", "ü"], ""),
        (["--limit", "2"], ["a", "b/1"], "more: continue with --start b/2\n"),
        (["--limit", "2", "--reverse"], ["ü", "c"], "more: continue with --end b/2\n"),
        (["--prefix", "nope"], [], ""),
    ],
)
def test_range(kvnode: Kvnode, filled: StubServer, arguments: list[str], keys: list[str], more: str) -> None:
    result = kvnode("range", *arguments)
    assert result.exit_code == 0
    assert result.stdout == "".join(f'{key}\t"{key.upper()}"\n' for key in keys)
    assert result.stderr == more


def test_range_json(kvnode: Kvnode, stub: StubServer) -> None:
    stub.records.update({"a": (1, "1.0"), "b": (1, '{"x" : "\\ud800"}'), "c": (1, "2")})
    result = kvnode("range", "--json", "--limit", "2")
    assert result.stdout == '{"key":"a","value":1.0}\n{"key":"b","value":{"x" : "\\ud800"}}\n'
    assert json.loads(result.stderr) == {"next_key": "c"}


def test_a_line_of_the_table_stays_one_line(kvnode: Kvnode, stub: StubServer) -> None:
    stub.records.update({"tab\there": (1, '{"a":\n\t1}'), "\x1b[2J\\": (1, '"\u2028"')})
    assert kvnode("range").stdout == '\\x1b[2J\\\\\t"\u2028"\ntab\\there\t{"a":  1}\n'


@pytest.mark.parametrize("limit", ["0", "-1", "x"])
def test_range_wants_a_limit_of_at_least_one(kvnode: Kvnode, limit: str) -> None:
    assert kvnode("range", "--limit", limit).exit_code == 2


def test_a_cut_range_is_an_error(kvnode: Kvnode, filled: StubServer) -> None:
    filled.faults["/readrange"].append(CutStream(2))
    result = kvnode("range")
    assert result.exit_code == 1
    assert "broke before the answer was whole (unanswered)" in result.stderr


def test_a_refused_range_says_why(kvnode: Kvnode) -> None:
    result = kvnode("range", "--start", "b", "--end", "a")
    assert (result.exit_code, result.stderr) == (1, "error: start_key is past end_key (invalid_request)\n")


# ---- status ----------------------------------------------------------------------------------------------------

STATUS = {
    "name": "n1 [red]",
    "role": "primary",
    "cluster_id": "c0ffee",
    "epoch": EPOCH,
    "last_seq": 1234567,
    "durable_seq": 1234567,
    "applied_seq": 1234566,
    "uptime_s": 90061.5,
    "version": "0.1.0",
    "wal": {"first_seq": 1, "last_seq": 1234567, "segments": 3, "bytes": 201326592},
    "cache": {"entries": 1, "bytes": 900, "hits": 3, "misses": 1},
    "replicas": [
        {
            "name": "n2",
            "address": "127.0.0.1:7002",
            "state": "streaming",
            "sent_seq": 5,
            "acked_seq": 4,
            "applied_seq": 4,
            "lag_entries": 1,
            "lag_s": 0.2,
            "retention": "reserved",
        },
        {
            "name": "n3",
            "address": "",
            "state": "disconnected",
            "sent_seq": None,
            "acked_seq": 3,
            "applied_seq": 3,
            "lag_entries": None,
            "lag_s": None,
            "retention": "lost",
        },
    ],
    "primary": None,
    "full_syncs_received": 0,
    "full_syncs_sent": 2,
}


def test_status(kvnode: Kvnode, stub: StubServer) -> None:
    stub.status = STATUS
    lines = {" ".join(line.split()) for line in kvnode("status").stdout.splitlines()}
    assert lines >= {
        f"node n1 [red] at {stub.url}",
        "role primary",
        "cluster c0ffee",
        f"epoch {EPOCH}",
        "seq last 1,234,567, durable 1,234,567, applied 1,234,566",
        "log seq 1 to 1234567, 192.0 MiB in 3 segments",
        "cache 1 entry, 900 B",
        "cache hits 3 of 4 reads (75.0%)",
        "full syncs 2 sent, 0 received",
        "up for 1 d 1 h",
        "version 0.1.0",
        "name address state sent acked applied lag retention",
        "n2 127.0.0.1:7002 streaming 5 4 4 1 (0.2 s) reserved",
        "n3 - disconnected - 3 3 - lost",
    }
    assert "FENCED" not in kvnode("status").stdout


def test_status_of_a_replica(kvnode: Kvnode, stub: StubServer) -> None:
    primary: dict[str, object] = {
        "address": "127.0.0.1:7001",
        "connected": False,
        "lag_entries": None,
        "lag_s": None,
    }
    stub.status = {"name": "n2", "role": "replica", "primary": primary, "replicas": []}
    shown = kvnode("status").stdout
    assert "primary  127.0.0.1:7001, not connected, lag unknown" in shown
    assert "last error" not in shown
    primary["error"] = {"code": "name_taken", "message": "another node is called n2"}
    assert "last error  another node is called n2 (name_taken)" in kvnode("status").stdout


def test_status_of_a_replica_in_a_full_sync(kvnode: Kvnode, stub: StubServer) -> None:
    primary = {"address": "127.0.0.1:7001", "connected": True, "lag_entries": 1234, "lag_s": 2}
    stub.status = {
        "name": "n2",
        "role": "replica",
        "primary": primary,
        "sync": {"keys": 1500, "state": "receiving"},
        "diverged": ["2.0000beef-17", "1.0000cafe-3"],
        "wal": {"first_seq": 8, "last_seq": 7, "segments": 1, "bytes": 40},
    }
    lines = {" ".join(line.split()) for line in kvnode("status").stdout.splitlines()}
    assert lines >= {
        "primary 127.0.0.1:7001, connected, 1,234 entries behind (2.0 s)",
        "full sync receiving, 1,500 keys so far",
        "log empty, the next entry is seq 8, 40 B in 1 segment",
        "diverged entries that its primary does not have are in diverged/: 2.0000beef-17, 1.0000cafe-3",
    }


def test_status_of_a_primary_that_was_replaced_says_so_first(kvnode: Kvnode, stub: StubServer) -> None:
    stub.status = {**STATUS, "fenced": "a member reigns with term [7]"}
    assert kvnode("status").stdout.splitlines()[0] == "FENCED: a member reigns with term [7]"


def test_status_leaves_out_what_the_node_does_not_send(kvnode: Kvnode, stub: StubServer) -> None:
    stub.status = {"name": "n1", "role": "primary", "replicas": [{"name": "n2", "state": "streaming"}]}
    assert [line.split() for line in kvnode("status").stdout.splitlines()] == [
        ["node", "n1", "at", stub.url],
        ["role", "primary"],
        ["replicas"],
        ["name", "state"],
        ["n2", "streaming"],
    ]


def test_status_json_is_the_nodes_own(kvnode: Kvnode, stub: StubServer) -> None:
    stub.status = STATUS
    assert kvnode("status", "--json").stdout == json.dumps(STATUS) + "\n"


# ---- when things go wrong --------------------------------------------------------------------------------------

CALLS = {
    "put": ("/put", ["put", "a", "1"]),
    "get": ("/read", ["get", "a"]),
    "delete": ("/delete", ["delete", "a"]),
    "range": ("/readrange", ["range"]),
    "dump": ("/readrange", ["dump"]),
    "status": ("/status", ["status"]),
    "promote": ("/cluster/promote", ["promote"]),
    "forget": ("/cluster/forget", ["forget", "n2"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_nobody_there(name: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    result = CliRunner().invoke(main, [*CALLS[name][1], "--url", url], catch_exceptions=False)
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == f"error: cannot connect to {url}: Connection refused (unreachable)"
    assert hint.startswith("hint: is the node running? `kvnode start`")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Answer(503, "draining", retry_after=1), "draining"),
        (Answer(500, "internal"), "internal"),
        (Cut(), "unanswered"),
        (Say(b"<html>", "text/html"), "bad_answer"),
    ],
    ids=["503", "500", "cut", "no kvnode"],
)
def test_every_failure_is_one_error_and_exit_code_1(
    kvnode: Kvnode, stub: StubServer, name: str, fault: Answer | Cut | Say, code: str
) -> None:
    route, arguments = CALLS[name]
    stub.faults[route].extend([fault] * 5)
    result = kvnode(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    error, *hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert error.endswith("(dump_incomplete)" if (name, code) == ("dump", "unanswered") else f"({code})")
    assert all(line.startswith("hint: ") for line in hint)


def test_the_time_limit_holds_while_no_name_server_answers() -> None:
    code = (
        "import socket, threading; socket.getaddrinfo = lambda *args, **more: threading.Event().wait(30);"
        "from kvnode.cli.__main__ import main; main(['get', 'x', '--url', 'http://kv.example:1', '--timeout', '0.2'])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert done.stderr.startswith("error: the address of the host of http://kv.example:1 was not found in time")
    assert "Traceback" not in done.stderr


def test_an_error_in_json_has_the_form_of_rest(kvnode: Kvnode, stub: StubServer) -> None:
    stub.faults["/put"].append(Answer(503, "overloaded", retry_after=1))
    result = kvnode("put", "a", "1", "--json")
    assert error_of(result) == {
        "code": "overloaded",
        "message": "told to answer overloaded",
        "hint": "wait a little, and have fewer requests in flight",
        "told": True,
        "maybe_written": False,
    }


@pytest.mark.parametrize(
    ("fault", "maybe_written"),
    [
        (Cut(), True),
        (Say(b"<html>", "text/html"), True),
        (Answer(504, "outcome_unknown"), True),
        (Answer(503, "draining"), False),
    ],
    ids=["cut", "no kvnode", "504", "503"],
)
@pytest.mark.parametrize("name", ["put", "delete", "promote", "forget"])
def test_a_write_that_fails_says_whether_it_may_have_happened(
    kvnode: Kvnode, stub: StubServer, name: str, fault: Cut | Say | Answer, maybe_written: bool
) -> None:
    route, arguments = CALLS[name]
    stub.faults[route].extend([fault] * 2)
    assert error_of(kvnode(*arguments, "--json"))["maybe_written"] is maybe_written
    if not isinstance(fault, Answer):
        assert "may have happened" in kvnode(*arguments).stderr.splitlines()[-1]


def test_a_read_that_fails_does_not_speak_of_writes(kvnode: Kvnode, stub: StubServer) -> None:
    stub.faults["/read"].append(Say(b"<html>", "text/html"))
    assert "maybe_written" not in error_of(kvnode("get", "a", "--json"))


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_a_time_limit_is_a_number_of_seconds(kvnode: Kvnode, stub: StubServer, seconds: str) -> None:
    result = kvnode("get", "a", "--timeout", seconds)
    assert result.exit_code == 2
    assert "--timeout" in result.stderr
    assert kvnode("status", "--watch", "--interval", seconds).exit_code == 2
    assert not stub.requests


def test_a_password_is_not_printed() -> None:
    for environment, arguments in (({}, ["--url", "http://u:s3cret@x"]), ({"KVNODE_URL": "http://u:s3cret@x:y"}, [])):
        result = CliRunner(env=environment).invoke(main, ["get", "a", *arguments])
        assert result.exit_code == 2
        assert "without a user name or password" in result.output
        assert "s3cret" not in result.output


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:y"])
def test_a_url_that_is_none_is_wrong_usage(url: str) -> None:
    result = CliRunner().invoke(main, ["get", "a", "--url", url])
    assert result.exit_code == 2
    assert "--url" in result.stderr


def test_a_reader_that_leaves_is_no_error(stub: StubServer) -> None:
    stub.records.update({f"{number:06}": (1, '"' + "x" * 1000 + '"') for number in range(5000)})
    for command in ("dump", "range"):
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "kvnode.cli", command, "--url", stub.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith((b'{"key":"000000"', b"000000\t"))
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 141
