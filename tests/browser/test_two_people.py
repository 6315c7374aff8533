"""Two people at one browser, one after the other: neither sees what is the other's, in whichever tab."""

import re

import pytest
from playwright.async_api import BrowserContext, Locator, Page, ViewportSize, expect

from tests.browser.conftest import WAIT_MS_MAX, Seen
from tests.browser.test_session import sign_in
from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.identity.conftest import SIGN_IN
from tests.identity.tokens import Person

pytestmark = pytest.mark.browser
expect.set_options(timeout=WAIT_MS_MAX)

PHONE: ViewportSize = {"width": 390, "height": 800}
REST_MS = 1_500
# A tab that is not told what the others do: it slept meanwhile.
DEAF = """
const Real = BroadcastChannel;
globalThis.BroadcastChannel = class extends Real {
  set onmessage(hear) { if (this.name !== 'taskbeam/session') super.onmessage = hear; }
};
"""
LINES = """header => {
  const middles = [...header.children].filter((part) => part.offsetParent).map((part) => {
    const { top, bottom } = part.getBoundingClientRect();
    return (top + bottom) / 2;
  });
  const lines = middles.filter((middle, n) => middles.findIndex((other) => Math.abs(other - middle) < 12) === n);
  return [lines.length, document.documentElement.scrollWidth];
}"""


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    """Without a generator: its tasks stay as they are."""
    return await deploy(env=SIGN_IN, dispatchers=0, generator=False)


async def create(here: Deployment, person: Person, prompt: str) -> str:
    async with here.client() as client:
        answer = await client.post("/api/generate", json={"prompt": prompt}, headers=person.headers())
        answer.raise_for_status()
        task_id: str = answer.json()["taskId"]
        return task_id


async def opened(context: BrowserContext, url: str, script: str = "") -> Page:
    page = await context.new_page()
    if script:
        await page.add_init_script(script)
    await page.goto(url)
    return page


def of(page: Page, prompt: str) -> Locator:
    """A task where either page lists it."""
    return page.locator(f".grid .tile[title='{prompt}'], td .open:text-is('{prompt}')")


async def expect_signed_in(page: Page, person: Person) -> None:
    await expect(page.locator("#session .who")).to_contain_text(person.id[:8])
    await expect(page.locator("#connection")).to_have_attribute("data-phase", "live")


async def leave(page: Page) -> None:
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.locator("#session .who")).to_have_text("Not signed in")


async def test_one_leaves_and_another_comes(here: Deployment, context: BrowserContext) -> None:
    one, two = Person(), Person()
    studio, other, board = [await opened(context, here.web.url + path) for path in ("/", "/", "/dashboard")]
    await sign_in(studio, one.token())
    for page in (studio, other, board):  # each knows it at once, and none had to be looked at
        await expect_signed_in(page, one)
    await create(here, one, "A fox")
    for page in (studio, other, board):
        await expect(of(page, "A fox")).to_be_visible()
    await leave(other)
    for page in (studio, board):
        await expect(page.locator("#session .who")).to_have_text("Not signed in")
        await expect(of(page, "A fox")).to_have_count(0)
    await sign_in(other, two.token())
    for page in (studio, other, board):
        await expect_signed_in(page, two)
    await create(here, one, "A secret")
    await create(here, two, "An island")
    for page in (studio, other, board):
        await expect(of(page, "An island")).to_be_visible()
        await expect(of(page, "A secret")).to_have_count(0)
        await expect(of(page, "A fox")).to_have_count(0)


async def test_a_tab_that_was_not_told(here: Deployment, context: BrowserContext) -> None:
    one, two = Person(), Person()
    old = await opened(context, here.web.url, DEAF)
    await sign_in(old, one.token())
    await expect_signed_in(old, one)
    new = await opened(context, here.web.url)
    await expect_signed_in(new, one)
    await leave(new)
    await sign_in(new, two.token())
    await expect_signed_in(new, two)
    await create(here, one, "A secret")
    await create(here, two, "An island")
    await expect(of(old, "A secret")).to_be_visible()  # its stream is his until it ends
    await expect(of(new, "An island")).to_be_visible()
    await expect(of(new, "A secret")).to_have_count(0)
    await expect(of(old, "An island")).to_have_count(0)
    await old.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect_signed_in(old, two)
    await expect(of(old, "An island")).to_be_visible()
    await expect(of(old, "A secret")).to_have_count(0)


async def test_nobody_asks_nothing_and_keeps_what_he_types(
    here: Deployment, context: BrowserContext, seen: Seen
) -> None:
    person = Person()
    task_id = await create(here, person, "A fox")
    page, board = [await opened(context, f"{here.web.url}{path}#task={task_id}") for path in ("/", "/dashboard")]
    await page.wait_for_timeout(REST_MS)
    for each in (page, board):
        await expect(each.locator("#connection")).to_have_text("Not connected")
    await expect(board.locator("#extent")).to_have_text("Sign in to see your tasks.")
    assert [re.sub(r".*(?=/api/)", "", url) for url in seen.asked("/api/")] == ["/api/session"] * 2
    assert seen.asked("/healthz") == []

    await page.bring_to_front()
    await page.set_viewport_size(PHONE)
    dialog, prompt = page.get_by_role("dialog", name="Sign in"), page.get_by_label("Prompt")
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    assert await page.locator("header").evaluate(LINES) == [2, PHONE["width"]]
    await prompt.fill("Moonlight on a lake")
    await page.get_by_role("button", name="Generate").click()
    await expect(dialog).to_be_visible()
    assert seen.asked("/api/generate") == []
    operator = person.token(app_metadata={"roles": ["operator"]})
    await sign_in(page, f"Bearer {operator}")
    await expect_signed_in(page, person)
    await expect(prompt).to_have_value("Moonlight on a lake")
    assert await page.locator("header").evaluate(LINES) == [2, PHONE["width"]]
    await expect(page.locator("#task .prompt")).to_have_text("A fox")  # what the address names is his

    await leave(page)
    await sign_in(page, Person().token())
    await expect(page.locator("#session .leave")).to_be_visible()
    await expect(page.locator("#connection")).to_have_attribute("data-phase", "live")
    await expect(page.get_by_text("There is no such task")).to_have_count(0)
    assert page.url == f"{here.web.url}/"
    await expect(prompt).to_have_value("")
