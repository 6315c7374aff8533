"""From polling to push, in a browser: the app of docs/example/ before the change, over it, and back.

Next.js is built and started as in production; QStash is our dispatcher, and Supabase a stand-in on a database set up
as theirs (supabase.py). A second of the app's is a tenth of one here (conftest.py).
"""

from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.conftest import WAIT_MS_MAX, Seen, browser, context, seen  # noqa: F401  (fixtures)
from tests.example.conftest import ADA, BEN, SLOW, World
from tests.example.supabase import Person
from tests.receiver import until

pytestmark = [pytest.mark.browser, pytest.mark.parametrize("supabase_cluster", [18], indirect=True)]
expect.set_options(timeout=WAIT_MS_MAX)

ATTEMPTS = 20
TIMED_OUT = "The generation timed out"
FOLLOW = """(taskId) => new Promise((resolve, reject) => {
  const source = new EventSource('/api/generate/events?taskId=' + taskId);
  source.addEventListener('status', ({ data }) => {
    const task = JSON.parse(data);
    if (task.status === 'completed') { source.close(); resolve(task.result); }
  });
  source.onerror = () => source.readyState === EventSource.CLOSED && reject(new Error('closed'));
})"""
ASK = """async ([path, body]) => {
  const headers = { 'Content-Type': 'application/json' };
  const answer = await fetch(path, body ? { method: 'POST', headers, body: JSON.stringify(body) } : {});
  return [answer.status, await answer.json()];
}"""


async def sign_in(page: Page, url: str, person: Person) -> None:
    await page.goto(url)
    await page.get_by_label("E-mail").fill(person.email)
    await page.get_by_label("Password").fill(person.password)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Pictures")).to_be_visible()


async def generate(page: Page, prompt: str) -> None:
    await page.get_by_label("Prompt").fill(prompt)
    await page.get_by_role("button", name="Generate").click()


async def expect_picture(page: Page) -> None:
    await page.wait_for_function("document.querySelector('img')?.naturalWidth === 64")


async def ask(page: Page, path: str, body: Any = None) -> tuple[int, Any]:
    status, content = await page.evaluate(ASK, [path, body])
    return status, content


async def test_from_polling_to_push(world: World, context: BrowserContext, seen: Seen) -> None:  # noqa: F811
    await world.polling.start()
    page = await context.new_page()
    await sign_in(page, world.polling.url, ADA)
    await generate(page, SLOW)
    await expect(page.get_by_text(TIMED_OUT)).to_be_visible()
    assert len(seen.asked("/generate/status")) == ATTEMPTS
    world.images.gate.set()

    async def is_made() -> bool:
        async with world.project.connect() as postgres:
            statement = "select exists (select from image_generations where prompt = $1 and result is not null)"
            return bool(await postgres.fetchval(statement, SLOW))

    await until(is_made, "the picture that the page gave up")
    await expect(page.get_by_text(TIMED_OUT)).to_be_visible()

    await world.adopt()
    await world.pushed.start()
    seen.requests.clear()
    await page.goto(world.pushed.url)  # still signed in
    await generate(page, SLOW)
    await expect(page.get_by_role("status")).to_have_text("pending")
    await expect_picture(page)
    (events,) = seen.asked("/api/generate/events")
    assert not seen.asked("status")
    task_id = events.partition("taskId=")[2].partition("&")[0]

    # The rows from before are there, in the app's own list and in ours.
    await page.reload()
    earlier = page.get_by_role("listitem")
    await expect(earlier).to_have_text([SLOW, SLOW, "an old picture"])
    _, mine = await ask(page, "/api/generate")
    assert [task["prompt"] for task in mine["tasks"]] == [SLOW, SLOW, "an old picture"]

    # The old status route knows the new task, and what is still begun the old way is pushed too.
    assert (await ask(page, f"/generate/status?taskId={task_id}"))[1]["status"] == "completed"
    _, begun = await ask(page, "/generate", {"prompt": "begun the old way"})
    assert (await page.evaluate(FOLLOW, begun["taskId"])).endswith("/picture.png")

    # Somebody else sees none of it.
    assert context.browser is not None
    other = await (await context.browser.new_context()).new_page()
    await sign_in(other, world.pushed.url, BEN)
    await expect(other.get_by_role("listitem")).to_have_count(0)
    assert (await ask(other, "/api/generate"))[1]["tasks"] == []
    assert (await ask(other, f"/api/generate/status?taskId={task_id}"))[0] == 404
    assert (await ask(other, f"/generate/status?taskId={task_id}"))[0] == 404
    await generate(other, "one of Ben's")
    await expect_picture(other)

    # A session past its time is renewed by the app's proxy.js before the request is passed on.
    expired = world.supabase.expired_cookie(BEN)
    await other.context.add_cookies([{"name": world.supabase.cookie, "value": expired, "url": world.pushed.url}])
    status, his = await ask(other, "/api/generate")
    assert (status, [task["prompt"] for task in his["tasks"]]) == (200, ["one of Ben's"])

    # And back: the app from before, over the table as it is now.
    await page.goto(world.polling.url)
    await generate(page, "back again")
    await expect_picture(page)
    assert seen.errors == []
