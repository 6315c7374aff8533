"""No news, with our own dispatcher: a job that hangs, one whose message is lost, and one whose callback is lost."""

import asyncio
from typing import Any

from tests.conftest import Connection, Deploy
from tests.receiver import Receiver, Reply, Request, until
from tests.sse import changes

CALLBACK = "/api/generate/callback"
DONE = Reply(200, b'{"url":"https://pictures.test/1.png"}')


async def test_a_story_without_callbacks(deploy: Deploy, owner: Connection) -> None:
    hung = asyncio.Event()

    async def draw(request: Request) -> Reply:
        if request.json()["prompt"] == "hang":
            await hung.wait()
        return DONE

    async with Receiver() as far:
        far.on(CALLBACK, Reply(489, b"not here", {"Upstash-NonRetryable-Error": "true"}))
        env = {"GENERATOR_URL": far.on("/draw", draw), "CALLBACK_URL": far.origin, "DISPATCHER_PARALLELISM": "1"}
        here = await deploy(generator=False, env=env)
        async with here.client() as browser:
            hanging = (await browser.post("/api/generate", json={"prompt": "hang"})).json()["taskId"]
            await far.wait("/draw")
            waiting = (await browser.post("/api/generate", json={"prompt": "wait"})).json()["taskId"]

            async def dispatch() -> Any:
                row = await owner.fetchrow("select * from taskbeam.dispatches where task_id = $1", waiting)
                assert row is not None
                return row

            async def looked_at() -> Any:
                return (await dispatch())["lookup_at"] != looked

            # It waits in our queue: nothing is sent again.
            await until(lambda: _sent(owner, waiting), "it is sent")
            looked = await owner.fetchval(
                "update taskbeam.dispatches set lookup_at = now() where task_id = $1 returning lookup_at", waiting
            )
            await until(looked_at, "it is looked up")
            first = await dispatch()
            assert (first["resends"], first["tries"]) == (0, 1)

            # The dispatcher's database comes from an older backup.
            await owner.execute("delete from dispatcher.messages where id = $1", first["message_id"])
            await owner.execute("delete from dispatcher.deduplications where id = $1", f"id:{waiting}-1")
            await owner.execute("update taskbeam.dispatches set lookup_at = now() where task_id = $1", waiting)

            async def sent_again() -> Any:
                row = await dispatch()
                return row["resends"] == 1 and row["message_id"] != first["message_id"] and row["sent_at"]

            await until(sent_again, "it is sent again")

            # What hangs past its deadline is ended, and makes room.
            await owner.execute("update image_generations set deadline_at = now() where task_id = $1", hanging)
            end = (await changes(browser, f"taskId={hanging}"))[-1].data
            assert (end["errorCode"], end["error"]) == ("timeout", "The generator did not finish in time")
            await far.wait("/draw", 2)
            state = "select state::text from dispatcher.messages m join taskbeam.dispatches d on d.message_id = m.id "
            assert await owner.fetchval(state + "where task_id = $1", hanging) == "canceled"

            # Its callback is refused for good; the dead letter has the picture.
            dead = "select count(*) from dispatcher.messages where kind = 'callback' and state = 'failed'"
            await until(lambda: owner.fetchval(dead), "the callback is a dead letter")
            await owner.execute("update image_generations set deadline_at = now() where task_id = $1", waiting)
            end = (await changes(browser, f"taskId={waiting}"))[-1].data
            assert (end["status"], end["result"]) == ("completed", "https://pictures.test/1.png")
            noted = (await browser.get("/api/generate/deliveries", params={"taskId": waiting})).json()["deliveries"]
            assert [(row["kind"], row["outcome"], row["status"]) for row in noted] == [("lookup", "applied", 200)]
        hung.set()
    far.listener.close()


async def _sent(owner: Connection, task_id: str) -> Any:
    return await owner.fetchval("select sent_at from taskbeam.dispatches where task_id = $1", task_id)
