"""Pages of other sites change nothing; who is no browser is not asked."""

import pytest

from support.rest_rig import RestRig

#: Of the node, as the client of the tests names it.
HOST = "test"

ROUTES = ("/put", "/batchput", "/delete", "/cluster/promote", "/cluster/forget")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere.example", "sec_fetch_site": "cross-site"},
        {"origin": f"http://{HOST}:81", "sec_fetch_site": "same-site"},
        {"origin": f"http://{HOST}", "sec_fetch_site": "cross-site"},
        {"origin": "http://elsewhere.example"},
        {"origin": f"http://{HOST}.elsewhere.example"},
        {"origin": f"http://{HOST}:81"},
        # A page in a sandbox, or one that came from a file.
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": ""},
    ],
    ids=str,
)
async def test_a_page_of_another_site_changes_nothing(rig: RestRig, route: str, headers: dict[str, str]) -> None:
    answer = await rig.ask("POST", route, b'{"key":"k","value":1}', **headers)
    assert (answer.status, answer.error["code"]) == (403, "cross_origin")
    assert answer.error["origin"] == headers["origin"]
    assert rig.store.writes == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": f"http://{HOST}"},
        {"origin": f"https://{HOST}"},
        {"origin": f"http://{HOST}", "sec_fetch_site": "same-origin"},
        # Behind a proxy that says another Host.
        {"origin": "https://kv.example", "sec_fetch_site": "same-origin"},
        {"origin": "https://kv.example", "sec_fetch_site": "none"},
    ],
    ids=str,
)
async def test_the_nodes_own_pages_and_other_clients_write(rig: RestRig, headers: dict[str, str]) -> None:
    answer = await rig.ask("POST", "/put", b'{"key":"k","value":1}', **headers)
    assert answer.status == 200
    assert len(rig.store.writes) == 1


async def test_no_host_is_nobodys_own(rig: RestRig) -> None:
    async with rig.connect() as wire:
        wire.send(
            b"POST /put HTTP/1.1\r\nHost:\r\nOrigin: null\r\nContent-Length: 21\r\n\r\n" + b'{"key":"k","value":1}'
        )
        assert (await wire.answer("POST")).error["code"] == "cross_origin"


async def test_reads_are_not_asked(rig: RestRig) -> None:
    """A browser keeps their answers from the page that made it ask."""
    headers = {"origin": "http://elsewhere.example", "sec_fetch_site": "cross-site"}
    answer = await rig.ask("GET", "/health", **headers)
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers
