"""A headless Chromium, Debian's, driven through its own driver."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.utils import is_url_connectable

from tests.support.debian import require

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
HOST = "127.0.0.1"
FLAGS = (
    "--headless",
    "--no-sandbox",  # which refuses root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1600",
)


class _Driver(ChromeService):
    """Asked by its address, for a bare root may not resolve even localhost."""

    @property
    def service_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def is_connectable(self) -> bool:
        return is_url_connectable(self.port, HOST)


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Open a browser that keeps no profile and notes every request of its pages."""
    require("chromium", CHROMIUM)
    require("chromium-driver", CHROMEDRIVER)
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = Chrome(options, _Driver(str(CHROMEDRIVER)))
    try:
        yield browser
    finally:
        browser.quit()


def log_of(browser: Chrome, name: str) -> list[dict[str, Any]]:
    """Take what a log of the browser has got since the last call."""
    entries: list[dict[str, Any]] = browser.get_log(name)  # type: ignore[no-untyped-call]  # as selenium has it
    return entries


def requests_of(browser: Chrome) -> list[str]:
    """Name every URL that was asked for since the last call."""
    events = [msgspec.json.decode(entry["message"])["message"] for entry in log_of(browser, "performance")]
    return [
        each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"
    ]
