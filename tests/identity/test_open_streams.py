"""What is open ends with the right to it: when the token does, and soon after the right is taken away."""

import asyncio
import datetime as dt
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from server.errors import TaskNotFound, problem_body
from tests.conftest import Connection
from tests.deployment import Deployment
from tests.identity.conftest import DeploySignedIn
from tests.identity.test_sign_in import new_task, without_request_id
from tests.identity.tokens import Person
from tests.playing import Play
from tests.sse import Event, lines, parse

Told = list[tuple[str, Any]]  # names of events or types of messages, with what they say
NOT_FOUND = problem_body(TaskNotFound())
SESSIONS = "create table auth.sessions (id uuid primary key)"


@pytest.fixture
async def here(deploy_signed_in: DeploySignedIn) -> Deployment:
    return await deploy_signed_in(dispatchers=0, generator=False, hasty=True)


async def events(here: Deployment, query: str, token: str, version: str = "1.1") -> list[Event]:
    """All that a stream says until the server ends it; by HTTP/1.0 it takes the portable path."""
    reader, writer = await asyncio.open_connection("127.0.0.1", here.web.port)
    try:
        head = (
            f"GET /api/generate/events?{query} HTTP/{version}\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        )
        writer.write(f"{head}\r\n".encode())
        data = await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
    top, _, body = data.partition(b"\r\n\r\n")
    assert b" 200 " in top.splitlines()[0], top
    if version == "1.1":
        assert body.endswith(b"\r\n0\r\n\r\n"), "a clean end"
        whole, body = body, b""
        while size := int((cut := whole.partition(b"\r\n"))[0], 16):
            body, whole = body + cut[2][:size], cut[2][size + 2 :]

    async def pieces() -> Any:
        yield body.decode()

    return [event async for event in parse(lines(pieces()))]


async def told(here: Deployment, query: str, token: str, version: str = "1.1") -> Told:
    found = await events(here, query, token, version)
    return [(event.event, event.data) for event in found if event.data is not None]


def socket_of(here: Deployment, token: str) -> Any:
    url = f"ws://127.0.0.1:{here.web.port}/api/generate/ws"
    return connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None)


async def hear(socket: ClientConnection, heard: Told, kind: str) -> Any:
    """Until a message of that kind has come: what it says."""
    while True:
        message = json.loads(await asyncio.wait_for(socket.recv(), 20))
        heard.append((message.pop("type"), message))
        if heard[-1][0] == kind:
            return message


async def socket_told(here: Deployment, token: str, task_id: str) -> tuple[Told, int | None]:
    """Until it is refused; with which code it is closed then, None where it is not."""
    heard: Told = []
    async with socket_of(here, token) as socket:
        await socket.send(json.dumps({"type": "subscribe", "taskIds": [task_id]}))
        refused = await hear(socket, heard, "refused")
        if refused["problem"]["status"] == 401:
            async with asyncio.timeout(5):
                await socket.wait_closed()
            return heard, socket.close_code
        await socket.send('{"type":"ping"}')
        await hear(socket, heard, "pong")
    return heard, None


async def polled(here: Deployment, task_id: str, token: str) -> httpx.Response:
    async with here.client() as client:
        url = f"/api/generate/status?taskId={task_id}&wait=20&after=1"
        return await client.get(url, headers={"Authorization": f"Bearer {token}"})


async def counted(here: Deployment, name: str) -> float:
    async with here.client() as client:
        text = (await client.get("/metrics")).text
    return float(text.partition(f"\n{name} ")[2].partition("\n")[0])


async def test_what_is_open_ends_with_the_token(here: Deployment) -> None:
    person = Person()
    async with here.client() as client:
        task, other = await new_task(client, person), await new_task(client, person)
    ends_at = int(time.time()) + 4
    token = person.token(exp=ends_at)
    several = f"taskId={task}&taskId={other}"
    streams, (heard, code), poll = await asyncio.gather(
        asyncio.gather(
            told(here, f"taskId={task}", token),
            told(here, f"taskId={task}", token, "1.0"),
            told(here, several, token),
            told(here, several, token, "1.0"),
            told(here, "", token),
        ),
        socket_told(here, token, task),
        polled(here, task, token),
    )
    assert ends_at <= time.time() < ends_at + 4
    expires_at = dt.datetime.fromtimestamp(ends_at, dt.UTC).isoformat().replace("+00:00", "Z")
    for said in streams:
        names = [name for name, _ in said]
        assert names[0] == "sync"
        assert "status" in names
        assert names[-2:] == ["auth_expiring", "auth_expired"]
        assert said[-2][1] == {"expiresAt": expires_at}
        assert (said[-1][1]["code"], said[-1][1]["status"]) == ("access_token_expired", 401)
    assert [name for name, _ in heard] == ["subscribed", "status", "auth_expiring", "refused"]
    assert heard[-2][1] == {"expiresAt": expires_at}
    assert (heard[-1][1]["taskIds"], heard[-1][1]["problem"]["code"], code) == ([], "access_token_expired", 1008)
    assert (poll.status_code, poll.json()["code"]) == (401, "access_token_expired")
    assert poll.headers["www-authenticate"].startswith("Bearer")
    # The browser comes back by itself: with the old token in vain, with a newer one from its cursor.
    play = await Play.of(here)
    await play.report(task, 10)
    await play.finish(task)
    async with here.client() as client:
        url = f"/api/generate/events?taskId={task}"
        headers = {"Last-Event-ID": "1"}
        old = await client.get(url, headers={**headers, "Authorization": f"Bearer {token}"})
        assert (old.status_code, old.json()["code"]) == (401, "access_token_expired")
        new = await client.get(url, headers={**headers, **person.headers()})
        assert '"mode":"replay","recovered":true' in new.text
        assert "id: 2\nevent: status" in new.text
        assert "id: 3\nevent: status" in new.text
    assert await counted(here, 'taskbeam_access_ended_total{reason="expired"}') == 7
    assert token[-20:] not in here.web.log.read_text()


async def test_a_newer_token_keeps_a_socket_open(here: Deployment) -> None:
    person, play = Person(), await Play.of(here)
    async with here.client() as client:
        task = await new_task(client, person)
    ends_at = int(time.time()) + 3
    heard: Told = []
    async with socket_of(here, person.token(exp=ends_at)) as socket:
        await socket.send(json.dumps({"type": "subscribe", "taskIds": [task]}))
        await hear(socket, heard, "auth_expiring")
        for bad, code in (
            (Person().token(), "invalid_access_token"),
            ("x", "invalid_access_token"),
            (person.token(exp=int(time.time()) - 10), "access_token_expired"),
        ):
            await socket.send(json.dumps({"type": "auth", "token": bad}))
            assert (await hear(socket, heard, "refused"))["problem"]["code"] == code
        await play.report(task, 5)
        newer = int(time.time()) + 300
        await socket.send(json.dumps({"type": "auth", "token": person.token(exp=newer)}))
        told_until = (await hear(socket, heard, "authenticated"))["expiresAt"]
        assert dt.datetime.fromisoformat(told_until).timestamp() == newer
        for progress in range(10, 60, 10):
            await play.report(task, progress)
            await asyncio.sleep(max(0.0, ends_at + 2 - time.time()) if progress == 30 else 0.02)
        await play.finish(task)
        while (await hear(socket, heard, "status"))["task"]["status"] != "completed":
            pass
    tasks = [message["task"] for kind, message in heard if kind in ("status", "progress")]
    assert [task["version"] for task in tasks] == list(range(1, 9)), "no event is lost or told twice"


async def watched(
    here: Deployment, person: Person, task: str, take_away: Callable[[], Awaitable[object]], **claims: Any
) -> tuple[tuple[Told, Told], tuple[Told, int | None], httpx.Response]:
    """What is told on both kinds of streams, on a socket, and as a held answer, once the right is gone."""
    token = person.token(**claims)
    watching = asyncio.gather(
        asyncio.gather(told(here, f"taskId={task}", token), told(here, f"taskId={task}", token, "1.0")),
        socket_told(here, token, task),
        polled(here, task, token),
    )
    await asyncio.sleep(1)  # joined, and looked at
    await take_away()
    return await watching


async def test_a_task_that_its_follower_may_see_no_more(here: Deployment, owner: Connection) -> None:
    """To him it is deleted: what he is told says no more than of one that never was."""
    person, other, moved = Person(), Person(), Person()
    async with here.client() as client:
        tasks = {p.id: await new_task(client, p) for p in (person, other, moved)}
        await new_task(client, other)
        absent = await client.get("/api/generate/events?taskId=absent", headers=person.headers())
    bystander = asyncio.create_task(told(here, f"taskId={tasks[other.id]}", other.token()))

    async def forbid() -> None:
        await owner.execute(
            "create policy strict on image_generations as restrictive for select to authenticated "
            f"using (user_id <> '{person.id}')"
        )

    async def move() -> None:
        await owner.execute("set session_replication_role = replica")
        await owner.execute(
            "update image_generations set user_id = $1 where task_id = $2", uuid.UUID(other.id), tasks[moved.id]
        )
        await owner.execute(
            "update task_events set user_id = $1, owner_seq = 100 where task_id = $2", other.id, tasks[moved.id]
        )

    for who, take_away in ((person, forbid), (moved, move)):
        streams, (heard, code), poll = await watched(here, who, tasks[who.id], take_away)
        for said in streams:
            assert [name for name, _ in said] == ["sync", "status", "refused"]
            assert said[-1][1] == NOT_FOUND == without_request_id(absent)
        assert heard[-2] == ("refused", {"taskIds": [tasks[who.id]], "problem": NOT_FOUND})
        assert code is None, "of a socket only what followed the task ends"
        assert (poll.status_code, without_request_id(poll)) == (404, NOT_FOUND)
    assert not bystander.done()
    await (await Play.of(here)).finish(tasks[other.id])
    assert [name for name, _ in await bystander] == ["sync", "status", "status"]
    assert await counted(here, 'taskbeam_access_ended_total{reason="revoked"}') == 8


async def test_one_of_several_that_its_follower_may_see_no_more(here: Deployment, owner: Connection) -> None:
    person, play = Person(), await Play.of(here)
    async with here.client() as client:
        kept, hidden = await new_task(client, person), await new_task(client, person)
    following = [
        asyncio.create_task(told(here, f"taskId={kept}&taskId={hidden}", person.token(), version))
        for version in ("1.1", "1.0")
    ]
    await asyncio.sleep(1)
    await owner.execute(
        "create policy strict on image_generations as restrictive for select to authenticated "
        f"using (task_id <> '{hidden}')"
    )
    await asyncio.sleep(1)
    await play.finish(hidden)
    await play.finish(kept)
    for said in await asyncio.gather(*following):
        assert ("deleted", {"taskId": hidden}) in said
        ended = [data["taskId"] for name, data in said if name == "status" and data["status"] == "completed"]
        assert ended == [kept]


async def test_a_user_who_signed_out_or_is_no_more(here: Deployment, owner: Connection) -> None:
    gone, out = Person(), Person()
    async with here.client() as client:
        tasks = {p.id: await new_task(client, p) for p in (gone, out)}
    session, stays = str(uuid.uuid4()), str(uuid.uuid4())
    await owner.execute(SESSIONS)
    await owner.execute("insert into auth.sessions select unnest($1::uuid[])", [session, stays])
    cases: list[tuple[Person, str, Callable[[], Awaitable[object]]]] = [
        (out, session, lambda: owner.execute("delete from auth.sessions where id = $1", session)),
        (gone, stays, lambda: owner.execute("delete from auth.users where id = $1", gone.id)),
    ]
    for who, session_id, take_away in cases:
        of_all = asyncio.create_task(told(here, "", who.token(session_id=session_id)))
        streams, (heard, code), poll = await watched(here, who, tasks[who.id], take_away, session_id=session_id)
        # With the user his tasks go, and that may be told first.
        first = ("session_ended",) if who is out else ("session_ended", "task_not_found")
        for said in streams:
            assert (said[-1][0], said[-1][1]["code"] in first) == ("refused", True), said[-1]
        assert poll.json()["code"] in first
        name, problem = (await of_all)[-1]
        assert (name, problem["code"], problem["status"]) == ("refused", "session_ended", 401)
        if who is out:
            assert (heard[-1][1]["problem"]["code"], code) == ("session_ended", 1008)
            async with here.client() as client:
                again = await client.get("/api/generate/events", headers=out.headers(session_id=session))
                assert (again.status_code, again.json()["code"]) == (401, "session_ended")
                url = f"/api/generate/status?taskId={tasks[out.id]}&wait=1"
                other = await client.get(url, headers=out.headers(session_id=stays))
                assert other.status_code == 200, "another session of his goes on"
