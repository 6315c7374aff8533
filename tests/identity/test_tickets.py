"""Tickets through real processes: what they open, and what they do not."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.conftest import Connection, Deploy
from tests.deployment import Deployment
from tests.identity.conftest import APP, DeploySignedIn
from tests.identity.tokens import Person
from tests.playing import Play
from tests.sse import Event, stream

EVENTS = "/api/generate/events"


async def new_task(client: httpx.AsyncClient, person: Person, **body: Any) -> dict[str, Any]:
    answer = await client.post("/api/generate", json={"prompt": "a fox", **body}, headers=person.headers())
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


async def new_ticket(client: httpx.AsyncClient, person: Person, *task_ids: str) -> str:
    wanted = {"taskIds": task_ids} if task_ids else {"all": True}
    answer = await client.post("/api/generate/ticket", json=wanted, headers=person.headers())
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


async def first(events: AsyncIterator[Event], count: int) -> list[Event]:
    """The first events that say something."""
    found = []
    async for event in events:
        if event.data is not None:
            found.append(event)
        if len(found) == count:
            break
    return found


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


INVALID = (401, "invalid_ticket")


async def test_one_stream_of_the_tasks_it_is_for(here: Deployment) -> None:
    mine, yours = Person(), Person()
    async with here.client() as client:
        one, two, three = [(await new_task(client, mine))["taskId"] for _ in range(3)]
        theirs = (await new_task(client, yours))["taskId"]
        for foreign in ([theirs], [one, theirs], [one, "nobody-has-this-task-id"]):
            asked = {"taskIds": foreign}
            refused = await client.post("/api/generate/ticket", json=asked, headers=mine.headers())
            assert code(refused) == (404, "task_not_found")

        ticket = await new_ticket(client, mine, one, two)
        # Looking at it, and asking for what it is not for, does not spend it.
        assert (await client.head(f"{EVENTS}?ticket={ticket}")).status_code == 200
        for wrong in (three, theirs):
            assert code(await client.get(f"{EVENTS}?taskId={one}&taskId={wrong}&ticket={ticket}")) == INVALID
        async with stream(client, f"ticket={ticket}") as events:
            seen = await first(events, 3)
        assert {event.data["taskId"] for event in seen if event.is_change} == {one, two}
        assert code(await client.get(f"{EVENTS}?ticket={ticket}")) == INVALID
        assert (await client.head(f"{EVENTS}?ticket={ticket}")).status_code == 401

        # One task is followed as one task: its cursor is its version.
        async with stream(client, f"ticket={await new_ticket(client, mine, one)}") as events:
            assert [event.id for event in await first(events, 2)] == [None, "1"]
        async with stream(client, f"taskId={two}&after=0&ticket={await new_ticket(client, mine, one, two)}") as events:
            assert (await first(events, 2))[1].data["taskId"] == two
        # It counts alone: whoever sends something else along is not taken for that.
        ticket = await new_ticket(client, mine, one)
        async with stream(client, f"ticket={ticket}", yours.headers()) as events:
            assert (await first(events, 2))[1].data["taskId"] == one
        assert code(await client.get(f"{EVENTS}?ticket={ticket}", headers=mine.headers())) == INVALID
        everything = await new_ticket(client, yours)
        async with stream(client, f"ticket={everything}") as events:
            assert (await first(events, 2))[1].data["taskId"] == theirs


async def test_of_fifty_at_once_one_stream_opens(here: Deployment) -> None:
    person = Person()
    async with here.client() as client:
        task = (await new_task(client, person))["taskId"]
        ticket = await new_ticket(client, person, task)

        async def ask() -> int:
            async with client.stream("GET", f"{EVENTS}?taskId={task}&ticket={ticket}") as answer:
                return answer.status_code

        assert sorted(await asyncio.gather(*(ask() for _ in range(50)))) == [200] + [401] * 49


async def test_streams_and_nothing_else(here: Deployment) -> None:
    person = Person()
    async with here.client() as client:
        task = (await new_task(client, person))["taskId"]
        ticket = await new_ticket(client, person, task)
        for method, route in (
            ("GET", "/api/generate?"),
            ("POST", "/api/generate?"),
            ("DELETE", f"/api/generate?taskId={task}&"),
            ("GET", f"/api/generate/status?taskId={task}&"),
            ("GET", f"/api/generate/deliveries?taskId={task}&"),
            ("POST", f"/api/generate/retry?taskId={task}&"),
            ("POST", "/api/generate/ticket?"),
            ("GET", "/api/session?"),
        ):
            body = {"all": True} if route.startswith("/api/generate/ticket") else {"prompt": "a"}
            answer = await client.request(method, f"{route}ticket={ticket}", json=body)
            assert code(answer) == (401, "unauthorized"), route
        # Nor is a ticket an access token, or an access token a ticket.
        assert code(await client.get(EVENTS, headers={"Authorization": f"Bearer {ticket}"}))[0] == 401
        assert code(await client.get(f"{EVENTS}?ticket={person.token()}")) == INVALID
        async with stream(client, f"ticket={ticket}") as events:
            assert (await first(events, 1))[0].event == "sync", "and all that has not spent it"


async def say(socket: ClientConnection, **message: Any) -> dict[str, Any]:
    await socket.send(json.dumps({"type": "subscribe", **message}))
    heard: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 5))
    return heard


async def test_over_a_websocket(here: Deployment) -> None:
    person = Person()
    url = f"ws://127.0.0.1:{here.web.port}/api/generate/ws?ticket="
    cookie = {"Cookie": f"taskbeam={Person().token()}"}
    async with here.client() as client:
        one, two = [(await new_task(client, person))["taskId"] for _ in range(2)]
        named, everything = await new_ticket(client, person, one), await new_ticket(client, person)
    async with connect(url + named, additional_headers={"Origin": APP}, proxy=None) as socket:
        for wanted in ({"taskIds": [two]}, {"all": True}):
            refused = await say(socket, **wanted)
            assert (refused["type"], refused["problem"]["code"]) == ("refused", "task_not_found")
        assert (await say(socket, taskIds=[one]))["taskIds"] == [one]
    # A cookie that comes along does not count, nor does it matter that no page is named.
    async with connect(url + everything, additional_headers=cookie, proxy=None) as socket:
        assert (await say(socket, taskIds=[two]))["taskIds"] == [two]
        assert json.loads(await socket.recv())["task"]["taskId"] == two
        assert (await say(socket, all=True))["type"] == "subscribed"
    for bad in (named, everything, "x"):
        with pytest.raises(InvalidStatus) as refusal:
            await connect(url + bad, proxy=None)
        assert refusal.value.response.status_code == 401


async def test_a_cookie_opens_no_websocket_without_an_origin(here: Deployment) -> None:
    person = Person()
    url = f"ws://127.0.0.1:{here.web.port}/api/generate/ws"
    cookie = {"Cookie": f"taskbeam={person.token()}"}
    with pytest.raises(InvalidStatus) as refusal:
        await connect(url, additional_headers=cookie, proxy=None)
    assert refusal.value.response.status_code == 403
    for headers in (person.headers(), {**cookie, "Origin": here.web.url}):
        await (await connect(url, additional_headers=headers, proxy=None)).close()


async def test_with_the_task_itself(here: Deployment) -> None:
    person = Person()
    async with here.client() as client:
        accepted = await new_task(client, person, ticket=True)
        assert "ticket" not in accepted["eventsUrl"]
        assert "ticket" not in await new_task(client, person)
        async with stream(client, f"taskId={accepted['taskId']}&ticket={accepted['ticket']}") as events:
            assert [event.event for event in await first(events, 2)] == ["sync", "status"]


async def test_never_in_a_log(deploy_signed_in: DeploySignedIn) -> None:
    here = await deploy_signed_in({"LOG_LEVEL": "debug"}, dispatchers=0, generator=False)
    person = Person()
    async with here.client() as client:
        spent, unspent = await new_ticket(client, person), await new_ticket(client, person)
        async with stream(client, f"ticket={spent}") as events:
            await first(events, 1)
        answer = await client.get(f"{EVENTS}?ticket={spent}")
        assert code(answer) == INVALID
        assert answer.headers["referrer-policy"] == "no-referrer"
        await client.get(f"{EVENTS}?ticket={unspent}&after=nonsense")
        await client.get(f"/no/such/page?ticket={unspent}")
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{here.web.port}/api/generate/ws?ticket={spent}", proxy=None)
        metrics = (await client.get("/metrics")).text
    assert 'taskbeam_sign_ins_refused_total{reason="ticket"} 2.0' in metrics
    here.web.stop()
    log = here.web.log.read_text()
    assert log.count('"path": "/api/generate/events"') == 3
    for ticket in (spent, unspent):
        assert ticket not in log + metrics


async def test_without_sign_in_and_while_postgres_does_not_answer(deploy: Deploy, owner: Connection) -> None:
    here = await deploy(dispatchers=0, generator=False)
    play = await Play.of(here)
    task = await play.create()
    async with here.client() as client:

        async def ticket() -> str:
            answer = await client.post("/api/generate/ticket", json={"taskIds": [task]})
            return str(answer.json()["ticket"])

        spent, unspent = await ticket(), await ticket()
        async with stream(client, f"taskId={task}&ticket={spent}") as events:
            await first(events, 2)
            await play.report(task, 40)
            assert (await first(events, 1))[0].data["progress"] == 40
        assert code(await client.get(f"{EVENTS}?ticket={spent}")) == INVALID, "a proof that is offered has to be good"

        async with owner.transaction():
            await owner.execute("lock table taskbeam.tickets in access exclusive mode")
            # Any other status would close an EventSource for good.
            answer = await client.get(f"{EVENTS}?taskId={task}&ticket={unspent}")
            assert (answer.status_code, "event: refused" in answer.text) == (200, True)
            assert answer.text.startswith("retry: ")
        async with stream(client, f"taskId={task}&ticket={unspent}") as events:
            assert (await first(events, 1))[0].event == "sync", "it was not spent"
