"""What the front counts of requests: under which route, with which status and code, and for how long."""

import pytest

from kvnode.node.errors import Overloaded, RecordDamaged
from kvnode.node.metrics import RouteCounters
from kvnode.node.rest.routes import template_of
from support.rest_rig import MakeRig, RestRig


def counted(rig: RestRig) -> dict[str, RouteCounters]:
    """The routes that were asked for, by their templates."""
    return {template_of(path): route for path, route in rig.front.counters.routes.items() if any(route.counts)}


async def test_a_request_is_counted_under_its_route_and_not_its_path(rig: RestRig) -> None:
    await rig.put("a", b"1")
    for target in ("/read/a", "/read/a?min_seq=0", "/read/%61"):
        assert (await rig.ask("GET", target)).status == 200
    assert (await rig.ask("HEAD", "/read/a")).status == 200
    assert (await rig.ask("GET", "/read/a/b")).status == 404
    routes = counted(rig)
    assert {name: sum(route.counts) for name, route in routes.items()} == {"/put": 1, "/read/{key}": 5}
    assert routes["/read/{key}"].statuses == {404: 1}
    assert routes["/read/{key}"].errors == {"key_not_found": 1}
    assert 0 < routes["/put"].seconds < 60


@pytest.mark.parametrize("target", ["/", "/docs", "/health", "/metrics", "/status"])
async def test_routes_are_told_apart(rig: RestRig, target: str) -> None:
    assert (await rig.ask("GET", target)).status == 200
    assert list(counted(rig)) == [target]


async def test_no_path_makes_a_label(rig: RestRig) -> None:
    for target in ("/read", "/reads/x", "/no/such", "//", "/put/x", "/readrange/"):
        assert (await rig.ask("GET", target)).status in (400, 404)
    (name, route), *others = counted(rig).items()
    assert (name, others, sum(route.counts)) == ("none", [], 6)
    assert sum(route.errors.values()) == 6


async def test_errors_are_counted_by_status_and_code(rig: RestRig) -> None:
    assert (await rig.ask("POST", "/put", b"{")).status == 400
    assert (await rig.ask("DELETE", "/put")).status == 405
    rig.store.write_error = Overloaded("too much", limit="x", max=1, queued=1, sent=1)
    for _ in range(2):
        assert (await rig.ask("POST", "/put", b'{"key":"a","value":1}')).status == 503
    route = counted(rig)["/put"]
    assert route.statuses == {400: 1, 405: 1, 503: 2}
    assert route.errors == {"invalid_json": 1, "method_not_allowed": 1, "overloaded": 2}


async def test_what_has_not_changed_is_no_error(rig: RestRig) -> None:
    await rig.put("a", b"1")
    etag = (await rig.ask("GET", "/read/a")).headers["etag"]
    assert (await rig.ask("GET", "/read/a", If_None_Match=etag)).status == 304
    route = counted(rig)["/read/{key}"]
    assert (route.statuses, route.errors) == ({304: 1}, {})


async def test_what_is_no_http_is_counted_apart(rig: RestRig) -> None:
    async with rig.connect() as wire:
        wire.send(b"GET\r\n\r\n")
        assert (await wire.answer()).status == 400
    assert rig.front.counters.malformed == 1
    assert counted(rig) == {}


async def test_an_answer_that_breaks_off_was_one(make_rig: MakeRig) -> None:
    rig = await make_rig()
    for number in range(30):
        await rig.put(f"{number}", b'"%b"' % (b"x" * 10_000))
    rig.store.range_chunk_items = 1
    rig.store.range_error, rig.store.range_error_after = RecordDamaged("checksum"), 20
    async with rig.connect() as wire:
        wire.request("GET", "/readrange")
        with pytest.raises(ConnectionResetError):
            await wire.read_to_end()
    assert rig.front.counters.broken == 1
    route = counted(rig)["/readrange"]
    assert (sum(route.counts), route.statuses) == (1, {})
