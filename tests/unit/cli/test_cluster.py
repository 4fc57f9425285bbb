"""`promote` and `forget`: what is sent, what is shown of the members, and how a refusal reads."""

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from support.stub_server import EPOCH, Answer, StubServer

Kvnode = Callable[..., Result]

MEMBERS = [
    {
        "name": "n1",
        "address": "127.0.0.1:7001",
        "reachable": False,
        "role": None,
        "epoch": None,
        "last_seq": None,
    },
    {
        "name": "n2",
        "address": "127.0.0.1:7002",
        "reachable": True,
        "role": "replica",
        "epoch": "3.9f2c1a7b",
        "last_seq": 1234567,
    },
]

ROWS = [
    ["name", "address", "answers", "role", "epoch", "last", "seq"],
    ["n1", "127.0.0.1:7001", "no", "-", "-", "-"],
    ["n2", "127.0.0.1:7002", "yes", "replica", "3.9f2c1a7b", "1,234,567"],
]


def rows_of(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


# ---- promote -------------------------------------------------------------------------------------------------------


def test_promote_shows_the_members_and_what_happened(kvnode: Kvnode, stub: StubServer) -> None:
    stub.members = MEMBERS
    stub.seq = 1234567
    result = kvnode("promote")
    assert (result.exit_code, result.stderr) == (0, "")
    title, *rows, outcome = rows_of(result)
    assert title == ["members"]
    assert rows == ROWS
    assert " ".join(outcome) == f"stub is the primary now, in epoch {EPOCH}; its first write will be seq 1,234,568"
    assert stub.bodies("/cluster/promote") == [b'{"force":false}']


def test_a_member_of_which_only_the_address_is_known(kvnode: Kvnode, stub: StubServer) -> None:
    stub.members = [{"name": None, "address": "127.0.0.1:7003", "reachable": False, "reason": "gives no answer"}]
    result = kvnode("promote")
    assert result.exit_code == 0
    assert rows_of(result)[2] == ["-", "127.0.0.1:7003", "no:", "gives", "no", "answer", "-", "-", "-"]


def test_promote_force_is_sent(kvnode: Kvnode, stub: StubServer) -> None:
    assert kvnode("promote", "--force").exit_code == 0
    assert stub.bodies("/cluster/promote") == [b'{"force":true}']


def test_promote_json_is_the_nodes_own(kvnode: Kvnode, stub: StubServer) -> None:
    stub.members = MEMBERS
    result = kvnode("promote", "--json")
    assert json.loads(result.stdout) == {
        "status": "OK",
        "name": "stub",
        "epoch": EPOCH,
        "last_seq": 0,
        "members": MEMBERS,
    }


def test_a_refused_promotion_shows_the_members_and_names_force(kvnode: Kvnode, stub: StubServer) -> None:
    refusal = Answer(409, "promotion_refused", fields={"reason": "replica_ahead", "members": MEMBERS})
    stub.faults["/cluster/promote"].append(refusal)
    result = kvnode("promote")
    assert result.exit_code == 1
    assert rows_of(result)[1:] == ROWS
    error, hint = result.stderr.splitlines()
    assert error == "error: told to answer promotion_refused (promotion_refused)"
    assert hint.startswith("hint: `kvnode promote --force`")


def test_a_refused_promotion_prefers_the_nodes_hint(kvnode: Kvnode, stub: StubServer) -> None:
    fields = {"reason": "primary_answers", "hint": "stop it first", "members": "?"}
    stub.faults["/cluster/promote"].append(Answer(409, "promotion_refused", fields=fields))
    result = kvnode("promote")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: told to answer promotion_refused (promotion_refused)\nhint: stop it first\n"


def test_a_refused_promotion_in_json(kvnode: Kvnode, stub: StubServer) -> None:
    fields = {"reason": "primary_answers", "members": MEMBERS}
    stub.faults["/cluster/promote"].append(Answer(409, "promotion_refused", fields=fields))
    result = kvnode("promote", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["reason"], error["members"]) == ("promotion_refused", "primary_answers", MEMBERS)
    assert "--force" in error["hint"]


@pytest.mark.parametrize(("status", "code"), [(409, "already_primary"), (503, "syncing")])
def test_what_force_does_not_help_against_has_no_such_hint(
    kvnode: Kvnode, stub: StubServer, status: int, code: str
) -> None:
    stub.faults["/cluster/promote"].append(Answer(status, code))
    result = kvnode("promote")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: told to answer {code} ({code})\n")
    assert "--force" not in result.stderr


# ---- forget --------------------------------------------------------------------------------------------------------


def test_forget(kvnode: Kvnode, stub: StubServer) -> None:
    stub.members = MEMBERS
    assert kvnode("forget", "n1").stdout == "n1 is no longer a member\n"
    assert json.loads(kvnode("forget", "n2", "--json").stdout) == {"status": "OK", "name": "n2"}
    assert not stub.members
    assert stub.bodies("/cluster/forget") == [b'{"name":"n1"}', b'{"name":"n2"}']


def test_forget_of_nobody(kvnode: Kvnode) -> None:
    result = kvnode("forget", "n9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no such member (member_not_found)\n"


@pytest.mark.parametrize(("status", "code"), [(409, "member_connected"), (503, "not_primary")])
def test_a_refused_forget(kvnode: Kvnode, stub: StubServer, status: int, code: str) -> None:
    stub.faults["/cluster/forget"].append(Answer(status, code))
    result = kvnode("forget", "n1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: told to answer {code} ({code})\n")
