"""The dashboard in a real browser, on real nodes: what it shows, what can be done with it, and without a mouse."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from support.browser import WAIT_S, Browser, open_browser
from support.cluster import Cluster, Rest
from support.node_process import NodeProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NAMES = ["web1", "web2", "web3"]

#: Numbers that a browser would not give back as they are.
NUMBERS = '{"large":12345678901234567890,"whole":1.0,"list":[1e3,-0]}'
NUMBERS_LAID_OUT = '{\n  "large": 12345678901234567890,\n  "whole": 1.0,\n  "list": [\n    1e3,\n    -0\n  ]\n}'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


class Page:
    """The dashboard of a node, as somebody sees it."""

    def __init__(self, browser: Browser, node: NodeProcess, link: str = "live") -> None:
        self.browser = browser
        self.node = node
        browser.emulate()
        browser.open(f"{node.url}/")
        self.wait_link(link)

    # ---- what is shown ---------------------------------------------------------------------------------------------

    @property
    def link(self) -> str | None:
        return self.browser.find("body").get_attribute("data-link")

    def wait_link(self, state: str) -> None:
        self.browser.wait(lambda: self.link == state, f"the link is {state}")

    def states(self) -> dict[str, str]:
        """The state of each node in the table."""
        rows = self.browser.find_all("#nodes tr")
        return {str(row.get_attribute("data-name")): str(row.get_attribute("data-state")) for row in rows}

    def wait_state(self, name: str, state: str) -> None:
        self.browser.wait(lambda: self.states().get(name) == state, f"{name} is {state}")

    def keys(self) -> list[str]:
        """The keys on this page of the list."""
        return [str(key.text) for key in self.browser.find_all("#list .key")]

    def wait_keys(self, *keys: str) -> None:
        self.browser.wait(lambda: self.keys() == list(keys), f"the list shows {keys}")

    def wait_text(self, selector: str, text: str) -> None:
        self.browser.wait(lambda: text in self.browser.text(selector), f"{selector} says {text!r}")

    def focused(self) -> str:
        """The id of what has the focus, or else its text."""
        focused = self.browser.driver.switch_to.active_element
        return str(focused.get_attribute("id") or focused.text)

    # ---- what is done ----------------------------------------------------------------------------------------------

    def search(self, prefix: str) -> None:
        self.browser.fill("#prefix", prefix)

    def put(self, key: str, value: str, *, kind: str = "json") -> None:
        self.browser.find(f"#put [value={kind}]").click()
        self.browser.fill("#put-key", key)
        self.browser.fill("#put-value", value)
        self.browser.find("#put [type=submit]").click()

    def click(self, selector: str) -> None:
        self.browser.find(selector).click()

    def check_quiet(self) -> None:
        """Check that the console is empty, and that nobody but the node was asked for anything."""
        assert self.browser.complaints() == []
        own = urlsplit(self.node.url).netloc
        strangers = [url for url in self.browser.requests() if urlsplit(url).netloc != own]
        assert strangers == []


def stored(node: NodeProcess, key: str) -> str:
    """A value's text as the node has it."""
    with Rest(node) as rest:
        status, body = rest.request("GET", f"/read/{key}")
    assert status == 200
    return body.decode().partition('"value":')[2][:-1]


@pytest.mark.parametrize("number", range(3))
def test_each_node_shows_all_three(browser: Browser, cluster: Cluster, number: int) -> None:
    page = Page(browser, cluster.nodes[number])
    expected = {"web1": "reigning", "web2": "streaming", "web3": "streaming"}
    browser.wait(lambda: page.states() == expected, "the table shows three nodes")
    assert browser.text("#node-name") == NAMES[number]
    assert browser.text("#node-role") == ("replica" if number else "primary")
    assert browser.driver.title == f"{NAMES[number]} · kvnode"
    page.wait_text("#cluster-source", "the primary sees it" if number else "this node, the primary")
    assert len(browser.find_all("#charts canvas")) == 5
    # Nothing has changed: that a replica had to ask its primary first is no news, nor a fault.
    assert browser.text("#announcer") == ""
    assert browser.find_all("#cluster-source.warned") == []
    page.check_quiet()


def test_a_replica_that_is_killed_is_shown_and_so_is_its_return(browser: Browser, cluster: Cluster) -> None:
    page = Page(browser, cluster.web1)
    page.wait_state("web3", "streaming")
    cluster.web3.kill()
    page.wait_state("web3", "disconnected")
    page.wait_text("#announcer", "web3 is disconnected")
    with Rest(cluster.web1) as rest:
        rest.put("while/away", 1)
    page.wait_text("#nodes tr[data-name=web3] .cell-lag", "1 entry")
    cluster.web3.start()
    cluster.web3.wait_ready()
    page.wait_state("web3", "streaming")
    page.wait_text("#nodes tr[data-name=web3] .cell-lag", "none")
    page.check_quiet()


def test_a_key_is_put_found_viewed_and_deleted(browser: Browser, cluster: Cluster) -> None:
    """Through a replica, which forwards the writes, and shows what was written at once all the same."""
    page = Page(browser, cluster.web2)
    page.put("page/numbers", NUMBERS)
    page.wait_text("#done", "Put page/numbers as ")
    assert stored(cluster.web1, "page/numbers") == NUMBERS
    page.search("page/")
    page.wait_keys("page/numbers")
    page.click("#list button")
    browser.wait(lambda: browser.find("#viewer").is_displayed(), "the value is shown")
    assert browser.text("#shown-value") == NUMBERS_LAID_OUT
    assert browser.text("#shown-size") == f"{len(NUMBERS)} B"
    page.wait_text("#tail li:last-child .tail-key", "page/numbers")
    assert browser.text("#tail li:last-child .tail-value") == NUMBERS

    page.click("#delete")
    assert browser.text("#confirm-key") == "page/numbers"
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: not browser.find("#confirm").is_displayed(), "the dialog is closed")
    assert browser.find("#viewer").is_displayed()
    assert stored(cluster.web1, "page/numbers") == NUMBERS

    page.click("#delete")
    page.click("#confirm-yes")
    page.wait_text("#done", "Deleted page/numbers by ")
    page.wait_keys()
    page.wait_text("#list-empty", "No key begins with page/")
    page.wait_text("#tail li:last-child .tail-op", "delete")
    with Rest(cluster.web1) as rest:
        assert rest.get("/read/page/numbers")[0] == 404
    page.check_quiet()


def test_texts_and_strange_characters_are_stored_and_shown_as_they_are(browser: Browser, cluster: Cluster) -> None:
    page = Page(browser, cluster.web1)
    page.put("page/text", '<b>"1"</b>', kind="text")
    page.wait_text("#done", "Put page/text")
    assert json.loads(stored(cluster.web1, "page/text")) == '<b>"1"</b>'
    with Rest(cluster.web1) as rest:
        rest.put("strange/\n\u202e<img src=x onerror=alert(1)>", "\u202e<script>")
    page.search("strange/")
    page.wait_keys("strange/\\n\\u202e<img src=x onerror=alert(1)>")
    page.click("#list button")
    page.wait_text("#shown-key", "strange/\\n\\u202e<img")
    assert browser.find_all("main img, main script") == []
    page.check_quiet()


@pytest.mark.parametrize("key", [".", ".."])
def test_keys_that_are_steps_in_a_path_are_shown_too(browser: Browser, cluster: Cluster, key: str) -> None:
    page = Page(browser, cluster.web1)
    page.put(key, "[1.0]")
    page.wait_text("#done", f"Put {key} as")
    page.search(key)
    page.click("#list button")
    page.wait_text("#shown-value", "1.0")
    page.check_quiet()


def test_errors_are_told_in_words_and_nothing_is_written(browser: Browser, cluster: Cluster) -> None:
    page = Page(browser, cluster.web1)
    before = cluster.web1.status()["last_seq"]
    page.put("page/no", '1},{"key":"other","value":2')
    page.wait_text("#detail-error", "invalid_json the value is not JSON")
    page.put("k" * 4097, "1")
    page.wait_text("#detail-error", "too_large 4097 is over the limit max_key_bytes=4096")
    assert cluster.web1.status()["last_seq"] == before
    page.put("page/yes", "1")
    page.wait_text("#done", "Put page/yes")
    assert not browser.find("#detail-error").is_displayed()
    assert [text for text in browser.complaints() if "413" not in text] == []


def test_pages_of_keys_and_large_values(browser: Browser, cluster: Cluster) -> None:
    with Rest(cluster.web1) as rest:
        rest.post("/batchput", [{"key": f"many/{number:03}", "value": number} for number in range(120)])
        rest.put("large", ["x" * 100] * 2000)
    page = Page(browser, cluster.web1)
    page.search("many/")
    browser.wait(lambda: page.keys()[:1] == ["many/000"], "the first page")
    assert page.keys() == [f"many/{number:03}" for number in range(50)]
    page.click("#next")
    browser.wait(lambda: page.keys()[:1] == ["many/050"], "the second page")
    page.click("#next")
    browser.wait(lambda: page.keys()[:1] == ["many/100"], "the last page")
    assert page.keys() == [f"many/{number:03}" for number in range(100, 120)]
    assert not browser.find("#next").is_enabled()
    page.click("#previous")
    browser.wait(lambda: page.keys()[:1] == ["many/050"], "the second page again")

    page.search("large")
    page.wait_keys("large")
    page.click("#list button")
    page.wait_text("#show-all", "Show all 203 KiB")
    length = "return document.getElementById('shown-value').textContent.length"
    assert browser.script(length) < 20_000
    page.click("#show-all")
    browser.wait(lambda: browser.script(length) > 203 * 1024, "the whole value")
    page.check_quiet()


def test_without_a_mouse(browser: Browser, cluster: Cluster) -> None:
    """Put a key and find it, by the keyboard alone."""
    page = Page(browser, cluster.web1)
    browser.press("/", "typed/")
    assert page.focused() == "prefix"
    page.wait_keys()
    browser.press(Keys.TAB)
    assert page.focused() == "put-key"
    browser.press("typed/key", Keys.TAB, Keys.TAB, '"typed"', Keys.TAB, Keys.ENTER)
    page.wait_text("#done", "Put typed/key")
    assert page.focused() == "shown-key"
    browser.press(Keys.ESCAPE)
    assert not browser.find("#viewer").is_displayed()

    browser.press("/", "typed/")
    page.wait_keys("typed/key")
    browser.press(Keys.ARROW_DOWN)
    browser.wait(lambda: page.focused().startswith("typed/key"), "the line has the focus")
    browser.press(Keys.ENTER)
    browser.wait(lambda: page.focused() == "shown-key", "the value has the focus")
    assert browser.text("#shown-value") == '"typed"'
    # A slash in a text is a slash.
    browser.press("/", Keys.END, "/")
    assert browser.find("#prefix").get_attribute("value") == "typed//"
    page.check_quiet()


def test_the_tail_can_be_paused_and_cleared(browser: Browser, cluster: Cluster) -> None:
    page = Page(browser, cluster.web1)
    with Rest(cluster.web1) as rest:
        rest.put("tail/1", 1)
        page.wait_text("#tail li:last-child .tail-key", "tail/1")
        page.click("#tail-pause")
        rest.put("tail/2", 2)
        page.wait_text("#tail-state", "paused, 1 new entry")
        assert browser.text("#tail li:last-child .tail-key") == "tail/1"
        page.click("#tail-pause")
        page.wait_text("#tail li:last-child .tail-key", "tail/2")
        page.click("#tail-clear")
        assert browser.find_all("#tail li") == []
        rest.post("/batchput", [{"key": f"tail/{number}", "value": "v" * 1000} for number in range(8)])
        page.wait_text("#tail li:last-child", "and 3 more changes by the same entry")
        assert browser.text("#tail li:first-child .tail-value").endswith(" of 1002 B")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(browser: Browser, cluster: Cluster, scheme: str) -> None:
    with Rest(cluster.web1) as rest:
        rest.put("wide/" + "k" * 400, "v" * 4000)
    page = Page(browser, cluster.web1)
    browser.emulate(width_px=390, height_px=844, scheme=scheme, touch=True)
    page.search("wide/")
    browser.wait(lambda: len(page.keys()) == 1, "the key is found")
    page.click("#list button")
    browser.wait(lambda: browser.find("#viewer").is_displayed(), "the value is shown")
    widths = "return [window.innerWidth, document.documentElement.scrollWidth, window.visualViewport.scale]"
    assert browser.script(widths) == [390, 390, 1]
    page.check_quiet()


def test_a_node_that_stops_or_dies_is_told_and_so_is_its_return(browser: Browser, cluster: Cluster) -> None:
    """A stop does not wait for those who watch, and none of what is shown is shown as if it were true now."""
    page = Page(browser, cluster.web2)
    assert cluster.web2.stop(timeout_s=6.0) == 0
    page.wait_link("unreachable")
    page.wait_text("#banner", "web2 stopped at ")
    assert browser.text("#link") == "unreachable"
    assert float(browser.find(".nodes").value_of_css_property("opacity")) < 1
    cluster.web2.start()
    cluster.web2.wait_ready()
    page.wait_link("live")
    assert not browser.find("#banner").is_displayed()
    browser.wait(lambda: len(page.states()) == 3, "the table is back")

    cluster.web2.kill()
    page.wait_text("#banner", "web2 does not answer since ")
    page.put("page/never", "1")
    page.wait_text("#detail-error", "unreachable the node does not answer")
    cluster.web2.start()
    cluster.web2.wait_ready()
    page.wait_link("live")


def test_a_node_that_is_stuck_is_unreachable(browser: Browser, cluster: Cluster) -> None:
    """Its connections stay, and nothing comes."""
    page = Page(browser, cluster.web3)
    os.kill(cluster.web3.pid, signal.SIGSTOP)
    try:
        page.wait_text("#banner", "web3 does not answer since ")
    finally:
        os.kill(cluster.web3.pid, signal.SIGCONT)
    page.wait_link("live")


def test_a_page_that_is_turned_away_says_why_and_tries_again(browser: Browser, cluster: Cluster) -> None:
    """A browser would not, after an answer that is an error."""
    host, port = urlsplit(cluster.web2.url).netloc.split(":")
    browser.open("about:blank")
    with ExitStack() as watchers:
        answer = b"HTTP/1.1 200"
        while answer == b"HTTP/1.1 200":
            watcher = watchers.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_S))
            watcher.sendall(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
            answer = watcher.recv(12)
        assert answer == b"HTTP/1.1 503"
        page = Page(browser, cluster.web2, "unreachable")
        page.wait_text("#banner", "this node cannot be watched: 100 watch this node already; trying again.")
    page.wait_link("live")
    assert not browser.find("#banner").is_displayed()


def test_a_replica_says_that_its_primary_does_not_answer(browser: Browser, cluster: Cluster) -> None:
    """The last test here: the cluster has no primary afterwards."""
    page = Page(browser, cluster.web3)
    page.wait_text("#cluster-source", "as the primary sees it")
    cluster.web1.kill()
    page.wait_text("#cluster-source", "does not answer")
    states = {"web1": "no_answer", "web2": "unknown", "web3": "disconnected"}
    browser.wait(lambda: page.states() == states, "the table shows what the replica knows")
    assert page.link == "live"
