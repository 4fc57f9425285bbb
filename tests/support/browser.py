"""A real Chromium without a window, driven by Debian's chromedriver; nothing of either is ever downloaded.

@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")

#: How long a condition may take to come true. On a busy machine all takes many times as long as it should.
WAIT_S = 20.0
_POLL_S = 0.03
#: How much of a page an error shows.
_SHOWN_CHARACTERS = 3000

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--no-default-browser-check", "--no-proxy-server"),
    # A page that is not looked at must go on all the same.
    *("--disable-background-timer-throttling", "--disable-renderer-backgrounding"),
    "--window-size=1280,900",
)

#: Schemes of addresses that leave the browser.
_REMOTE = ("http", "https", "ws", "wss")

_T = TypeVar("_T")


class Browser:
    """One window. What pages said and asked for is kept until it is looked at.

    Attributes:
        driver: selenium's, for what is not here.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load a page, and forget what earlier ones said and asked for."""
        self.driver.get("about:blank")
        self.complaints()
        self.requests()
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """The first element that a CSS selector finds, as soon as there is one."""
        return self.wait(lambda: self.driver.find_element(By.CSS_SELECTOR, selector), f"an element {selector}")

    def find_all(self, selector: str) -> list[WebElement]:
        """All that are there now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.wait(lambda: self.find(selector).text or " ", f"the text of {selector}").strip()

    def script(self, body: str, *arguments: Any) -> Any:
        """What a script returns, which sees `arguments`."""
        return self.driver.execute_script(body, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, on whatever has the focus; a text is typed."""
        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def fill(self, selector: str, text: str) -> None:
        """Put a text in the place of what is in a field, at once, as by pasting."""
        self.find(selector).click()
        self.script("document.activeElement.select()")
        if text:
            self.driver.execute_cdp_cmd("Input.insertText", {"text": text})
        else:
            self.press(Keys.DELETE)

    def wait(self, condition: Callable[[], _T], what: str, timeout_s: float = WAIT_S) -> _T:
        """What `condition` returns once it is true; an element that is not there (any more) counts as "not yet".

        Raises:
            AssertionError: it is not in time; with what the page shows.
        """
        pause = threading.Event()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if found := condition():
                    return found
            except (NoSuchElementException, StaleElementReferenceException):
                pass
            if time.monotonic() >= deadline:
                shown = self.script("return document.body.innerText.slice(0, arguments[0])", _SHOWN_CHARACTERS)
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n---- the page shows\n{shown}")
            pause.wait(_POLL_S)

    def emulate(
        self, *, width_px: int = 1280, height_px: int = 900, scheme: str = "light", touch: bool = False
    ) -> None:
        """Be a screen of this size, of a phone if it is for touch, with the colours that its user prefers."""
        metrics = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call, those of the network among them."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses on the network that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if urlsplit(url).scheme in _REMOTE]

    def screenshot(self, path: Path) -> None:
        """Save a picture of what is in view, as PNG."""
        assert self.driver.get_screenshot_as_file(str(path))


@contextlib.contextmanager
def open_browser(directory: Path) -> Iterator[Browser]:
    """Start a browser that keeps all its files below `directory`, and end it behind the block.

    Where there is none the test is skipped; where CI=true says that there has to be one, it fails.
    """
    missing = [str(path) for path in (CHROMIUM, CHROMEDRIVER) if not path.exists()]
    if missing:
        reason = f"no {' and no '.join(missing)}: install Debian's packages chromium and chromium-driver"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*_FLAGS, f"--user-data-dir={directory / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Nothing of the user's settings, of a proxy among them.
    kept = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    service = Service(str(CHROMEDRIVER), env=kept | {"HOME": str(directory)})
    with pytest.MonkeyPatch.context() as patched:
        # Selenium itself would ask its driver by way of a proxy.
        for name in set(os.environ) - set(kept):
            patched.delenv(name)
        try:
            driver = Chrome(options=options, service=service)
        except WebDriverException as error:
            pytest.fail(f"Chromium does not start: {error.msg}")
    try:
        yield Browser(driver)
    finally:
        driver.quit()
