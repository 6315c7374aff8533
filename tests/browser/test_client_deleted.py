"""What the client makes of a deleted task, on every transport, against a server that says what the test wants."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.browser.scripted import SYNC, Request, Scripted, change, frame, scripted, task

pytestmark = pytest.mark.browser

SECONDS_MAX = 20
PUSHING = ["EventSource", "fetch", "WebSocket"]
GONE = {"status": 404, "code": "task_not_found", "detail": "There is no such task"}
SAY = """
  const say = ({via, phase, problem}) => states.push([via, phase, problem?.code].filter(Boolean).join(' '));
  window.states = []; window.versions = []; window.outcome = null; window.deleted = [];
  const hooks = {
    onState: say,
    onUpdate: ({taskId, version}) => versions.push(`${taskId} ${version}`),
    onDeleted: (taskId) => deleted.push(taskId),
  };
"""
FOLLOW = """async (via) => {
  const { follow, parts: { Following, OneTask, Server, WEBSOCKET } } = await import('/static/client.js');
  %s
  const options = { ...hooks, ...(via === 'EventSource' ? {} : { getToken: () => 'mine' }) };
  const { done } = via === 'WebSocket'
    ? new Following(new OneTask('t', 0, new Server(options)), options, [WEBSOCKET])
    : follow('t', options);
  done.then(({status}) => (outcome = status), (error) => (outcome = `${error.name} ${error.code} ${error.message}`));
}""" % SAY  # noqa: UP031  (braces belong to the script)
FOLLOW_ALL = """async (via) => {
  const { followAll, followAllBySocket } = await import('/static/all.js');
  %s
  const options = via === 'EventSource' ? hooks : { ...hooks, getToken: () => 'mine' };
  window.handle = (via === 'WebSocket' ? followAllBySocket : followAll)(options);
}""" % SAY  # noqa: UP031


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest.fixture
async def page(context: BrowserContext, server: Scripted) -> Page:
    page = await context.new_page()
    await page.goto(server.url)
    return page


def snapshot(task_id: str, version: int, status: str = "processing", second: int = 0) -> dict[str, Any]:
    return {**task(version, status), "taskId": task_id, "createdAt": f"2026-01-01T00:00:{second:02}Z"}


def news(task_id: str, version: int, status: str = "processing", second: int = 0) -> str:
    return frame("status", snapshot(task_id, version, status, second), f"s{version}")


async def pass_until(page: Page, condition: str) -> None:
    """Let the page's time pass."""
    async with asyncio.timeout(SECONDS_MAX):
        while not await page.evaluate(condition):
            await page.clock.run_for(500)


async def subscribed(request: Request, *messages: Any) -> None:
    socket = request.upgrade()
    await socket.hear()
    await socket.say({"type": "subscribed", "taskIds": [], "sync": {}}, *messages)
    while True:
        await socket.hear()


async def test_a_followed_task_is_deleted(page: Page, server: Scripted) -> None:
    """It is the end at once: no reconnect has to fail first, and nothing is said that is not so."""

    async def events(request: Request) -> None:
        await request.stream(SYNC, change(2), frame("refused", GONE), hold=True)

    async def socket(request: Request) -> None:
        news = {"type": "progress", "task": task(2), "cursor": "2"}
        await subscribed(request, news, {"type": "refused", "taskIds": ["t"], "problem": GONE})

    server.handlers.update(events=events, ws=socket)
    for asked, via in enumerate(PUSHING, 1):
        await page.evaluate(FOLLOW, via)
        await page.wait_for_function("outcome !== null")
        assert await page.evaluate("outcome") == "Problem task_not_found There is no such task"
        assert await page.evaluate("versions") == ["t 2"]
        assert await page.evaluate("states") == [f"{via} connecting", f"{via} live", f"{via} failed task_not_found"]
        await page.wait_for_timeout(200)  # longer than its `retry`
        assert len(server.asked) == asked, via


async def test_a_polled_task_is_deleted(page: Page, server: Scripted) -> None:
    async def blocked(request: Request) -> None:
        await request.answer(403)

    async def status(request: Request) -> None:
        await (request.problem(404, "task_not_found") if "wait" in request.query else request.json(task(2)))

    server.handlers.update(events=blocked, status=status)
    await page.clock.install()
    await page.evaluate(FOLLOW, "fetch")
    await pass_until(page, "outcome !== null")
    assert await page.evaluate("outcome") == "Problem task_not_found because of task_not_found"
    assert await page.evaluate("states.slice(-3)") == [
        "polling connecting",
        "polling live",
        "polling failed task_not_found",
    ]
    asked = len(server.asked)
    await page.clock.run_for(60_000)
    assert len(server.asked) == asked


async def test_of_all_tasks_some_are_deleted(page: Page, server: Scripted) -> None:
    """Each is told of once, also one that was never seen; nothing said of it before brings it back."""

    async def events(request: Request) -> None:
        gone = [frame("deleted", {"taskId": task_id}) for task_id in ("a", "unseen", "a")]
        await request.stream(SYNC, news("a", 1), *gone, news("a", 2, "failed"), news("b", 3), hold=True)

    async def socket(request: Request) -> None:
        def said(task_id: str, version: int, status: str) -> dict[str, Any]:
            return {"type": "status", "task": snapshot(task_id, version, status), "cursor": f"s{version}"}

        gone = [{"type": "deleted", "taskIds": ids} for ids in (["a", "unseen"], ["a"])]
        last = [said("a", 2, "failed"), said("b", 3, "processing")]
        await subscribed(request, said("a", 1, "processing"), *gone, *last)

    server.handlers.update(events=events, ws=socket)
    for asked, via in enumerate(PUSHING, 1):
        await page.evaluate(FOLLOW_ALL, via)
        await page.wait_for_function("versions.at(-1) === 'b 3'")
        assert await page.evaluate("deleted") == ["a", "unseen"]
        assert await page.evaluate("versions") == ["a 1", "b 3"]
        assert await page.evaluate("states") == [f"{via} connecting", f"{via} live"]
        assert len(server.asked) == asked, via
        await page.evaluate("handle.close()")


async def test_what_was_deleted_during_a_break(page: Page, server: Scripted) -> None:
    """Nobody tells of it afterwards: the list has it no more, as far as it was read."""
    answered = asyncio.Event()

    async def events(request: Request) -> None:
        if request.cursor is None:
            tasks = [news(name, number, second=number) for number, name in enumerate(("older", "a", "b", "c"), 1)]
            await request.stream(SYNC, *tasks)
        else:
            await request.stream(SYNC, news("new", 5, second=5), hold=True)

    async def listed(request: Request) -> None:
        await page.wait_for_function("versions.includes('new 5')")
        await request.json({"tasks": [snapshot("c", 3, second=4), snapshot("a", 2, second=2)], "cursor": "more"})
        answered.set()

    server.handlers.update(events=events, generate=listed)
    await page.evaluate(FOLLOW_ALL, "EventSource")
    await page.wait_for_function("deleted.length > 0")
    assert await page.evaluate("deleted") == ["b"], "older ones were not read, and the new one was not known"
    answered.clear()
    await page.evaluate("window.dispatchEvent(new Event('online'))")
    await page.evaluate("handle.close()")
    await asyncio.wait_for(answered.wait(), 10)
    await page.wait_for_timeout(100)
    assert await page.evaluate("deleted") == ["b"], "closed, it says nothing"


async def test_of_all_tasks_that_are_polled_some_are_deleted(page: Page, server: Scripted) -> None:
    lists = [
        [snapshot("held", 2, second=3), snapshot("kept", 4, "completed", 2), snapshot("ended", 4, "completed", 1)],
        [snapshot("kept", 4, "completed", 2)],
    ]

    async def blocked(request: Request) -> None:
        await request.answer(403)

    async def listed(request: Request) -> None:
        live = await page.evaluate("states.includes('polling live')")
        await request.json({"tasks": lists[1 if live else 0]})

    async def status(request: Request) -> None:
        await request.problem(404, "task_not_found")

    server.handlers.update(events=blocked, generate=listed, status=status)
    await page.clock.install()
    await page.evaluate(FOLLOW_ALL, "fetch")
    await pass_until(page, "deleted.length > 1")
    assert await page.evaluate("deleted") == ["held", "ended"]
    assert server.to("status")[0].query["taskId"] == "held"
    assert await page.evaluate("states.at(-1)") == "polling live"


async def test_remove(page: Page, server: Scripted) -> None:
    async def generate(request: Request) -> None:
        assert request.method == "DELETE"
        assert request.headers["authorization"] == "Bearer mine"
        if request.query == {"taskId": "a task"}:
            await request.json({"taskId": "a task", "outcome": "deleted"})
        else:
            await request.problem(409, "task_in_use")

    server.handlers["generate"] = generate
    said = await page.evaluate(
        """async () => {
          const { remove } = await import('/static/client.js');
          const access = { getToken: () => 'mine' };
          const problem = await remove('used', access).catch((error) => error);
          return [await remove('a task', access), problem.status, problem.code, problem.message];
        }"""
    )
    assert said == [{"taskId": "a task", "outcome": "deleted"}, 409, "task_in_use", "because of task_in_use"]
