"""The page as people have it: Chromium against real processes."""

import re
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page, WebSocketRoute, expect

from server.auth import LOCAL_USER_ID
from tests.browser.conftest import WAIT_MS_MAX, Seen
from tests.deployment import Deployment

pytestmark = pytest.mark.browser
expect.set_options(timeout=WAIT_MS_MAX)

PROMPT = "Moonlight on a lake between pines"
UNDER_WAY = re.compile("^[1-9]")
# Keeps what a screen reader is told and what the bar showed, from before the first script runs.
RECORD = """
window.told = []; window.shown = [];
new MutationObserver(() => {
  const stage = document.querySelector('.stage')?.textContent;
  const percent = document.querySelector('[role=progressbar]')?.getAttribute('aria-valuenow');
  if (stage && told.at(-1) !== stage) told.push(stage);
  if (percent != null && shown.at(-1) !== Number(percent)) shown.push(Number(percent));
}).observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
"""


async def create(deployment: Deployment, prompt: str = PROMPT, **params: Any) -> str:
    async with deployment.client() as client:
        response = await client.post("/api/generate", json={"prompt": prompt, "params": params})
        response.raise_for_status()
        task_id: str = response.json()["taskId"]
        return task_id


async def submit(page: Page, url: str, prompt: str = PROMPT) -> None:
    await page.goto(url)
    await page.get_by_label("Prompt").fill(prompt)
    await page.keyboard.press("Control+Enter")


async def expect_picture(page: Page, prompt: str = PROMPT) -> None:
    picture = page.locator("#frame .picture")
    await expect(page.locator("#frame")).to_have_attribute("data-loaded", "true")
    await expect(picture).to_have_attribute("alt", prompt)
    assert await picture.evaluate("image => image.naturalWidth") == 512


async def expect_connection(page: Page, via: str) -> None:
    connection = page.locator("#connection")
    await expect(connection).to_have_attribute("data-phase", "live")
    await expect(connection).to_have_attribute("data-via", via)


async def test_a_prompt_becomes_a_picture(deployment: Deployment, context: BrowserContext, seen: Seen) -> None:
    page = await context.new_page()
    await page.add_init_script(RECORD)
    await submit(page, deployment.web.url)
    bar = page.get_by_role("progressbar", name="Progress")
    await expect(bar).to_have_attribute("aria-valuenow", UNDER_WAY)
    await expect(bar).to_have_attribute("aria-valuemax", "100")
    await expect(page.locator("#frame .preview")).to_be_visible()
    await expect_picture(page)
    await expect(bar).to_be_hidden()
    await expect(page.get_by_role("status").filter(has_text="Finished in")).to_be_visible()
    assert "#task=" in page.url
    shown, told = await page.evaluate("[shown, told]")
    assert shown == sorted(shown)
    assert len(shown) >= 3
    assert {"Mixing the colours", "Painting the sky"} <= set(told)
    assert not any("%" in text for text in told)
    recent = page.get_by_role("region", name="Recent").get_by_role("link")
    await expect(recent).to_have_count(1)
    await expect(recent.get_by_role("img", name=PROMPT)).to_be_visible()
    assert "Finished" in str(told[-1])
    await page.reload()
    await expect_picture(page)
    assert len(seen.asked("/api/generate/events")) == 2, "one stream a load"
    assert seen.errors == []


async def test_a_blank_prompt_is_answered_in_place(deployment: Deployment, context: BrowserContext, seen: Seen) -> None:
    page = await context.new_page()
    await submit(page, deployment.web.url, "   ")
    await expect(page.get_by_role("alert")).to_have_text("Say what the picture is to show.")
    await expect(page.get_by_label("Prompt")).to_be_focused()
    await page.get_by_role("button", name="Cherry blossom over quiet hills").click()
    await expect(page.get_by_label("Prompt")).to_have_value("Cherry blossom over quiet hills")
    assert seen.errors == []


async def test_a_failure_says_why_and_can_be_tried_again(
    deployment: Deployment, context: BrowserContext, seen: Seen
) -> None:
    task_id = await create(deployment, simulate="refuse")
    page = await context.new_page()
    await page.goto(f"{deployment.web.url}/#task={task_id}")
    await expect(page.locator(".stage")).to_contain_text("refused")
    await expect(page.locator("#frame")).to_have_attribute("data-state", "failed")
    again = page.get_by_role("button", name="Try again")
    await again.focus()
    await page.keyboard.press("Enter")
    await page.wait_for_url(lambda url: task_id not in url)
    await expect(page.get_by_role("region", name="Recent").get_by_role("link")).to_have_count(2)
    await expect(again).to_be_visible()  # its parameters are the same, so it fails as well
    assert seen.errors == []


async def test_a_task_that_is_not_there(deployment: Deployment, context: BrowserContext, seen: Seen) -> None:
    page = await context.new_page()
    await page.goto(f"{deployment.web.url}/#task=no-such-task")
    await expect(page.locator(".stage")).to_contain_text("There is no such task")
    await submit(page, deployment.web.url)
    await expect_picture(page)
    assert len(seen.asked("taskId=no-such-task")) == 2, "its stream, and why that was closed"


async def test_all_tabs_share_one_stream_and_outlive_the_one_that_has_it(
    deployment: Deployment, context: BrowserContext, seen: Seen
) -> None:
    first = await context.new_page()
    await submit(first, deployment.web.url)
    await first.wait_for_url("**/#task=*")
    # One more than the connections that a browser opens to a host over HTTP/1.1.
    others = [await context.new_page() for _ in range(6)]
    for page in others:
        await page.goto(first.url)
    for page in [first, *others]:
        await expect_picture(page)
        await expect_connection(page, "EventSource")
    assert len(seen.asked("/api/generate/events")) == 1
    await first.close()
    task_id = await create(deployment, "An island in the ocean")
    for page in others[:2]:
        await page.goto(f"{deployment.web.url}/#task={task_id}")
        await expect_picture(page, "An island in the ocean")
    assert seen.errors == []


async def test_a_tab_that_has_the_stream_and_is_suspended(
    deployment: Deployment, context: BrowserContext, seen: Seen
) -> None:
    suspended = await context.new_page()
    await suspended.goto(f"{deployment.web.url}/docs")
    held = f"navigator.locks.request('taskbeam/{LOCAL_USER_ID}', () => new Promise(() => {{}}))"
    await suspended.evaluate(f"{held}.catch(() => {{}}), null")
    page = await context.new_page()
    await submit(page, deployment.web.url)
    await expect_connection(page, "EventSource")
    await expect_picture(page)
    assert seen.errors == []


async def test_a_restart_of_the_server_in_the_middle(
    deployment: Deployment, context: BrowserContext, browser_pages: list[Page]
) -> None:
    first, second = browser_pages
    await submit(first, deployment.web.url)
    await first.wait_for_url("**/#task=*")
    await second.goto(first.url)
    for page in browser_pages:
        await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", UNDER_WAY)
    deployment.web.stop()
    await deployment.web.start()
    for page in browser_pages:
        await expect_picture(page)
        await expect_connection(page, "EventSource")


@pytest.fixture
async def browser_pages(context: BrowserContext) -> list[Page]:
    """Two pages that share nothing, as on two machines."""
    assert context.browser is not None
    other = await context.browser.new_context()
    other.set_default_timeout(WAIT_MS_MAX)
    return [await context.new_page(), await other.new_page()]


async def test_without_event_streams_it_goes_over_websocket(
    deployment: Deployment, context: BrowserContext, seen: Seen
) -> None:
    page = await context.new_page()
    await page.route("**/api/generate/events**", lambda route: route.abort())
    await submit(page, deployment.web.url)
    await expect_connection(page, "WebSocket")
    await expect(page.locator("#connection")).to_have_text("Live over WebSocket")
    await expect_picture(page)
    assert not seen.asked("/api/generate/status")[2:], "it does not poll beside it"


async def test_without_streams_and_sockets_it_polls(
    deployment: Deployment, context: BrowserContext, seen: Seen
) -> None:
    page = await context.new_page()
    await page.route("**/api/generate/events**", lambda route: route.abort())
    await page.route_web_socket("**/api/generate/ws", _close)
    await submit(page, deployment.web.url)
    await expect_connection(page, "polling")
    await expect_picture(page)
    assert any("wait=" in url for url in seen.asked("/api/generate/status")) or seen.asked("limit=50")


async def _close(socket: WebSocketRoute) -> None:
    await socket.close()


async def test_it_fits_small_screens(deployment: Deployment, context: BrowserContext, seen: Seen) -> None:
    await create(deployment, "x" * 300, simulate="refuse")
    page = await context.new_page()
    for width in (320, 390, 768):
        await page.set_viewport_size({"width": width, "height": 800})
        for path in ("/", "/docs"):
            await page.goto(f"{deployment.web.url}{path}")
            await expect(page.locator(".tile, #problems")).to_have_count(1)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.errors == []
