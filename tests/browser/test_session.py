"""Sign-in in the pages: who is asked for an access token, when, and what he sees of it."""

import re
import time

import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.conftest import WAIT_MS_MAX, Seen
from tests.browser.test_page import expect_picture
from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.identity.conftest import SIGN_IN
from tests.identity.tokens import Person

pytestmark = pytest.mark.browser
expect.set_options(timeout=WAIT_MS_MAX)

PAGES = ("/", "/dashboard")


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    return await deploy(env=SIGN_IN)


async def sign_in(page: Page, token: str) -> None:
    dialog = page.get_by_role("dialog", name="Sign in")
    await dialog.get_by_label("Access token").fill(token)
    await page.keyboard.press("Enter")


@pytest.mark.parametrize("path", PAGES)
async def test_who_is_not_signed_in_is_asked(here: Deployment, context: BrowserContext, path: str) -> None:
    person = Person()
    async with here.client() as client:
        answer = await client.post("/api/generate", json={"prompt": "A fox"}, headers=person.headers())
        assert answer.status_code == 202
    page = await context.new_page()
    await page.goto(here.web.url + path)
    dialog, place = page.get_by_role("dialog", name="Sign in"), page.locator("#session")
    await expect(dialog).to_contain_text("Sign in to see your tasks.")
    await expect(place).to_contain_text("Not signed in")
    await sign_in(page, person.token(exp=1))
    await expect(dialog.get_by_role("alert")).to_have_text("The token has expired")
    await page.keyboard.press("Escape")
    await page.evaluate("dispatchEvent(new Event('online'))")
    await page.wait_for_timeout(500)
    await expect(dialog).to_be_hidden()  # it does not come back by itself
    await place.get_by_role("button", name="Sign in").click()
    await sign_in(page, person.token())
    await expect(place).to_contain_text(f"Signed in as {person.id[:8]}…")
    await expect(dialog).to_be_hidden()
    await expect(page.locator("#connection")).to_have_attribute("data-phase", "live")
    await expect(page.get_by_text("A fox").first if path != "/" else page.locator(".grid li")).to_be_visible()
    assert await page.evaluate("document.cookie") == "", "no script reads it"
    await place.get_by_role("button", name="Sign out").click()
    await expect(dialog).to_be_visible()
    await expect(page.get_by_text("A fox")).to_have_count(0)
    assert await context.cookies() == []


async def test_who_is_asked_again_goes_on_where_he_was(here: Deployment, context: BrowserContext) -> None:
    person = Person()
    page = await context.new_page()
    await page.goto(here.web.url)
    await sign_in(page, person.token(exp=int(time.time()) + 40))
    await expect(page.locator("#session")).to_contain_text("Signed in")
    await page.get_by_label("Prompt").fill("Moonlight on a lake between pines")
    await context.clear_cookies()  # as when it has ended
    await page.keyboard.press("Control+Enter")
    dialog = page.get_by_role("dialog", name="Sign in")
    await expect(dialog).to_contain_text("Your access token has expired")
    await sign_in(page, person.token())
    await expect(dialog).to_be_hidden()
    await page.get_by_label("Prompt").press("Control+Enter")
    await expect_picture(page)
    # Another user sees nothing of his.
    await context.clear_cookies()
    await page.evaluate("dispatchEvent(new Event('online'))")
    await expect(dialog).to_be_visible()
    await sign_in(page, Person().token())
    await expect(page.locator("#session")).not_to_contain_text(person.id[:8])
    await expect(page.locator("#recent")).to_be_hidden()


async def test_at_the_end_of_a_token_a_page_that_rests_asks(here: Deployment, context: BrowserContext) -> None:
    person = Person()
    page = await context.new_page()
    await page.clock.install()
    await page.goto(f"{here.web.url}/dashboard")
    await sign_in(page, person.token(exp=int(time.time()) + 600))
    await expect(page.locator("#session")).to_contain_text("Signed in")
    dialog = page.get_by_role("dialog", name="Sign in")
    await page.clock.fast_forward(590_000)
    await expect(dialog).to_be_hidden()
    await context.clear_cookies()
    await page.clock.fast_forward(20_000)
    await expect(dialog).to_contain_text("Your access token has expired")
    await expect(page.locator("#connection")).to_have_text("Not connected")  # the socket is closed, and none tried


@pytest.mark.parametrize("path", PAGES)
async def test_without_sign_in_nothing_of_it_is_seen(
    deploy: Deploy, context: BrowserContext, seen: Seen, path: str
) -> None:
    here = await deploy(dispatchers=0, generator=False)
    page = await context.new_page()
    await page.goto(here.web.url + path)
    await expect(page.locator("#connection")).to_have_text(re.compile("^Live"))
    assert len(seen.asked("/api/session")) == 1
    await expect(page.locator("#session")).to_be_hidden()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert seen.errors == []
