"""client.js with tickets: a new stream with a new one at each connection, from a page of another site too."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.async_api import BrowserContext, Page

from tests.browser.conftest import Seen
from tests.browser.scripted import SYNC, Request, Scripted, change, frame, scripted, task
from tests.conftest import Connection, Deploy
from tests.identity.conftest import SIGN_IN
from tests.identity.tokens import Person
from tests.playing import Play

pytestmark = pytest.mark.browser

FOLLOW = """async ({ api, taskId = 't', route, getToken, hang = false }) => {
  const { follow } = await import('/static/client.js');
  window.given = 0; window.versions = []; window.states = []; window.outcome = null; window.wrong = false;
  const own = async () => {
    given++;
    if (window.wrong) throw new Error('no ticket');
    return hang && given === 1 ? new Promise(() => {}) : `ticket-${given}`;
  };
  const asked = async () => (await (await fetch(route, { method: 'POST' })).json()).ticket;
  window.handle = follow(taskId, {
    baseUrl: api,
    ticket: route ? asked : own,
    ...(getToken && { getToken: () => getToken }),
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
async def home() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest.fixture
async def page(context: BrowserContext, api: Scripted, home: Scripted) -> Page:
    """A page of another origin, which the API allows."""
    api.allowed = home.url.rstrip("/")
    page = await context.new_page()
    await page.goto(home.url)
    return page


async def unknown(request: Request) -> None:
    await request.problem(401, "unauthorized")


async def outcome(page: Page) -> Any:
    await page.wait_for_function("outcome !== null")
    return await page.evaluate("outcome")


async def test_each_connection_has_a_ticket_of_its_own(page: Page, api: Scripted) -> None:
    async def events(request: Request) -> None:
        match len(api.to("events")):
            case 1:
                await request.stream(SYNC, change(1, "pending"), change(3), frame("bye", {"reason": "restarting"}))
            case 2:
                await request.stream(SYNC, change(3), change(4), change(5)[:-1])
            case _:
                await request.stream(SYNC, change(5), change(6, "completed"))

    api.handlers.update(events=events, status=unknown)
    await page.evaluate(FOLLOW, {"api": api.url})
    assert await outcome(page) == "completed"
    assert await page.evaluate("versions") == [1, 3, 4, 5, 6]
    asked = [(r.query["ticket"], r.query.get("after"), r.headers.get("last-event-id")) for r in api.to("events")]
    assert asked == [("ticket-1", None, None), ("ticket-2", "3", None), ("ticket-3", "4", None)]
    assert not any("ticket" in request.query for request in api.to("status"))
    assert {state.partition(" ")[0] for state in await page.evaluate("states")} == {"EventSource"}


async def test_where_no_event_stream_gets_through_a_socket_has_a_ticket(page: Page, api: Scripted) -> None:
    async def events(request: Request) -> None:
        await request.answer(403)

    async def ws(request: Request) -> None:
        socket = request.upgrade()
        await socket.hear()
        if len(api.to("ws")) == 1:
            await socket.say({"type": "subscribed"}, {"task": task(2), "cursor": "2"})
            socket.close(1012)
        else:
            await socket.say({"type": "subscribed"}, {"task": task(3, "completed"), "cursor": "3"})

    api.handlers.update(events=events, status=unknown, ws=ws)
    await page.evaluate(FOLLOW, {"api": api.url})
    assert await outcome(page) == "completed"
    assert await page.evaluate("versions") == [2, 3]
    tickets = [request.query["ticket"] for request in [*api.to("events"), *api.to("ws")]]
    assert tickets == [f"ticket-{n}" for n in range(1, 5)], "as many as connections"


async def test_polling_is_there_only_with_a_token_too(page: Page, api: Scripted) -> None:
    async def nothing(request: Request) -> None:
        await request.answer(403)

    async def status(request: Request) -> None:
        if "authorization" not in request.headers:
            await unknown(request)
        elif "wait" in request.query:
            await request.json(task(3, "completed"))
        else:
            await request.json(task(2, pollAfterMs=100))

    api.handlers.update(events=nothing, ws=nothing, status=status)
    await page.clock.install()
    await page.evaluate(FOLLOW, {"api": api.url})
    for _ in range(200):
        await page.clock.run_for(250)
        await page.wait_for_timeout(10)
        if len(api.to("ws")) == 4:
            break
    assert len(api.to("events")) == 2
    # The first way is tried again all the while.
    for _ in range(100):
        await page.clock.run_for(1_000)
        await page.wait_for_timeout(5)
        if len(api.to("events")) == 3:
            break
    assert len(api.to("events")) == 3
    assert not any("wait" in request.query for request in api.to("status"))
    await page.evaluate("handle.close()")
    await page.clock.resume()
    await page.evaluate(FOLLOW, {"api": api.url, "getToken": "mine"})
    assert await outcome(page) == "completed"
    assert "polling live" in await page.evaluate("states")


async def test_no_ticket_to_be_had_for_now(page: Page, api: Scripted) -> None:
    async def events(request: Request) -> None:
        await request.stream(SYNC, change(1, "completed"))

    api.handlers.update(events=events, status=unknown)
    await page.clock.install()
    await page.evaluate(FOLLOW, {"api": api.url, "hang": True})
    await page.wait_for_function("given === 1")
    await page.evaluate("wrong = true")
    await page.clock.run_for(8_100)  # one that is not given holds nothing up for ever
    while await page.evaluate("given") < 3:
        await page.clock.run_for(250)
        await page.wait_for_timeout(10)
    assert api.to("events") == []
    await page.evaluate("wrong = false")
    while await page.evaluate("outcome") is None:
        await page.clock.run_for(250)
        await page.wait_for_timeout(10)
    assert api.to("ws") == [], "that says nothing of the stream of events"


async def test_whose_session_has_ended_is_told(page: Page, home: Scripted) -> None:
    """Without tickets and tokens: by cookie."""

    async def expired(request: Request) -> None:
        await request.problem(401, "access_token_expired")

    async def events(request: Request) -> None:
        await request.stream(SYNC, change(2, "completed"))

    home.handlers.update(events=expired, status=expired)
    await page.evaluate(FOLLOW.replace("ticket: route ? asked : own,", ""), {"api": "/"})
    await page.wait_for_function("states.at(-1) === 'EventSource reconnecting access_token_expired'")
    assert await page.evaluate("outcome") is None
    home.handlers.update(events=events)
    await page.evaluate("dispatchEvent(new Event('online'))")
    assert await outcome(page) == "completed", "by the same way, once signed in again"
    assert await page.evaluate("states.at(-1)") == "EventSource ended"


async def new_task(client: httpx.AsyncClient, person: Person) -> str:
    answer = await client.post("/api/generate", json={"prompt": "a fox"}, headers=person.headers())
    return str(answer.json()["taskId"])


async def test_across_sites_and_a_restart_nothing_is_lost_and_nothing_comes_twice(
    context: BrowserContext, home: Scripted, seen: Seen, deploy: Deploy, owner: Connection
) -> None:
    site = home.url.replace("127.0.0.1", "localhost").rstrip("/")
    here = await deploy(webs=2, dispatchers=0, generator=False, env={**SIGN_IN, "ALLOWED_ORIGINS": site})
    person, play = Person(), await Play.of(here)
    async with here.client(1) as client:
        task_id = await new_task(client, person)

        async def stream_ticket(request: Request) -> None:
            """As the page's own server does it, which knows its user."""
            wanted = {"taskIds": [task_id]}
            answer = await client.post("/api/generate/ticket", json=wanted, headers=person.headers())
            await request.json({"ticket": answer.json()["ticket"]})

        home.handlers["stream-ticket"] = stream_ticket
        page = await context.new_page()
        await page.goto(site)
        wanted = {"api": here.web.url, "taskId": task_id, "route": "/api/stream-ticket"}
        await page.evaluate(FOLLOW, wanted)
        await page.wait_for_function("versions.length === 1")
        await play.report(task_id, 10, web=1)
        await page.wait_for_function("versions.length === 2")
        here.web.stop()
        await play.report(task_id, 20, web=1)
        await play.report(task_id, status="failed", error="no paint", web=1)
        await client.post(f"/api/generate/retry?taskId={task_id}", headers=person.headers())
        await here.web.start()
        await page.wait_for_function("versions.at(-1) >= 5")
        await play.report(task_id, 30, web=1, attempt=2)
        await page.wait_for_function("versions.at(-1) >= 6")
        assert (await play.finish(task_id, web=1, attempt=2)).status_code == 200
        assert await outcome(page) == "completed"
    versions = await page.evaluate("versions")
    assert versions == sorted(set(versions))
    log = await owner.fetch("select version, status_version, status from public.task_events order by version")
    # The failure was superseded before it could be sent; mere progress may be skipped while nobody listened.
    told = [row["version"] for row in log if row["version"] == row["status_version"] and row["status"] != "failed"]
    assert set(told) <= set(versions)
    assert versions[-1] == log[-1]["version"]
    queries = [parse_qs(urlsplit(url).query) for url in seen.asked(f"{here.web.url}/api/generate/events")]
    used = Counter(query["ticket"][0] for query in queries)
    assert len(used) > 1
    assert set(used.values()) == {1}, "a ticket is never sent twice"
    assert "EventSource ended" in await page.evaluate("states")
    assert not await owner.fetchval("select count(*) from taskbeam.tickets where expires_at < now()")


async def test_a_cookie_goes_to_another_origin_of_the_same_site(
    context: BrowserContext, home: Scripted, deploy: Deploy
) -> None:
    env = {**SIGN_IN, "ALLOWED_ORIGINS": home.url.rstrip("/")}
    here = await deploy(dispatchers=0, generator=False, env=env)
    person, play = Person(), await Play.of(here)
    async with here.client() as client:
        task_id = await new_task(client, person)
    page = await context.new_page()
    await page.goto(home.url)
    signed_in = await page.evaluate(
        """async ({ api, token }) => (await fetch(`${api}/api/session`, {
          method: 'POST', credentials: 'include', headers: { 'Content-Type': 'application/json' },
          body: JSON.stringify({ token }) })).status""",
        {"api": here.web.url, "token": person.token()},
    )
    assert signed_in == 200
    script = FOLLOW.replace("ticket: route ? asked : own,", "")
    await page.evaluate(script, {"api": here.web.url, "taskId": task_id})
    await page.wait_for_function("states.includes('EventSource live')")
    listed = await page.evaluate(
        "async (baseUrl) => (await (await import('/static/client.js')).list({ baseUrl })).tasks.length", here.web.url
    )
    assert listed == 1
    assert (await play.finish(task_id)).status_code == 200
    assert await outcome(page) == "completed"
    assert {state.partition(" ")[0] for state in await page.evaluate("states")} == {"EventSource"}
