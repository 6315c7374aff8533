"""The dashboard as people have it: Chromium against real processes."""

import re

import pytest
from playwright.async_api import BrowserContext, expect

from tests.browser.conftest import WAIT_MS_MAX, Seen
from tests.browser.test_page import create
from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.playing import Play

pytestmark = pytest.mark.browser
expect.set_options(timeout=WAIT_MS_MAX)


async def test_tasks_come_live_and_one_is_looked_into(
    deployment: Deployment, context: BrowserContext, seen: Seen
) -> None:
    sockets: list[str] = []
    page = await context.new_page()
    page.on("websocket", lambda socket: sockets.append(socket.url))
    await page.goto(deployment.web.url)
    await page.get_by_role("link", name="Dashboard").click()
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.get_by_text("These are all of your tasks.")).to_be_visible()
    before = len(seen.asked("/api/generate/events"))

    await create(deployment, "A fox in the snow")
    await create(deployment, "A harbour at dawn", simulate="refuse")
    table = page.get_by_role("table", name="Tasks")
    fox = table.get_by_role("row", name=re.compile("A fox in the snow"))
    await expect(fox).to_contain_text("In progress")
    await expect(fox).to_contain_text(re.compile(r"[1-9]\d? %"))
    await expect(fox).to_contain_text("Finished")
    await expect(table.get_by_role("row", name=re.compile("A harbour at dawn"))).to_contain_text("Failed")
    await expect(page.get_by_role("button", name="2 All", exact=True)).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#latency [data-figure=p50]")).to_have_text(re.compile(r"^[12]\.\d s$"))
    await expect(page.locator("#rates path.completed")).to_have_attribute("d", re.compile("^M"))
    assert len(seen.asked("/api/generate/events")) == before, "it is all on the socket"

    opener = fox.get_by_role("button")
    await opener.focus()
    await page.keyboard.press("Enter")
    drawer = page.get_by_role("dialog", name="A fox in the snow")
    steps = drawer.locator(".steps").first.get_by_role("listitem")
    await expect(steps.first).to_contain_text("Accepted")
    await expect(steps.nth(1)).to_contain_text("Started")
    await expect(steps.last).to_contain_text("Finished")
    assert await steps.count() > 3, "what was seen of the way"
    await expect(drawer.get_by_role("img", name="A fox in the snow")).to_be_visible()
    said = drawer.get_by_role("region", name="Deliveries").get_by_role("listitem")
    await expect(said).to_have_text([re.compile(r"Callback applied, delivery 1, HTTP 200\+[12]\.\d s")])
    await create(deployment, "An island in the fog", simulate="refuse")
    await expect(page.locator(".counts [data-status=failed] .count")).to_have_text("2")
    await page.keyboard.press("Escape")
    await expect(drawer).to_be_hidden()
    await expect(opener).to_be_focused()
    assert "#" not in page.url
    assert len(sockets) == 1, "the first page has none"
    assert seen.errors == []

    # Somebody is sent the address: that page has seen nothing, so the log is all it has.
    task_id = seen.asked("taskId=")[-1].split("taskId=")[1].split("&")[0]
    sent = await context.new_page()
    await sent.goto(f"{deployment.web.url}/dashboard#task={task_id}")
    replayed = sent.locator("#task .steps").first.get_by_role("listitem")
    await expect(replayed).to_contain_text(["Accepted", "Started", "Finished"])
    assert "after=1" in seen.asked(f"events?taskId={task_id}")[-1]
    await sent.goto(f"{deployment.web.url}/dashboard#task=none")
    await expect(sent.get_by_role("dialog").get_by_role("status")).to_contain_text("There is no such task")


async def test_filters_order_and_small_screens(deployment: Deployment, context: BrowserContext, seen: Seen) -> None:
    for prompt in ("One red fox", "Two red foxes", "A blue whale"):
        await create(deployment, prompt, simulate="refuse")
    page = await context.new_page()
    await page.goto(f"{deployment.web.url}/dashboard?q=fox")
    rows = page.locator("tbody tr:visible")
    await expect(rows).to_contain_text(["Two red foxes", "One red fox"])
    created = page.get_by_role("columnheader", name="Created")
    await expect(created).to_have_attribute("aria-sort", "descending")
    await created.get_by_role("button").click()
    await expect(created).to_have_attribute("aria-sort", "ascending")
    await expect(rows).to_contain_text(["One red fox", "Two red foxes"])
    await page.get_by_role("button", name=re.compile("Finished")).click()
    await expect(page.get_by_text("No task matches.")).to_be_visible()
    await expect(page.get_by_role("status").first).to_have_text("0 tasks match")
    await page.get_by_role("button", name=re.compile("Failed")).click()
    await page.keyboard.press("/")
    await expect(page.get_by_role("searchbox", name="Text in the prompt")).to_be_focused()
    await page.keyboard.press("Control+A")
    await page.keyboard.type("WHALE")
    await expect(rows).to_contain_text(["A blue whale"])
    await page.reload()
    await expect(rows).to_contain_text(["A blue whale"])
    assert page.url.endswith("?status=failed&q=WHALE")

    await create(deployment, "x" * 300, simulate="refuse")
    await page.goto(f"{deployment.web.url}/dashboard?q=xxx")
    for width in (320, 390, 768):
        await page.set_viewport_size({"width": width, "height": 800})
        await expect(rows).to_have_count(1)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await rows.get_by_role("button").click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await page.locator(".drawer").evaluate("drawer => drawer.scrollWidth <= drawer.clientWidth")
        await page.get_by_role("button", name="Close").click()
    assert seen.errors == []


async def test_the_ledger_of_a_task_grows_while_it_is_looked_at(
    deploy: Deploy, context: BrowserContext, seen: Seen
) -> None:
    here = await deploy(dispatchers=0, generator=False)
    play = await Play.of(here)
    task_id, other = await play.create(), await play.create("an island")
    await context.route("https://example.com/**", lambda route: route.fulfill(status=200))  # its picture
    page = await context.new_page()
    await page.goto(f"{here.web.url}/dashboard#task={task_id}")
    ledger = page.get_by_role("region", name="Deliveries")
    said = ledger.get_by_role("listitem")
    await expect(page.locator("#task .steps").first).to_contain_text("Accepted")
    await expect(ledger).to_be_hidden()
    await play.report(task_id, status="failed", error="no paint")
    await expect(said).to_contain_text(["Report applied, delivery 1"])
    await play.finish(task_id)  # too late, and kept
    async with here.client() as client:
        await client.post(f"/api/generate/retry?taskId={task_id}")
    await expect(said).to_contain_text(["Report applied, delivery 1", "Callback too late, delivery 4, HTTP 200"])
    assert await said.last.get_attribute("data-outcome") == "stale"
    await page.goto(f"{here.web.url}/dashboard#task={other}")
    await expect(page.get_by_role("dialog", name="an island")).to_be_visible()
    await expect(ledger).to_be_hidden()
    assert seen.errors == []
