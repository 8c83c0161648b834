"""The interactive page in a browser that has only the gateway to talk to."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.browser import chromium, log_of, requests_of
from tests.support.gateway import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

TOKEN = "token-0123456789abcdef"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def find(browser: Chrome, selector: str) -> WebElement:
    """Wait until the page has an element and shows it."""

    def shown(_: object) -> WebElement | Literal[False]:
        return next(
            (each for each in browser.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()), False
        )

    return WebDriverWait(browser, 60).until(shown, f"nothing at {selector}")


def try_out(browser: Chrome, url: str, token: str | None = None) -> dict[str, object]:
    """Open the page, carry out its first example of a submission, and give the task that was answered."""
    browser.get(f"{url}/docs#/Tasks/submitTask")
    find(browser, "#operations-Tasks-submitTask .opblock-body")
    if token:
        find(browser, ".authorize").click()
        find(browser, ".modal-ux input").send_keys(token)
        find(browser, ".modal-ux .authorize").click()
        find(browser, ".modal-ux .btn-done").click()
    find(browser, "#operations-Tasks-submitTask .execute").click()
    answer = find(browser, "#operations-Tasks-submitTask .live-responses-table .response")
    assert answer.find_element(By.CSS_SELECTOR, ".response-col_status").text.split()[0] == "201"
    task: dict[str, object] = json.loads(answer.find_element(By.CSS_SELECTOR, "code").text)
    return task


async def test_a_task_is_handed_over_and_nobody_else_is_asked(browser: Chrome) -> None:
    async with listening() as url:
        task = await asyncio.to_thread(try_out, browser, url)
        operations = browser.find_elements(By.CSS_SELECTOR, ".opblock-summary-path")
        async with httpx.AsyncClient(base_url=url) as client:
            document = (await client.get("/schema/openapi.json")).json()
            shown = (await client.get(f"/api/v1/tasks/{task['id']}")).json()

    assert task == shown
    assert len(operations) == sum(map(len, document["paths"].values()))
    asked = [each for each in requests_of(browser) if not each.startswith("data:")]
    assert f"{url}/api/v1/tasks" in asked
    assert {f"{urlsplit(each).scheme}://{urlsplit(each).netloc}" for each in asked} == {url}
    assert log_of(browser, "browser") == []  # where a refusal by the Content-Security-Policy would stand


async def test_a_token_is_taken_on_the_page(browser: Chrome) -> None:
    async with listening(api_tokens=(TOKEN,)) as url:
        task = await asyncio.to_thread(try_out, browser, url, TOKEN)

    assert task["status"] == "NEW"
