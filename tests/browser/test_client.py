"""follow() of client.js in Chromium, against a server that misbehaves on purpose."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.browser.scripted import SYNC, Request, Scripted, change, frame, scripted, task

pytestmark = pytest.mark.browser

FOLLOW = """async (options) => {
  const { follow } = await import('/static/client.js');
  window.versions = []; window.states = []; window.outcome = null;
  window.handle = follow('t', {
    ...options,
    onUpdate: (task) => versions.push(task.version),
    onState: ({via, phase, problem}) => states.push([via, phase, problem?.code].filter(Boolean).join(' ')),
  });
  handle.done.then((task) => (outcome = task.status), (error) => (outcome = error.code));
}"""


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest.fixture
async def page(context: BrowserContext, server: Scripted) -> Page:
    page = await context.new_page()
    await page.goto(server.url)
    return page


async def follow(page: Page, **options: Any) -> None:
    await page.evaluate(FOLLOW, options)


async def outcome(page: Page) -> Any:
    await page.wait_for_function("outcome !== null")
    return await page.evaluate("outcome")


async def versions(page: Page) -> list[int]:
    seen: list[int] = await page.evaluate("versions")
    return seen


async def states(page: Page) -> list[str]:
    said: list[str] = await page.evaluate("states")
    return said


async def wait_for(page: Page, condition: str) -> None:
    await page.wait_for_function(condition)


async def test_a_stream_that_ends_is_taken_up_by_the_browser(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        if request.cursor is None:
            await request.stream(SYNC, change(1, "pending"), change(3), frame("bye", {"reason": "restarting"}))
        else:
            # What was seen before comes once more, and late: none of it is passed on.
            await request.stream(SYNC, change(2), change(3), change(4), change(4), change(5, "completed"), change(6))

    server.handlers["events"] = events
    await follow(page)
    assert await outcome(page) == "completed"
    assert await versions(page) == [1, 3, 4, 5]
    assert [request.cursor for request in server.to("events")] == [None, "3"]
    assert (await states(page))[-1] == "EventSource ended"
    assert len(server.asked) == 2, "close() was called: there is no request after the end"


async def test_a_closed_stream_is_opened_again_from_the_cursor(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        if len(server.to("events")) in (1, 3):
            await request.answer(503)
        elif request.cursor == "2":
            await request.stream(SYNC, change(4), retry_ms=10)
        else:
            assert request.cursor == "4"
            assert "last-event-id" not in request.headers
            await request.stream(SYNC, change(7, "failed"))

    async def status(request: Request) -> None:
        await request.json(task(2) if len(server.to("events")) == 1 else task(4))

    server.handlers.update(events=events, status=status)
    await follow(page)
    assert await outcome(page) == "failed"
    assert await versions(page) == [2, 4, 7]
    assert all(state.startswith("EventSource") for state in await states(page)), "one failure is no reason to fall back"


async def test_a_server_that_is_away_is_waited_for(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        await (request.answer(502) if len(server.to("events")) < 4 else request.stream(SYNC, change(2, "completed")))

    async def status(request: Request) -> None:
        await request.problem(503, "unavailable")

    server.handlers.update(events=events, status=status)
    await follow(page, after=1)
    assert await outcome(page) == "completed"
    assert await versions(page) == [2]
    assert [request.cursor for request in server.to("events")] == ["1"] * 4
    assert server.to("ws") == [], "nothing else gets through either"


async def test_no_such_task_is_the_end(page: Page, server: Scripted) -> None:
    async def missing(request: Request) -> None:
        await request.problem(404, "task_not_found")

    server.handlers.update(events=missing, status=missing)
    await follow(page)
    assert await outcome(page) == "task_not_found"
    assert await versions(page) == []
    assert (await states(page))[-1] == "EventSource failed task_not_found"
    assert len(server.asked) == 2


async def test_a_task_that_had_ended_at_the_cursor(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        await request.answer(204)

    async def status(request: Request) -> None:
        await request.json(task(5, "completed"))

    server.handlers.update(events=events, status=status)
    await follow(page, after=5)
    assert await outcome(page) == "completed"
    assert await versions(page) == [], "its last version was seen before"


async def test_refused_waits_as_long_as_it_was_told(page: Page, server: Scripted) -> None:
    problem = {"status": 429, "code": "too_many_streams", "detail": "later"}

    async def events(request: Request) -> None:
        if len(server.to("events")) == 1:
            await request.stream(frame("refused", problem), retry_ms=700)
        else:
            await request.stream(SYNC, change(1, "completed"))

    server.handlers["events"] = events
    began = asyncio.get_running_loop().time()
    await follow(page)
    assert await outcome(page) == "completed"
    assert asyncio.get_running_loop().time() - began >= 0.7
    assert "EventSource refused too_many_streams" in await states(page)
    assert len(server.asked) == 2, "no other way is tried meanwhile"


async def test_a_proxy_that_holds_streams_back(page: Page, server: Scripted) -> None:
    """It accepts the connection and lets nothing through: there is no error, only silence."""

    async def events(request: Request) -> None:
        await request.stream(retry_ms=50, hold=True)

    async def status(request: Request) -> None:
        if "wait" in request.query:
            await request.json(task(3, "completed"))
        else:
            await request.json(task(2, pollAfterMs=300))

    server.handlers.update(events=events, status=status)
    await page.clock.install()
    await follow(page)
    while await page.evaluate("outcome") is None:
        await page.clock.run_for(1_000)
    assert await versions(page) == [2, 3]
    said = await states(page)
    assert [said.index(f"{via} connecting") for via in ("EventSource", "WebSocket", "polling")] == sorted(
        said.index(f"{via} connecting") for via in ("EventSource", "WebSocket", "polling")
    )
    assert server.to("status")[-1].query == {"taskId": "t", "after": "2", "wait": "25"}


async def test_polling_waits_as_long_as_it_is_told_and_goes_back_to_events(page: Page, server: Scripted) -> None:
    blocked = True
    polls = 0

    async def events(request: Request) -> None:
        await (request.answer(403) if blocked else request.stream(SYNC, change(9, "completed")))

    async def status(request: Request) -> None:
        nonlocal polls
        if "wait" not in request.query:
            await request.json(task(2))
        elif (polls := polls + 1) == 1:
            await request.problem(429, "too_many_requests", Retry_After="30")
        else:
            await request.json(task(3, pollAfterMs=10_000))

    server.handlers.update(events=events, status=status)
    await page.clock.install()
    await follow(page)
    while polls == 0:
        await page.clock.run_for(250)
    await wait_for(page, "states.at(-1) === 'polling reconnecting'")
    await page.clock.run_for(29_000)
    assert polls == 1
    await page.clock.run_for(1_500)
    await wait_for(page, "versions.at(-1) === 3")
    assert await page.evaluate("states.at(-1)") == "polling live"
    blocked = False
    while await page.evaluate("outcome") is None:
        await page.clock.run_for(2_000)
    assert await versions(page) == [2, 3, 9]
    assert (await states(page))[-2:] == ["EventSource live", "EventSource ended"]


@pytest.mark.parametrize("event", ["visibilitychange", "online", "pageshow"])
async def test_coming_back_to_a_dead_stream(page: Page, server: Scripted, event: str) -> None:
    """Phones end connections without a word: the stream is open for ever and says nothing."""

    async def events(request: Request) -> None:
        if request.cursor is None:
            await request.stream(SYNC, change(1, "pending"), hold=True)
        else:
            await request.stream(SYNC, change(5, "completed"))

    async def status(request: Request) -> None:
        await request.json(task(4))

    server.handlers.update(events=events, status=status)
    await page.clock.install()
    await follow(page)
    await wait_for(page, "versions.length === 1")
    await page.clock.fast_forward(21_000)
    await page.evaluate(
        """(name) => (name === 'visibilitychange' ? document : window).dispatchEvent(
          name === 'pageshow' ? new PageTransitionEvent(name, {persisted: true}) : new Event(name))""",
        event,
    )
    assert await outcome(page) == "completed"
    assert await versions(page) == [1, 4, 5]
    assert [request.cursor for request in server.to("events")] == [None, "4"]


async def test_a_silent_stream_is_doubted(page: Page, server: Scripted) -> None:
    """Nobody comes back to the page, and the stream has died: it is looked after once a minute."""

    async def events(request: Request) -> None:
        first = request.cursor is None
        await (request.stream(SYNC, change(1), hold=True) if first else request.stream(SYNC, change(6, "completed")))

    async def status(request: Request) -> None:
        await request.json(task(5))

    server.handlers.update(events=events, status=status)
    await page.clock.install()
    await follow(page)
    await wait_for(page, "versions.length === 1")
    await page.clock.run_for(61_000)
    assert await outcome(page) == "completed"
    assert await versions(page) == [1, 5, 6]


async def test_close_ends_everything(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        await request.stream(SYNC, change(1), hold=True)

    server.handlers["events"] = events
    await page.clock.install()
    await follow(page)
    await wait_for(page, "versions.length === 1")
    await page.evaluate("handle.close()")
    assert await page.evaluate("handle.done.catch((error) => error.name)") == "AbortError"
    await page.clock.run_for(120_000)
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert len(server.asked) == 1


async def test_a_handler_that_throws_does_not_lose_the_end(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        await request.stream(SYNC, change(1), change(2, "completed"))

    server.handlers["events"] = events
    result = await page.evaluate(
        """async () => {
          const { follow } = await import('/static/client.js');
          return (await follow('t', { onUpdate: () => { throw new Error('of the page') } }).done).status;
        }"""
    )
    assert result == "completed"


@pytest.mark.parametrize("absurd", ["3000000", "1e300"])
async def test_an_absurd_wait_is_bounded_and_does_not_become_none(page: Page, server: Scripted, absurd: str) -> None:
    """A timer of more than 2^31 ms fires at once: a server that asks for a month must not be asked without a pause."""
    polls = 0

    async def events(request: Request) -> None:
        await request.answer(403)

    async def status(request: Request) -> None:
        nonlocal polls
        if "wait" not in request.query:
            await request.json(task(2))
        else:
            polls += 1
            await request.problem(429, "too_many_requests", Retry_After=absurd)

    server.handlers.update(events=events, status=status)
    await page.clock.install()
    await follow(page)
    while polls == 0:
        await page.clock.run_for(250)
    await wait_for(page, "states.at(-1) === 'polling reconnecting'")
    await page.clock.run_for(20_000)
    assert polls == 1


async def test_a_snapshot_of_another_task_is_no_news(page: Page, server: Scripted) -> None:
    async def events(request: Request) -> None:
        await request.stream(SYNC, change(7, "completed").replace('"t"', '"other"'), change(2), change(3, "completed"))

    server.handlers.update(events=events)
    await follow(page)
    assert await outcome(page) == "completed"
    assert await versions(page) == [2, 3]
