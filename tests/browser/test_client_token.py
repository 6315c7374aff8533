"""client.js from a page of another origin, with a token: fetch in place of EventSource, and no WebSocket."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.browser.scripted import SYNC, Request, Scripted, change, frame, scripted, task

pytestmark = pytest.mark.browser

FOLLOW = """async ({ api, ...options }) => {
  const { follow } = await import('/static/client.js');
  window.given = 0; window.versions = []; window.states = []; window.outcome = null;
  const getToken = async () => `token-${++given}`;
  window.handle = follow('t', {
    ...options, baseUrl: api, getToken,
    onUpdate: (task) => versions.push(task.version),
    onState: ({via, phase, problem}) => states.push([via, phase, problem?.code].filter(Boolean).join(' ')),
  });
  handle.done.then((task) => (outcome = task.status), (error) => (outcome = error.code));
}"""


@pytest.fixture
async def api() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest.fixture
async def page(context: BrowserContext, api: Scripted) -> AsyncIterator[Page]:
    """A page of another origin, which the API allows."""
    async with scripted() as home:
        api.allowed = home.url.rstrip("/")
        page = await context.new_page()
        await page.goto(home.url)
        yield page


async def follow(page: Page, api: Scripted, **options: Any) -> None:
    await page.evaluate(FOLLOW, {"api": api.url, **options})


async def outcome(page: Page) -> Any:
    await page.wait_for_function("outcome !== null")
    return await page.evaluate("outcome")


def tokens(requests: list[Request]) -> list[str]:
    return [request.headers.get("authorization", "") for request in requests]


async def test_a_stream_with_a_token_that_is_renewed(page: Page, api: Scripted) -> None:
    async def events(request: Request) -> None:
        if request.cursor is None:
            await request.stream(SYNC, change(2), ": heartbeat\n\n", change(3), change(4)[:-1], piece=7)
        else:
            await request.stream(SYNC, change(3), change(4), change(5, "completed"), retry_ms=10)

    api.handlers["events"] = events
    await follow(page, api)
    assert await outcome(page) == "completed"
    assert await page.evaluate("versions") == [2, 3, 4, 5], "the event that was cut off comes once more"
    assert [request.cursor for request in api.to("events")] == [None, "3"]
    assert tokens(api.asked) == ["Bearer token-1", "Bearer token-2"], "nothing else was asked, and no socket opened"
    said = await page.evaluate("states")
    assert said == ["fetch connecting", "fetch live", "fetch reconnecting", "fetch live", "fetch ended"]


async def test_refused_waits_as_long_as_it_was_told(page: Page, api: Scripted) -> None:
    problem = {"status": 429, "code": "too_many_streams", "detail": "later"}

    async def events(request: Request) -> None:
        if len(api.to("events")) == 1:
            await request.stream(frame("refused", problem), retry_ms=30_000)
        else:
            await request.stream(SYNC, change(1, "completed"))

    api.handlers["events"] = events
    await page.clock.install()
    await follow(page, api)
    await page.wait_for_function("states.at(-1) === 'fetch refused too_many_streams'")
    await page.clock.run_for(29_000)
    assert len(api.asked) == 1
    await page.clock.run_for(1_500)
    assert await outcome(page) == "completed"


async def test_no_stream_gets_through_so_it_polls_with_the_token(page: Page, api: Scripted) -> None:
    async def events(request: Request) -> None:
        await request.answer(403)

    async def status(request: Request) -> None:
        await request.json(task(3, "completed") if "wait" in request.query else task(2, pollAfterMs=100))

    api.handlers.update(events=events, status=status)
    await follow(page, api)
    assert await outcome(page) == "completed"
    assert await page.evaluate("versions") == [2, 3]
    assert "polling live" in await page.evaluate("states")
    assert api.to("ws") == []
    assert all(token.startswith("Bearer token-") for token in tokens(api.asked))
    assert len(set(tokens(api.asked))) == len(api.asked), "asked for before each request"


async def test_a_stream_that_falls_silent_is_opened_again(page: Page, api: Scripted) -> None:
    async def events(request: Request) -> None:
        if request.cursor is None:
            await request.stream(SYNC, change(2), hold=True)
        else:
            await request.stream(SYNC, change(3, "completed"))

    api.handlers["events"] = events
    await page.clock.install()
    await follow(page, api)
    await page.wait_for_function("versions.length === 1")
    await page.clock.run_for(37_000)  # more than two heartbeats, less than it takes to doubt an EventSource
    assert await outcome(page) == "completed"
    assert [request.cursor for request in api.asked] == [None, "2"]


async def test_no_such_task_and_close(page: Page, api: Scripted) -> None:
    async def missing(request: Request) -> None:
        await request.problem(404, "task_not_found")

    async def events(request: Request) -> None:
        await request.stream(SYNC, change(1), hold=True)

    api.handlers.update(events=missing, status=missing)
    await follow(page, api)
    assert await outcome(page) == "task_not_found"
    api.handlers["events"] = events
    await follow(page, api)
    await page.wait_for_function("versions.length === 1")
    asked = len(api.asked)
    await page.evaluate("handle.close()")
    assert await page.evaluate("handle.done.catch((error) => error.name)") == "AbortError"
    await page.wait_for_timeout(300)  # longer than its `retry`
    assert len(api.asked) == asked


async def test_begin_and_list_with_the_token(page: Page, api: Scripted) -> None:
    async def generate(request: Request) -> None:
        await request.json({"taskId": "t", "tasks": [task(1)]})

    api.handlers["generate"] = generate
    begun, listed, nobody = await page.evaluate(
        """async (baseUrl) => {
          const { generate, list } = await import('/static/client.js');
          const getToken = () => 'mine';
          return [await generate('a fox', {}, { baseUrl, getToken }), await list({ baseUrl, getToken }),
                  await list({ baseUrl, getToken: () => null })];
        }""",
        api.url,
    )
    assert (begun["taskId"], len(listed["tasks"]), len(nobody["tasks"])) == ("t", 1, 1)
    assert tokens(api.asked) == ["Bearer mine", "Bearer mine", ""]
