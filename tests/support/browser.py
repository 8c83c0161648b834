"""A headless Chromium, Debian's, driven through its own driver."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.utils import is_url_connectable

from tests.support.debian import require

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
HOST = "127.0.0.1"
POLL_SECONDS = 0.05
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
    "--remote-debugging-port=0",
)


class _Driver(ChromeService):
    """Asked by its address, for a bare root may not resolve even localhost."""

    @property
    def service_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def is_connectable(self) -> bool:
        return is_url_connectable(self.port, HOST)


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """Open a browser that notes every request of its pages; `profile` is a folder for it alone."""
    require("chromium", CHROMIUM)
    require("chromium-driver", CHROMEDRIVER)
    options = ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with ExitStack() as stack:
        process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        # The driver asks a browser that it starts itself at "localhost".
        options.debugger_address = f"{HOST}:{_port_of(process, profile)}"
        browser = Chrome(options, _Driver(str(CHROMEDRIVER)))
        stack.callback(browser.quit)
        yield browser


def _port_of(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Wait for the port that the browser has chosen, and writes into its profile."""
    written = profile / "DevToolsActivePort"
    while process.poll() is None:
        if written.exists() and (lines := written.read_text().splitlines()):
            return lines[0]
        time.sleep(POLL_SECONDS)
    pytest.fail(f"{CHROMIUM} ended with {process.returncode}", pytrace=False)


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
