"""The API page in a real browser: it shows this node's document, tries requests out, and asks nobody else."""

import json
from collections.abc import Iterator

import pytest

from kvnode.node.config import Config
from kvnode.node.rest.openapi.document import build_document
from support.browser import Browser, open_browser
from support.cluster import Rest
from support.node_process import NodeProcess
from support.openapi import Operation, operations

DOCUMENT = build_document(Config())

#: HEAD is left out: it works wherever GET does.
SHOWN = [operation for operation in operations(DOCUMENT) if operation.method != "head"]

# One browser for all of them.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node") / "data", "--max-key-bytes=99") as node:
        with Rest(node) as rest:
            rest.put("fruit/apple", "red")
        yield node


def _open(browser: Browser, node: NodeProcess, fragment: str = "") -> None:
    """Load the page, which takes a while: so each test looks at several things."""
    browser.emulate()
    browser.open(f"{node.url}/docs{fragment}")
    browser.wait(lambda: len(browser.find_all(".opblock")) == len(SHOWN), "all operations")


def _block(operation: Operation) -> str:
    """The id of an operation's block on the page."""
    return f"operations-{operation.described['tags'][0]}-{operation.name}"


def _shown(page: Browser) -> list[str]:
    return [block.get_attribute("id") or "" for block in page.find_all(".opblock")]


def test_it_shows_every_operation_and_the_limits_of_its_node(browser: Browser, node: NodeProcess) -> None:
    _open(browser, node)
    tags = [tag["name"] for tag in DOCUMENT["tags"]]
    in_order = sorted(SHOWN, key=lambda operation: tags.index(operation.described["tags"][0]))
    assert _shown(browser) == [_block(operation) for operation in in_order]
    browser.script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert "max_key_bytes 99" in " ".join(browser.text(".info details:last-of-type").split())
    # Neither the bar to load other documents, nor the badge of those who check documents.
    assert browser.find_all(".topbar, .validator, img[alt*='alid']") == []
    assert browser.complaints() == []


def test_its_filter_looks_at_texts(browser: Browser, node: NodeProcess) -> None:
    _open(browser, node)
    field = browser.find(".operation-filter-input")
    assert field.get_attribute("placeholder") == "Filter by text"
    field.send_keys("Let a member GO")
    browser.wait(lambda: _shown(browser) == ["operations-cluster-forget"], "one operation")
    field.send_keys("t")
    browser.wait(lambda: _shown(browser) == [], "none")
    assert browser.complaints() == []


def test_a_request_can_be_tried_out(browser: Browser, node: NodeProcess) -> None:
    _open(browser, node, "#/data/read")
    # A deep link opens its operation, with the example's key filled in.
    browser.find("#operations-data-read .execute").click()
    answer = "#operations-data-read .live-responses-table"
    body = browser.wait(lambda: browser.find(f"{answer} .microlight").text, "the answer")
    assert json.loads(body) == {"key": "fruit/apple", "value": "red"}
    assert "kv-seq: 1" in browser.text(answer)
    assert browser.text("#operations-data-read .request-url pre") == f"{node.url}/read/fruit%2Fapple"
    # What has no end cannot be tried out like that.
    browser.find("#operations-operating-events .opblock-summary-control").click()
    assert not browser.find("#operations-operating-events .execute").is_displayed()
    # In all this, nobody but the node was asked for anything.
    asked = browser.requests()
    assert f"{node.url}/read/fruit%2Fapple" in asked
    assert {url for url in asked if not url.startswith(f"{node.url}/")} == set()
    assert browser.complaints() == []


def test_it_fits_a_phone_and_the_colours_that_are_preferred(browser: Browser, node: NodeProcess) -> None:
    _open(browser, node, "#/data/put")
    browser.find("#operations-data-put .execute")
    colour = "return getComputedStyle(document.body).backgroundColor"
    for scheme, background in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(28, 28, 28)")):
        browser.emulate(width_px=390, height_px=800, scheme=scheme, touch=True)
        assert browser.script(colour) == background
        assert browser.script("return document.documentElement.scrollWidth") <= 390


def test_it_says_when_the_node_does_not_answer(browser: Browser, node: NodeProcess) -> None:
    browser.emulate()
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/openapi.json"]})
    try:
        browser.open(f"{node.url}/docs")
        assert "Is the node running?" in browser.text(".failed")
    finally:
        browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
