"""What browsers get: the pages, their files, how they are compressed and cached, and what they may load."""

import base64
import gzip
import hashlib
import re
from html.parser import HTMLParser

import pytest

from kvnode.node.rest.assets import FILES, PAGES
from support.rest_rig import RestRig

#: Of others, carried by packages.
BUNDLES = sorted(name for name in FILES if "-" in name)


class References(HTMLParser):
    """The scripts and styles that a page loads: `integrity` by address."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str | None] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get("src") if tag == "script" else given.get("href") if tag == "link" else None
        if address is not None:
            self.found[address] = given.get("integrity")


@pytest.mark.parametrize("path", [*PAGES, *(f"/assets/{name}" for name in FILES)])
async def test_every_file_is_served_plain_and_compressed(rig: RestRig, path: str) -> None:
    plain = await rig.ask("GET", path)
    packed = await rig.ask("GET", path, accept_encoding="br, gzip;q=0.5")
    assert (plain.status, packed.status) == (200, 200)
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    for answer in (plain, packed):
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["content-type"] == (PAGES.get(path) or FILES[path.removeprefix("/assets/")]).content_type
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert plain.headers["etag"] != packed.headers["etag"]


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/assets/dashboard.js"])
async def test_a_browser_is_told_what_a_page_may_do(rig: RestRig, path: str) -> None:
    answer = await rig.ask("GET", path)
    known = await rig.ask("GET", path, if_none_match=answer.headers["etag"])
    assert known.status == 304
    for each in (answer, known):
        assert each.headers["content-security-policy"].split("; ") == [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
        assert each.headers["x-content-type-options"] == "nosniff"
        assert each.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/assets/favicon.svg"])
async def test_a_file_that_the_browser_has_is_not_sent_again(rig: RestRig, path: str) -> None:
    etag = (await rig.ask("GET", path)).headers["etag"]
    known = await rig.ask("GET", path, if_none_match=etag)
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", etag)
    assert (await rig.ask("GET", path, if_none_match='"other"')).status == 200
    assert (await rig.ask("GET", path, if_none_match=etag, accept_encoding="gzip")).status == 200


async def test_head_has_the_length_and_no_body(rig: RestRig) -> None:
    answer = await rig.ask("HEAD", "/")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) == len((await rig.ask("GET", "/")).body)


@pytest.mark.parametrize("coding", ["", "identity", "br", "gzip;q=0", "gzip; q=0.0", "xgzip"])
async def test_nothing_is_compressed_for_who_did_not_ask(rig: RestRig, coding: str) -> None:
    assert "content-encoding" not in (await rig.ask("GET", "/", accept_encoding=coding)).headers


@pytest.mark.parametrize("path", ["/assets/", "/assets/other.js", "/assets/../front.py", "/assets/%2e%2e/front.py"])
async def test_nothing_else_is_served(rig: RestRig, path: str) -> None:
    answer = await rig.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (404, "route_not_found")


async def test_a_page_takes_no_parameters(rig: RestRig) -> None:
    assert (await rig.ask("GET", "/?a=1")).status == 400


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_only_what_the_node_serves(rig: RestRig, path: str) -> None:
    """And of what others made, only the very files of their releases, whichever package carries them here."""
    references = References((await rig.ask("GET", path)).body.decode()).found
    assert references
    for address, integrity in references.items():
        name = address.removeprefix("assets/")
        assert name in FILES
        if name in BUNDLES:
            body = (await rig.ask("GET", f"/assets/{name}")).body
            assert integrity == f"sha384-{base64.b64encode(hashlib.sha384(body).digest()).decode()}"


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".js") and name not in BUNDLES))
async def test_a_module_imports_only_what_the_node_serves(rig: RestRig, name: str) -> None:
    body = (await rig.ask("GET", f"/assets/{name}")).body.decode()
    imported = re.findall(r'^import .* from "\./(.*)";$', body, re.MULTILINE)
    assert len(imported) == len(re.findall(r"\bimport\b", body))
    assert set(imported) <= FILES.keys()
