"""Deleting in the pages as people have them: Chromium against real processes."""

import re

import pytest
from playwright.async_api import BrowserContext, Locator, Page, expect

from tests.browser.conftest import WAIT_MS_MAX, Seen
from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.playing import Play

pytestmark = pytest.mark.browser
expect.set_options(timeout=WAIT_MS_MAX)

REFUSED = 500
DELETE = re.compile("^Delete$")


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    """Nothing ends by itself."""
    return await deploy(dispatchers=0, generator=False)


def tiles(page: Page) -> Locator:
    return page.get_by_role("region", name="Recent").get_by_role("link")


async def test_a_task_goes_from_every_page_that_shows_it(
    here: Deployment, context: BrowserContext, seen: Seen
) -> None:
    play = await Play.of(here)
    await play.create("A harbour at dawn")
    task_id = await play.create("A fox in the snow")
    await play.finish(task_id, status=REFUSED)
    assert context.browser is not None
    elsewhere = await (await context.browser.new_context()).new_page()
    page, other_tab = await context.new_page(), await context.new_page()
    for one in (page, other_tab, elsewhere):
        await one.goto(f"{here.web.url}/#task={task_id}")
        await expect(tiles(one)).to_have_count(2)
    assert len(seen.asked("/api/generate/events")) == 1, "the other tab is told by this one"

    ask = page.locator("#task").get_by_role("button", name=DELETE)
    question = page.get_by_role("alertdialog", name="Delete this task?")
    await ask.focus()
    await page.keyboard.press("Enter")
    await expect(question).to_contain_text("A fox in the snow")
    await expect(question.get_by_role("button", name="Keep it")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(question).to_be_hidden()
    await expect(ask).to_be_focused()
    await expect(tiles(page)).to_have_count(2)
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(question).to_be_hidden()
    for one in (page, other_tab, elsewhere):
        await expect(tiles(one)).to_have_count(1)
        await expect(one.locator(".stage")).to_have_text("The task was deleted.")
        await expect(one.locator("#frame")).to_have_attribute("data-state", "empty")
        await expect(one.locator("#task").get_by_role("button", name="Delete")).to_be_hidden()
        assert "#" not in one.url
    await expect(page.locator("#task")).to_be_focused()
    assert seen.errors == []

    # What is running is cancelled first; it is asked while it may still end.
    running = await play.create("An island in the fog")
    await page.goto(f"{here.web.url}/#task={running}")
    await page.get_by_role("button", name="Cancel and delete").click()
    await expect(question).to_contain_text("It is cancelled first.")
    await page.route("**/api/generate?taskId=*", lambda route: route.abort())
    await question.get_by_role("button", name="delete").click()
    await expect(question.get_by_role("alert")).to_contain_text("The server cannot be reached")
    await play.finish(running, status=REFUSED)
    await expect(question.get_by_role("button", name=DELETE)).to_be_visible()
    await expect(question).not_to_contain_text("It is cancelled first.")
    # Somebody else was faster: it is what one wanted.
    await page.route(
        "**/api/generate?taskId=*", lambda route: route.fulfill(status=404, json={"code": "task_not_found"})
    )
    await question.get_by_role("button", name=DELETE).click()
    await expect(question).to_be_hidden()
    await expect(tiles(page)).to_have_count(1)
    await expect(tiles(other_tab)).to_have_count(2)


async def test_what_went_while_nobody_looked(here: Deployment, context: BrowserContext) -> None:
    """Without any stream: a tab that comes back reads the list, and lets go of what is missing in it."""
    play = await Play.of(here)
    task_ids = [await play.create(f"Picture {n}") for n in range(3)]
    page = await context.new_page()
    for pattern in ("**/api/generate/events**", "**/api/generate?limit=50"):
        await page.route(pattern, lambda route: route.abort())
    await page.clock.install()
    await page.goto(f"{here.web.url}/#task={task_ids[0]}")
    await expect(tiles(page)).to_have_count(3)
    async with here.client() as client:
        await client.delete(f"/api/generate?taskId={task_ids[0]}")
    for state, seconds in (("hidden", 25), ("visible", 0)):
        await page.evaluate(
            """(state) => {
              Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
              document.dispatchEvent(new Event('visibilitychange'));
            }""",
            state,
        )
        await page.clock.fast_forward(seconds * 1_000)
    await expect(tiles(page)).to_have_count(2)
    await expect(page.locator(".stage")).to_have_text("The task was deleted.")


async def test_the_dashboard_and_its_drawer(here: Deployment, context: BrowserContext, seen: Seen) -> None:
    play = await Play.of(here)
    tasks = [await play.create(f"Picture {n}") for n in range(4)]
    for task_id in tasks[:3]:
        await play.finish(task_id, status=REFUSED)
    page = await context.new_page()
    await page.goto(f"{here.web.url}/dashboard")
    count = page.locator(".counts [data-status=''] .count")
    rows = page.locator("tbody tr:visible")
    await expect(count).to_have_text("4")
    await expect(rows).to_have_count(4)

    await rows.filter(has_text="Picture 3").get_by_role("button").click()
    drawer = page.get_by_role("dialog", name="Picture 3")
    await drawer.get_by_role("button", name="Cancel and delete").click()
    await page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    await expect(page.locator("dialog:visible")).to_have_count(0)
    await expect(page.locator("#tasks")).to_be_focused()
    await expect(page.locator("#said")).to_have_text("The task was deleted.")
    assert "#" not in page.url
    await page.mouse.move(0, 0)
    await expect(rows).to_have_count(3)
    await expect(count).to_have_text("3")

    # Deleted elsewhere, while one looks at it and is about to delete it oneself.
    await rows.filter(has_text="Picture 2").get_by_role("button").click()
    await page.locator(".drawer").get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("alertdialog")).to_be_visible()
    async with here.client() as client:
        for task_id in tasks[1:3]:
            assert (await client.delete(f"/api/generate?taskId={task_id}")).status_code == 200
    await expect(page.get_by_role("alertdialog")).to_be_hidden()
    await expect(count).to_have_text("1")
    await expect(page.locator(".drawer").get_by_role("status")).to_have_text("This task was deleted.")
    await expect(page.locator(".drawer .known")).to_be_hidden()
    await expect(page.get_by_role("button", name="Close")).to_be_focused()
    await page.keyboard.press("Escape")
    await page.mouse.move(0, 0)
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("Picture 0")
    # What it was just asking about the task may have been answered with 404, which a browser says aloud by itself.
    assert [error for error in seen.errors if "404 (Not Found)" not in error] == []
