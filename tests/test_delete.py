"""Deleting a task: its owner's wish, or whatever else takes its row away. Whoever follows it is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from server.db import Pool
from server.tasks.state import Complete
from server.tasks.store import NoSuchTask, Referenced
from tests.conftest import Connection, Deploy
from tests.deployment import Deployment
from tests.playing import Play
from tests.push.test_ws import address, hear, say
from tests.receiver import Receiver, Reply, Request, until
from tests.sse import Event, stream
from tests.tasks.conftest import User, store_on

TOLD_SECONDS_MAX = 5.0


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver
    receiver.listener.close()


async def delete(here: Deployment, task_id: str) -> httpx.Response:
    async with here.client() as client:
        return await client.delete(f"/api/generate?taskId={task_id}")


async def status_of(here: Deployment, task_id: str) -> int:
    async with here.client() as client:
        return (await client.get(f"/api/generate/status?taskId={task_id}")).status_code


async def test_it_goes_with_its_log_and_its_picture(deploy: Deploy, owner: Connection) -> None:
    here = await deploy()
    async with here.client() as client:
        made = (await client.post("/api/generate", json={"prompt": "a quiet harbour"})).json()["taskId"]
        async with stream(client, f"taskId={made}") as events:
            result = [event async for event in events if event.is_change][-1].data["result"]
        assert (await client.get(result)).status_code == 200
        answer = await client.delete(f"/api/generate?taskId={made}")
        assert (answer.status_code, answer.json()) == (200, {"taskId": made, "outcome": "deleted"})
        for path in (f"/api/generate/status?taskId={made}", f"/api/generate/events?taskId={made}", result):
            assert (await client.get(path)).status_code == 404, path
        assert (await client.get("/api/generate")).json()["tasks"] == []
        again = await client.delete(f"/api/generate?taskId={made}")
        assert (again.status_code, again.json()["code"]) == (404, "task_not_found")
    left = await owner.fetchrow(
        """select (select count(*) from task_events) as events, (select count(*) from taskbeam.dispatches) as messages,
                  (select count(*) from taskbeam.discarded_pictures) as pictures"""
    )
    assert left is not None
    assert tuple(left) == (0, 0, 0)
    assert list((here.folder / "results").glob("*")) == []


async def test_a_running_one_is_cancelled_first(deploy: Deploy, owner: Connection, receiver: Receiver) -> None:
    """Its follower sees its end, its generator's request is cut, and nothing comes of the rest."""
    gate = asyncio.Event()

    async def slow(_: Request) -> Reply:
        await gate.wait()
        return Reply(200)

    here = await deploy(generator=False, env={"GENERATOR_URL": receiver.on("/slow", slow)})
    play = await Play.of(here)
    task_id = await play.create()
    await receiver.wait("/slow")
    async with here.client() as client, stream(client, f"taskId={task_id}") as events:
        assert (await anext(events)).event != "status"
        answer = await delete(here, task_id)
        assert answer.status_code == 200
        seen = [event.data async for event in events if event.is_change]
    assert (seen[-1]["status"], seen[-1]["cancelled"], seen[-1]["errorCode"]) == ("failed", True, "cancelled")
    assert [task["status"] for task in seen].count("failed") == 1
    assert await status_of(here, task_id) == 404

    async def withdrawn() -> bool:
        return bool(await owner.fetchval("select state = 'canceled' from dispatcher.messages"))

    await until(withdrawn, "its message is withdrawn")
    gate.set()
    # A callback that was under way all the same is told for good that there is no such task.
    late = await play.finish(task_id)
    assert (late.status_code, late.headers["Upstash-NonRetryable-Error"]) == (489, "true")
    assert await status_of(here, task_id) == 404


async def test_a_wrong_wish_deletes_nothing(deploy: Deploy) -> None:
    here = await deploy(dispatchers=0, generator=False)
    task_id = await (await Play.of(here)).create()
    me = f"taskId={task_id}"
    async with here.client() as client:
        for query, status in (
            ("", 400),
            ("?taskId=", 404),
            ("?taskId=absent", 404),
            (f"?{me}&{me}", 400),
            (f"?{me}&force=1", 400),
            (f"?{me.lower()}", 400),
        ):
            assert (await client.delete(f"/api/generate{query}")).status_code == status, query
        answer = await client.delete(f"/api/generate?{me}", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403, "no other page can ask for it"
    assert await status_of(here, task_id) == 200


async def test_only_its_owner_can(pool: Pool) -> None:
    store = store_on(pool, [])
    user = User()
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    for claims in (User().claims, '{"role":"authenticated"}', "{}"):
        with pytest.raises(NoSuchTask):
            await store.delete(claims, task_id)
    assert (await store.delete(user.claims, task_id)).result is None


@pytest.mark.parametrize("how", ["", "on delete restrict", "deferrable initially deferred"])
async def test_what_other_rows_refer_to_stays_and_goes_on(pool: Pool, owner: Connection, how: str) -> None:
    store = store_on(pool, [])
    user = User()
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await owner.execute(f"create table favourites (task_id text references image_generations (task_id) {how})")
    await owner.execute("insert into favourites values ($1)", task_id)
    with pytest.raises(Referenced):
        await store.delete(user.claims, task_id)
    assert await store.standing(task_id, 1) == "open", "it was not cancelled either"
    assert await store.complete(task_id, Complete(attempt=1, result="/r")) == "applied"
    with pytest.raises(Referenced):
        await store.delete(user.claims, task_id)
    assert await store.names(task_id, "/r")


# Whoever follows a task whose row is taken away by others (the table editor, a deleted user): with Redis and without.


@pytest.fixture(params=["redis", "notices"])
async def here(request: pytest.FixtureRequest, deploy: Deploy) -> Deployment:
    return await deploy(dispatchers=0, generator=False, env={"REDIS_URL": ""} if request.param == "notices" else {})


async def test_every_follower_is_told(here: Deployment, owner: Connection) -> None:
    play = await Play.of(here)
    gone, other = await play.create(), await play.create()

    async def follow(client: httpx.AsyncClient, query: str, until: str) -> list[Event]:
        seen: list[Event] = []
        async with stream(client, query) as events:
            async for event in events:
                seen.append(event)
                if event.event == "sync":
                    joined.release()
                if event.event == until and until == "deleted":
                    break
        return seen

    async def poll(client: httpx.AsyncClient) -> httpx.Response:
        joined.release()
        return await client.get(f"/api/generate/status?taskId={gone}&wait=20&after=1")

    async def socket(**subscribe: Any) -> dict[str, Any]:
        async with connect(address(here), proxy=None) as websocket:
            await say(websocket, type="subscribe", **subscribe)
            while True:
                message = await hear(websocket)
                if message["type"] == "subscribed":
                    joined.release()
                if message["type"] in ("deleted", "refused"):
                    return message

    joined = asyncio.Semaphore(0)
    async with here.client() as client, asyncio.timeout(20):
        async with asyncio.TaskGroup() as group:
            one = group.create_task(follow(client, f"taskId={gone}", "refused"))
            all_ = group.create_task(follow(client, "", "deleted"))
            polled = group.create_task(poll(client))
            socket_one = group.create_task(socket(taskIds=[gone]))
            socket_all = group.create_task(socket(all=True))
            for _ in range(5):
                await joined.acquire()
            await asyncio.sleep(0.3)
            await owner.execute("delete from image_generations where task_id = $1", gone)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < TOLD_SECONDS_MAX
        assert one.result()[-1].event == "refused"
        assert one.result()[-1].data["code"] == "task_not_found"
        assert (all_.result()[-1].event, all_.result()[-1].data, all_.result()[-1].id) == (
            "deleted",
            {"taskId": gone},
            None,
        )
        assert polled.result().status_code == 404
        assert socket_one.result()["problem"]["code"] == "task_not_found"
        assert socket_one.result()["taskIds"] == [gone]
        assert socket_all.result() == {"type": "deleted", "taskIds": [gone]}
    assert await status_of(here, other) == 200


async def test_the_end_of_a_running_one_is_seen_whatever_the_bus_does(here: Deployment) -> None:
    play = await Play.of(here)
    for _ in range(5):
        task_id = await play.create()
        async with here.client() as client, stream(client, f"taskId={task_id}") as events:
            while (await anext(events)).event != "status":
                pass
            assert (await delete(here, task_id)).status_code == 200
            seen = [event async for event in events if event.is_change]
        assert [(event.data["status"], event.data["cancelled"]) for event in seen] == [("failed", True)]


async def test_a_stream_of_named_tasks_ends_when_the_last_of_them_is_gone(here: Deployment, owner: Connection) -> None:
    play = await Play.of(here)
    first, second, other = await play.create(), await play.create(), await play.create()
    async with (
        here.client() as client,
        asyncio.timeout(20),
        stream(client, f"taskId={first}&taskId={second}") as events,
    ):
        seen: list[Event] = [await anext(events) for _ in range(2)]
        await play.finish(first)
        await owner.execute("delete from image_generations where task_id = $1", other)
        await owner.execute("delete from image_generations where task_id = $1", second)
        seen += [event async for event in events]
    assert [event.data["taskId"] for event in seen if event.event == "deleted"] == [second]
    assert [event.data["taskId"] for event in seen if event.event == "status"][-1] == first


async def test_an_accepted_task_that_is_deleted_while_it_is_handed_on_is_withdrawn(
    deploy: Deploy, receiver: Receiver
) -> None:
    gate = asyncio.Event()

    async def publish(_: Request) -> Reply:
        await gate.wait()
        return Reply(201, b'{"messageId":"msg_1"}', {"Content-Type": "application/json"})

    receiver.on("/v2/publish/http://127.0.0.1:9/", publish)
    here = await deploy(
        dispatchers=0,
        generator=False,
        env={"QSTASH_URL": receiver.origin, "GENERATOR_URL": "http://127.0.0.1:9/"},
    )
    task_id = await (await Play.of(here)).create()
    await receiver.wait("/v2/publish/http://127.0.0.1:9/")
    assert (await delete(here, task_id)).status_code == 200
    gate.set()
    (withdrawal,) = await receiver.wait("/v2/messages/msg_1")
    assert withdrawal.method == "DELETE"
