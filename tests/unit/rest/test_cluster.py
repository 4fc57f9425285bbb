"""POST /cluster/promote and /cluster/forget: what they take, and how what the cluster says is answered."""

import json
from typing import Any

import pytest

from kvnode.node.errors import (
    AlreadyPrimary,
    LogFailed,
    MemberConnected,
    MemberNotFound,
    NotPrimary,
    PromotionRefused,
    Syncing,
)
from support.rest_rig import RestRig

PROMOTE, FORGET = "/cluster/promote", "/cluster/forget"

#: What a promotion answers.
PROMOTED = {
    "status": "OK",
    "name": "n2",
    "epoch": "4.00000001",
    "last_seq": 7,
    "members": [{"name": "n2", "address": "127.0.0.1:7002", "reachable": True, "role": "replica"}],
}


class Decisions:
    """What the node was asked, and what it answers.

    Attributes:
        asked: in order.
        error: raised, if set.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None

    async def promote(self, *, force: bool) -> dict[str, Any]:
        self.asked.append(force)
        if self.error is not None:
            raise self.error
        return PROMOTED

    async def forget(self, name: str) -> None:
        self.asked.append(name)
        if self.error is not None:
            raise self.error


@pytest.fixture
def decisions(rig: RestRig) -> Decisions:
    """Of the node behind the front."""
    made = Decisions()
    rig.node.promote = made.promote  # type: ignore[attr-defined]
    rig.node.forget = made.forget  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    ("body", "force"),
    [
        (None, False),
        (b"", False),
        (b" \r\n", False),
        (b"{}", False),
        (b'{"force":false}', False),
        (b'{"force": true}', True),
    ],
)
async def test_promote(rig: RestRig, decisions: Decisions, body: bytes | None, force: bool) -> None:
    answer = await rig.ask("POST", PROMOTE, body)
    assert (answer.status, answer.json) == (200, PROMOTED)
    assert decisions.asked == [force]


async def test_forget(rig: RestRig, decisions: Decisions) -> None:
    answer = await rig.ask("POST", FORGET, b'{"name":"n\\u0033"}', Content_Type="text/plain")
    assert (answer.status, answer.json) == (200, {"status": "OK", "name": "n3"})
    assert decisions.asked == ["n3"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (PROMOTE, b"{", "invalid_json"),
        (PROMOTE, b"\xff", "invalid_json"),
        (PROMOTE, b"[" * 100_000, "invalid_request"),
        (PROMOTE, b"null", "invalid_request"),
        (PROMOTE, b"[]", "invalid_request"),
        (PROMOTE, b'{"force":1}', "invalid_request"),
        (PROMOTE, b'{"force":"true"}', "invalid_request"),
        (PROMOTE, b'{"forced":true}', "invalid_request"),
        (FORGET, b"", "invalid_json"),
        (FORGET, b"{}", "invalid_request"),
        (FORGET, b'{"name":3}', "invalid_request"),
        (FORGET, b'{"name":null}', "invalid_request"),
        (FORGET, b'{"name":"n3","force":true}', "invalid_request"),
        (FORGET, b'"n3"', "invalid_request"),
        (FORGET, b'{"name":"\\ud800"}', "invalid_json"),
    ],
)
async def test_a_body_that_is_not_understood_decides_nothing(
    rig: RestRig, decisions: Decisions, path: str, body: bytes, code: str
) -> None:
    answer = await rig.ask("POST", path, body)
    assert (answer.status, answer.error["code"]) == (400, code)
    assert decisions.asked == []


@pytest.mark.parametrize("path", [PROMOTE, FORGET])
async def test_parameters_are_refused(rig: RestRig, decisions: Decisions, path: str) -> None:
    answer = await rig.ask("POST", f"{path}?force=true", b'{"name":"n3"}')
    assert (answer.status, answer.error["code"], answer.error["field"]) == (400, "invalid_request", "force")
    assert decisions.asked == []


@pytest.mark.parametrize("path", [PROMOTE, FORGET])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_only_post_decides(rig: RestRig, decisions: Decisions, path: str, method: str) -> None:
    answer = await rig.ask(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert decisions.asked == []


@pytest.mark.parametrize("path", ["/cluster", "/cluster/", "/cluster/promote/", "/cluster/join"])
async def test_there_are_no_other_routes(rig: RestRig, path: str) -> None:
    answer = await rig.ask("POST", path, b"{}")
    assert (answer.status, answer.error["code"]) == (404, "route_not_found")


@pytest.mark.parametrize(
    ("error", "status", "members"),
    [
        (AlreadyPrimary("n1 is the primary", name="n1"), 409, {"code": "already_primary", "name": "n1"}),
        (
            PromotionRefused("n3 is ahead", hint="promote n3", reason="member_ahead", members=[{"name": "n3"}]),
            409,
            {
                "code": "promotion_refused",
                "reason": "member_ahead",
                "members": [{"name": "n3"}],
                "hint": "promote n3",
            },
        ),
        (Syncing("not finished"), 503, {"code": "syncing"}),
        (NotPrimary("n2 is a replica"), 503, {"code": "not_primary"}),
        (MemberNotFound("n9", ["n1", "n2"]), 404, {"code": "member_not_found", "name": "n9"}),
        (MemberConnected("n2"), 409, {"code": "member_connected", "name": "n2", "hint": "stop that node first"}),
    ],
)
@pytest.mark.parametrize("path", [PROMOTE, FORGET])
async def test_a_refusal_is_answered_with_all_that_it_says(
    rig: RestRig, decisions: Decisions, path: str, error: Any, status: int, members: dict[str, Any]
) -> None:
    decisions.error = error
    answer = await rig.ask("POST", path, b'{"name":"n3"}' if path == FORGET else None)
    assert (answer.status, answer.error) == (status, {"message": error.message, **members})
    assert ("retry-after" in answer.headers) is (status == 503)


async def test_a_disk_that_fails_is_the_nodes_own_trouble(rig: RestRig, decisions: Decisions) -> None:
    decisions.error = LogFailed("the log failed")
    answer = await rig.ask("POST", PROMOTE)
    assert (answer.status, answer.error["code"], answer.error["cause"]) == (500, "internal", "log_failed")
    rig.log.events.clear()


async def test_the_connection_stays_usable(rig: RestRig, decisions: Decisions) -> None:
    async with rig.connect() as wire:
        assert (await wire.ask("POST", PROMOTE)).status == 200
        decisions.error = AlreadyPrimary("n2 is the primary")
        assert (await wire.ask("POST", PROMOTE)).status == 409
        decisions.error = None
        assert (await wire.ask("POST", FORGET, json.dumps({"name": "n3"}).encode())).status == 200
