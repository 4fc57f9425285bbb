"""The commands with several nodes in --url or KVNODE_URL, and with one that cannot do it now."""

import json
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvnode.cli import client
from kvnode.cli.__main__ import main
from support.stub_server import Answer, StubServer

Kvnode = Callable[..., Result]


@pytest.fixture
def dead() -> str:
    """The URL of a node that does not run."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_the_next_node_is_asked_where_one_does_not_answer(kvnode: Kvnode, stub: StubServer, dead: str) -> None:
    nodes = ["--url", f"{dead}, {stub.url}"]
    assert kvnode("put", "k", "v", *nodes).stdout == "OK\n"
    assert kvnode("get", "k", *nodes).stdout == "v\n"
    assert kvnode("range", *nodes).stdout == 'k\t"v"\n'
    assert kvnode("dump", *nodes).stdout == '{"key":"k","value":"v"}\n'
    assert kvnode("delete", "k", *nodes).stdout == "deleted\n"
    shown = kvnode("status", *nodes)
    assert shown.exit_code == 0
    assert stub.url in shown.stdout
    assert dead not in shown.stdout
    stub.members = [{"name": "n2"}]
    assert kvnode("forget", "n2", *nodes).stdout == "n2 is no longer a member\n"


def test_they_can_be_in_the_variable(stub: StubServer, dead: str) -> None:
    runner = CliRunner(env={"KVNODE_URL": f"{dead},{stub.url}"})
    assert runner.invoke(main, ["put", "k", "v"], catch_exceptions=False).stdout == "OK\n"


def test_a_load_goes_to_the_next_node(kvnode: Kvnode, stub: StubServer, dead: str, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = b"".join(b'{"key":"%03d","value":%d}\n' % (number, number) for number in range(50))
    path.write_bytes(lines)
    result = kvnode("load", str(path), "--batch", "10", "--json", "--url", f"{dead},{stub.url}")
    assert json.loads(result.stdout)["acknowledged"] == len(stub.records) == 50
    assert json.loads(result.stdout)["retries"] == 0


def test_when_no_node_answers_each_is_named(kvnode: Kvnode, stub: StubServer, dead: str) -> None:
    stub.faults["/put"].append(Answer(503, "no_primary", retry_after=1))
    result = kvnode("put", "k", "v", "--url", f"{dead},{stub.url}")
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == (
        f"error: none of 2 nodes could do it: {dead}: cannot connect to {dead}: Connection refused (unreachable); "
        f"{stub.url}: told to answer no_primary (no_primary) (no_node_available)"
    )
    assert "kvnode promote" in hint


@pytest.mark.parametrize("code", ["no_primary", "overloaded", "draining"])
@pytest.mark.parametrize("command", [("put", "k", "v"), ("get", "k"), ("delete", "k"), ("range",)])
def test_a_single_node_that_cannot_do_it_now_is_asked_once(
    kvnode: Kvnode, stub: StubServer, command: tuple[str, ...], code: str
) -> None:
    for route in ("/put", "/read", "/delete", "/readrange"):
        stub.faults[route].append(Answer(503, code))
    result = kvnode(*command)
    assert result.exit_code == 1
    assert f"({code})" in result.stderr
    assert len(stub.requests) == 1


@pytest.mark.parametrize("urls", ["http://a:1,", "http://a:1,ftp://b", ","])
def test_a_list_with_a_url_that_is_none_is_wrong_usage(kvnode: Kvnode, urls: str) -> None:
    result = kvnode("get", "k", "--url", urls)
    assert result.exit_code == 2
    assert "--url" in result.stderr


@pytest.mark.parametrize("command", [["promote"], ["status", "--watch"]], ids=lambda command: command[0])
def test_what_is_about_one_node_wants_one(kvnode: Kvnode, stub: StubServer, dead: str, command: list[str]) -> None:
    result = kvnode(*command, "--url", f"{dead},{stub.url}")
    assert result.exit_code == 2
    assert "about one node" in result.stderr
    assert not stub.requests


def test_no_command_speaks_http_but_by_the_client() -> None:
    root = Path(client.__file__).parent.parent
    users = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(name in path.read_text("utf-8") for name in ("import aiohttp", "urllib.request", "http.client"))
    }
    assert users == {"client/transport.py"}
