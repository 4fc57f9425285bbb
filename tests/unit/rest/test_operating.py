"""The operator's routes, and what is the same for all routes."""

import json

import pytest

from kvnode.node.errors import CallerError, Draining, NotCaughtUp, StorageFull, Unavailable, Unresolved
from kvnode.node.rest.errors import STATUS_OF_CODE, Internal, answerable, error_body
from kvnode.protocol.errors import KvError
from support.rest_rig import RestRig

GET_ROUTES = ["/read/k", "/readrange", "/status", "/health", "/ready", "/primary", "/metrics"]
POST_ROUTES = ["/put", "/batchput", "/delete"]


async def test_status(rig: RestRig) -> None:
    answer = await rig.ask("GET", "/status")
    assert (answer.status, answer.json) == (200, rig.node.status())


async def test_metrics(rig: RestRig) -> None:
    answer = await rig.ask("GET", "/metrics", Accept="text/x")
    assert answer.status == 200
    assert rig.node.accepts == ["text/x"]
    assert (answer.headers["content-type"], answer.body) == await rig.node.render_metrics("")


async def test_health_is_about_the_process_alone(rig: RestRig) -> None:
    rig.node.ready_error = Draining("stopping")
    answer = await rig.ask("GET", "/health")
    assert (answer.status, answer.json) == (200, {"status": "OK"})


@pytest.mark.parametrize(("query", "lag"), [("", None), ("?max_lag=0", 0), ("?max_lag=10", 10)])
async def test_ready(rig: RestRig, query: str, lag: int | None) -> None:
    answer = await rig.ask("GET", f"/ready{query}")
    assert (answer.status, answer.json) == (200, {"status": "OK"})
    assert rig.node.lags == [lag]
    rig.node.ready_error = NotCaughtUp("lag is 11", lag=11)
    answer = await rig.ask("GET", f"/ready{query}")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.error == {"code": "not_caught_up", "message": "lag is 11", "lag": 11}


async def test_roles(rig: RestRig) -> None:
    assert (await rig.ask("GET", "/primary")).status == 200
    answer = await rig.ask("GET", "/replica")
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "not_replica", "1")
    rig.node.role = "replica"
    rig.node.lags.clear()
    assert (await rig.ask("GET", "/replica?max_lag=5")).status == 200
    assert rig.node.lags == [5]
    answer = await rig.ask("GET", "/primary")
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "not_primary", "1")


@pytest.mark.parametrize(("path", "role"), [("/primary", "primary"), ("/replica", "replica")])
async def test_a_node_that_is_not_ready_gets_no_traffic_for_its_role(rig: RestRig, path: str, role: str) -> None:
    rig.node.role = role
    rig.node.ready_error = Draining("stopping")
    answer = await rig.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (503, "draining")


@pytest.mark.parametrize("path", ["/status", "/health", "/ready", "/primary", "/replica", "/metrics"])
@pytest.mark.parametrize("query", ["x=1", "min_seq=1", "max_lag=1&max_lag=1"])
async def test_unknown_parameters_are_named(rig: RestRig, path: str, query: str) -> None:
    rig.node.role = "replica" if path == "/replica" else "primary"
    answer = await rig.ask("GET", f"{path}?{query}")
    assert answer.status == 400
    assert (answer.error["code"], answer.error["field"]) == ("invalid_request", query.partition("=")[0])


@pytest.mark.parametrize("path", ["/ready", "/replica"])
async def test_bad_lag(rig: RestRig, path: str) -> None:
    answer = await rig.ask("GET", f"{path}?max_lag=-1")
    assert (answer.status, answer.error["field"]) == (400, "max_lag")


@pytest.mark.parametrize("path", GET_ROUTES)
async def test_head_works_wherever_get_does(rig: RestRig, path: str) -> None:
    await rig.put("k", b"1")
    async with rig.connect() as wire:
        got = await wire.ask("GET", path)
        head = await wire.ask("HEAD", path)
        assert got.status == head.status == 200
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
        assert int(head.headers["content-length"]) == len(got.body)
        assert (await wire.ask("GET", "/health")).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", [*GET_ROUTES, "/replica"])
async def test_reading_routes_allow_get_and_head(rig: RestRig, path: str, method: str) -> None:
    answer = await rig.ask(method, path, b"{}")
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert (answer.error["code"], answer.error["allow"]) == ("method_not_allowed", ["GET", "HEAD"])


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", POST_ROUTES)
async def test_writing_routes_allow_post(rig: RestRig, path: str, method: str) -> None:
    answer = await rig.ask(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        assert (answer.error["code"], answer.error["allow"]) == ("method_not_allowed", ["POST"])


@pytest.mark.parametrize(
    "target", ["/x", "/read", "/put/", "/PUT", "/readrange/", "//put", "/reading/k", '/stat"us', "/%70ut"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_unknown_routes(rig: RestRig, target: str, method: str) -> None:
    answer = await rig.ask(method, target)
    assert (answer.status, answer.error["code"]) == (404, "route_not_found")


async def test_options_for_the_whole_server_is_no_route(rig: RestRig) -> None:
    answer = await rig.ask("OPTIONS", "*")
    assert (answer.status, answer.error["code"]) == (404, "route_not_found")


async def test_an_unknown_route_is_repeated_in_part_only(rig: RestRig) -> None:
    answer = await rig.ask("GET", f"/{'x' * 10_000}")
    assert answer.status == 404
    assert len(answer.body) < 300


@pytest.mark.parametrize("path", POST_ROUTES)
async def test_an_answer_before_the_body_was_read_leaves_the_connection_usable_if_the_body_came(
    rig: RestRig, path: str
) -> None:
    async with rig.connect() as wire:
        for target, status in (("/nowhere", 404), ("/health", 405), (f"{path}?x=1", 400)):
            answer = await wire.ask("POST", target, b"x" * 100)
            assert answer.status == status
            assert "connection" not in answer.headers


def every_subclass(kind: type[KvError]) -> list[type[KvError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in every_subclass(child))]


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        (CallerError, {400, 403, 404, 405, 409, 413}),
        (Unavailable, {503}),
        (Unresolved, {504}),
        (StorageFull, {507}),
        (Internal, {500}),
    ],
)
def test_every_code_that_a_client_can_get_has_its_status(kind: type[KvError], statuses: set[int]) -> None:
    codes = {each.code for each in every_subclass(kind) if "code" in vars(each)}
    assert codes
    assert {STATUS_OF_CODE[code] for code in codes} == statuses


def test_every_code_with_a_status_is_some_errors() -> None:
    assert set(STATUS_OF_CODE) == {each.code for each in every_subclass(KvError)} & set(STATUS_OF_CODE)


def test_other_errors_are_internal() -> None:
    known = (CallerError, Unavailable, Unresolved, StorageFull, Internal)
    others = [each for each in every_subclass(KvError) if not issubclass(each, known)]
    assert len(others) > 5
    for kind in others:
        error = kind.__new__(kind)
        KvError.__init__(error, "text", hint="do this")
        seen = answerable(error)
        assert (seen.code, seen.message, seen.hint, seen.fields) == (
            "internal",
            "text",
            "do this",
            {"cause": kind.code},
        )
    assert answerable(ValueError("secret")).code == "internal"
    assert "secret" not in answerable(ValueError("secret")).message


def test_error_bodies() -> None:
    error = Unavailable("no", hint="wait", path="x")
    error.fields["odd"] = {1, 2}.__class__
    assert json.loads(error_body(error))["error"] == {
        "code": "internal",
        "message": "no",
        "path": "x",
        "odd": "<class 'set'>",
        "hint": "wait",
    }
    assert json.loads(error_body(Internal("\udcff")))["error"]["message"] == "'\\udcff'"
