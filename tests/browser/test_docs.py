"""The description of the API as a page: complete, from this server alone, readable on a phone and by keyboard."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.conftest import Seen
from tests.conftest import Deploy
from tests.deployment import Deployment

pytestmark = pytest.mark.browser


@pytest.fixture
async def deployment(deploy: Deploy) -> Deployment:
    return await deploy(dispatchers=0, generator=False)


@pytest.fixture
async def description(deployment: Deployment) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found: dict[str, Any] = (await client.get(f"{deployment.web.url}/openapi.json")).json()
    return found


@pytest.fixture
async def page(deployment: Deployment, context: BrowserContext, seen: Seen) -> AsyncIterator[Page]:
    page = await context.new_page()
    await page.goto(f"{deployment.web.url}/docs")
    await expect(page.locator("main")).not_to_have_attribute("aria-busy", "true")
    yield page
    assert seen.errors == []
    assert {urlsplit(url).netloc for url in seen.requests} == {urlsplit(deployment.web.url).netloc}, "from here alone"


async def test_everything_of_the_document_is_shown(
    page: Page, deployment: Deployment, description: dict[str, Any]
) -> None:
    main = page.get_by_role("main")
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            heading = page.get_by_role("heading", name=f"{method.upper()} {path}", exact=True)
            text = await main.locator("section").filter(has=heading).inner_text()
            assert operation["summary"].replace("`", "") in text
            for parameter in operation.get("parameters", []):
                assert parameter["name"] in text
            for sample in operation["x-codeSamples"]:
                shown = sample["source"].replace("http://localhost:8000", deployment.web.url)
                shown = shown.replace("ws://localhost:8000", deployment.web.url.replace("http", "ws"))
                assert shown in text
            for response in operation["responses"].values():
                content = response.get("content", {}).get("application/problem+json", {})
                for code in content.get("schema", {}).get("properties", {}).get("code", {}).get("enum", []):
                    assert code in text, (path, code)
    for code in description["info"]["x-problem-codes"]:
        await expect(main.locator("#problems").get_by_text(code, exact=True)).to_be_visible()
    for name, schema in description["components"]["schemas"].items():
        text = await main.locator(f"#schema-{name}").inner_text()
        for member, part in schema.get("properties", {}).items():
            assert member in text
            assert part["description"].replace("`", "") in text, (name, member)
    links = await page.eval_on_selector_all("a[href^='#']", "links => links.map((link) => link.hash.slice(1))")
    dead = await page.evaluate("ids => ids.filter((id) => !document.getElementById(id))", links)
    assert len(links) > 50
    assert dead == []


async def test_it_can_be_used_by_keyboard_and_on_a_phone(page: Page) -> None:
    section = page.locator("#post-api-generate")
    answer = section.locator("details").first
    await expect(answer.locator("pre")).to_be_hidden()
    await answer.locator("summary").focus()
    await page.keyboard.press("Enter")
    await expect(answer.locator("pre")).to_contain_text('"status": "pending"')
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.tagName") == "PRE", "what scrolls can be reached"

    await page.set_viewport_size({"width": 360, "height": 740})
    await page.reload()
    await expect(page.locator("#problems")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    contents = page.locator(".contents details")
    await expect(contents).not_to_have_attribute("open", "")
    await contents.locator("summary").click()
    await contents.get_by_text("/api/generate/events").click()
    await expect(page.locator("#get-api-generate-events h2")).to_be_in_viewport()
