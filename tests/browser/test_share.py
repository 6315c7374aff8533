"""share(): any number of follow() over one stream, against a server that says what the test wants."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.browser.scripted import SYNC, Request, Scripted, frame, scripted, task

pytestmark = pytest.mark.browser

BEGIN = """async () => {
  const { share } = await import('/static/share.js');
  window.page = share();
  window.versions = {}; window.outcomes = {}; window.states = {}; window.handles = {};
  window.begin = (id, options = {}) => {
    versions[id] = []; states[id] = [];
    handles[id] = page.follow(id, {
      ...options,
      onUpdate: (task) => versions[id].push(task.version), onState: ({phase}) => states[id].push(phase),
    });
    handles[id].done
      .then((task) => task.status, (error) => error.status ?? error.name)
      .then((outcome) => (outcomes[id] = outcome));
  };
}"""


def news(task_id: str, version: int, status: str, cursor: int) -> str:
    return frame("status", {**task(version, status), "taskId": task_id}, f"s{cursor}")


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest.fixture
async def page(context: BrowserContext, server: Scripted) -> Page:
    page = await context.new_page()
    await page.goto(server.url)
    await page.evaluate(BEGIN)
    return page


async def test_many_tasks_over_one_stream(page: Page, server: Scripted) -> None:
    known: dict[str, dict[str, Any]] = {
        "old": task(7, "completed"),  # too old for the stream to begin with
        "open": task(2),
        "next": task(1, "pending"),
    }

    async def events(request: Request) -> None:
        if request.cursor is None:
            await request.stream(SYNC, news("open", 3, "processing", 11), news("foreign", 9, "completed", 12))
        else:
            await request.stream(SYNC, news("next", 2, "processing", 13), news("open", 4, "failed", 14), hold=True)

    async def status(request: Request) -> None:
        found = known.get(request.query["taskId"])
        await (request.json({**found, "taskId": request.query["taskId"]}) if found else request.problem(404, "none"))

    server.handlers.update(events=events, status=status)
    await page.evaluate("for (const id of ['old', 'open', 'next', 'gone']) begin(id)")
    await page.wait_for_function("outcomes.open && versions.next.at(-1) === 2")
    assert await page.evaluate("outcomes") == {"old": "completed", "open": "failed", "gone": 404}
    seen = await page.evaluate("versions")
    assert (seen["old"], seen["open"][-2:], seen["next"][-1], seen["gone"]) == ([7], [3, 4], 2, [])
    assert (await page.evaluate("states.gone"))[-1] == "failed"
    assert [request.cursor for request in server.to("events")] == [None, "s12"], "one stream, and again after its end"
    assert "taskId" not in server.to("events")[0].query

    await page.evaluate("begin('old', {after: 7}), begin('open')")
    await page.wait_for_function("outcomes.open && states.old.at(-1) === 'ended'")
    assert (await page.evaluate("versions"))["old"] == []
    assert len(server.to("events")) == 2, "one more task opens nothing"

    await page.evaluate("handles.open.close(), handles.next.close()")
    await page.wait_for_function("outcomes.next === 'AbortError'")
    asked = len(server.asked)
    await page.evaluate(
        "document.dispatchEvent(new Event('visibilitychange')); window.dispatchEvent(new Event('online'))"
    )
    await page.wait_for_timeout(300)
    assert len(server.asked) == asked, "with the last task the stream is closed"
    await page.evaluate("begin('again')")
    await page.wait_for_function("states.again.length > 0")
    assert len(server.to("events")) == 3


async def test_a_task_that_polling_does_not_list(page: Page, server: Scripted) -> None:
    async def no_stream(request: Request) -> None:
        await request.answer(403)

    async def listed(request: Request) -> None:
        await request.json({"tasks": []})

    async def status(request: Request) -> None:
        version = len(server.to("status"))
        await request.json({**task(version, "completed" if version > 2 else "processing"), "taskId": "old"})

    server.handlers.update(events=no_stream, generate=listed, status=status)
    await page.clock.install()
    await page.evaluate("begin('old')")
    while not await page.evaluate("outcomes.old"):
        await page.clock.run_for(1_000)
    assert await page.evaluate("versions.old") == [1, 2, 3]


async def test_a_task_that_is_deleted_ends_alone(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        gone = frame("deleted", {"taskId": "gone"})
        await request.stream(SYNC, news("gone", 2, "processing", 1), gone, news("kept", 3, "processing", 2), hold=True)

    async def status(request: Request) -> None:
        await request.problem(503, "unavailable")  # not asked for what is known

    server.handlers.update(events=events, status=status)
    await page.evaluate("begin('gone'), begin('kept')")
    await page.wait_for_function("outcomes.gone && versions.kept.length")
    assert await page.evaluate("outcomes") == {"gone": 404}
    assert await page.evaluate("handles.gone.done.catch(({code}) => code)") == "task_not_found"
    assert (await page.evaluate("states.gone"))[-2:] == ["live", "failed"]
    assert (await page.evaluate("states.kept"))[-1] == "live"
