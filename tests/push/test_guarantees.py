"""What the push path promises whatever Redis and our own processes do: it is push, and nothing is lost."""

import asyncio
import re
import time
from pathlib import Path

import pytest
import redis.asyncio

from server.chaos.redis_proxy import Mode, RedisProxy
from server.embedded.redis import EmbeddedRedis
from tests.conftest import Connection, Deploy
from tests.deployment import Database, Deployment
from tests.playing import Play
from tests.sse import Event, changes, check_followed, stream

# The tick comes once a second: what is lost on the way may be late by that and no more.
TICK_SECONDS_MAX = 1.5


async def metric(here: Deployment, name: str, web: int = 0) -> float:
    async with here.client(web) as client:
        text = (await client.get("/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


async def seen_after(here: Deployment, play: Play, web: int, follower: int) -> tuple[list[Event], list[float]]:
    """Report 20 times and finish through one process, follow through another; each change and how late it was."""
    task_id = await play.create(web=web)
    late: list[float] = []
    seen: list[Event] = []
    async with here.client(follower) as client, stream(client, f"taskId={task_id}") as events:
        while (await anext(events)).event != "status":
            pass
        for progress in range(5, 105, 5):
            began = time.monotonic()
            await play.report(task_id, progress, web=web)
            event = await anext(events)
            late.append(time.monotonic() - began)
            seen.append(event)
        await play.finish(task_id, web=web)
        seen += [event async for event in events if event.is_change]
    return seen, late


# With Redis as the bus, and with the notices of Postgres where there is none.
@pytest.fixture(params=["redis", "notices"])
def bus(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose the bus."""
    return {"REDIS_URL": ""} if request.param == "notices" else {}


async def test_it_is_push(deploy: Deploy, bus: dict[str, str]) -> None:
    here = await deploy(webs=2, dispatchers=0, generator=False, env=bus)
    play = await Play.of(here)
    seen, late = await seen_after(here, play, web=0, follower=1)
    check_followed(seen, after=1)
    assert seen[-1].data["status"] == "completed"
    assert [event.data["progress"] for event in seen] == [*range(5, 105, 5), 100]
    # A tick alone would take half a second on average. The figure itself is the bench's to tell.
    assert sorted(late)[10] < 0.2


async def test_a_bare_redis_client_hears_every_change(
    deploy: Deploy, redis_server: EmbeddedRedis, owner: Connection
) -> None:
    here = await deploy()
    play = await Play.of(here)
    client = redis.asyncio.Redis.from_url(redis_server.url())
    pubsub = client.pubsub()
    task_id = await play.create()
    await pubsub.subscribe(f"{here.prefix}task:{task_id}")
    began = await owner.fetchval("select max(version) from task_events where task_id = $1", task_id)
    versions: list[int] = []
    async with asyncio.timeout(20):
        async for message in pubsub.listen():
            if message["type"] == "message":
                versions.append(int(re.search(rb'"version":(\d+)', message["data"])[1]))  # type: ignore[index]
                if b'"status":"completed"' in message["data"]:
                    break
    await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis has no annotation there
    await client.aclose()
    logged = await owner.fetch("select version from task_events where task_id = $1 order by version", task_id)
    assert [row["version"] for row in logged] == list(range(1, len(logged) + 1))
    assert versions[-1] == len(logged)
    # Each, but not in order: the dispatcher publishes that it has begun, a web process what the generator then says,
    # and whoever follows by our own transports has them put right.
    assert sorted(versions) == list(range(min(versions), len(logged) + 1))
    assert min(versions) <= began + 1


@pytest.mark.parametrize("mode", ["swallow", "double", "reorder"])
async def test_a_redis_that_misbehaves(
    deploy: Deploy, redis_server: EmbeddedRedis, database: Database, folder: Path, mode: Mode
) -> None:
    proxy = RedisProxy(mode)
    url = await proxy.start(redis_server.url(), folder / f"{database.name}.redis")
    try:
        here = await deploy(webs=2, dispatchers=0, generator=False, env={"REDIS_URL": url})
        play = await Play.of(here)
        task_id = await play.create()
        async with here.client(1) as client, stream(client, f"taskId={task_id}") as events:
            for progress in (10, 20, 30):
                await play.report(task_id, progress)
            await play.finish(task_id)
            finished = time.monotonic()
            seen = [event async for event in events if event.is_change]
            late = time.monotonic() - finished
        check_followed(seen)
        assert seen[-1].data["status"] == "completed"
        assert late < TICK_SECONDS_MAX
        assert proxy.kept > 0, "the proxy had nothing to spoil: the test shows nothing"
        if mode == "swallow":
            assert await metric(here, "taskbeam_tick_catches_total", 1) > 0
    finally:
        await proxy.stop()


async def test_a_process_that_dies_between_commit_and_publish(deploy: Deploy, bus: dict[str, str]) -> None:
    here = await deploy(webs=2, dispatchers=0, generator=False, env=bus)
    play = await Play.of(here)
    task_id = await play.create(web=1)
    here.web.stop()
    await here.web.start(TASKBEAM_FAILPOINTS="change.committed")
    async with here.client(1) as client, stream(client, f"taskId={task_id}") as events:
        while (await anext(events)).event != "status":
            pass
        with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed|read"):
            await play.finish(task_id, web=0)
        died = time.monotonic()
        assert here.web.wait() == 86
        last = [event async for event in events][-1]
        late = time.monotonic() - died
    assert last.data["status"] == "completed"
    assert late < TICK_SECONDS_MAX


async def test_without_redis_everything_still_arrives(deploy: Deploy, folder: Path) -> None:
    private = EmbeddedRedis(folder / "own-redis")
    (folder / "own-redis").mkdir()
    private.start()
    private.ready()
    try:
        here = await deploy(dispatchers=0, generator=False, env={"REDIS_URL": private.url()})
        play = await Play.of(here)
        before = await play.create()
        async with here.client() as client, stream(client, f"taskId={before}") as events:
            while (await anext(events)).event != "status":
                pass
            private.stop()
            await play.report(before, 50)
            assert (await anext(events)).data["progress"] == 50
            after = await play.create()  # accepted, and followed, without Redis
            joined = time.monotonic()
            following = asyncio.create_task(changes(client, f"taskId={after}"))
            await play.finish(before)
            assert [event async for event in events][-1].data["status"] == "completed"
            await play.finish(after)
            seen = await following
            assert seen[-1].data["status"] == "completed"
            assert time.monotonic() - joined < 2 * TICK_SECONDS_MAX + 1
        async with here.client() as client:
            ready = await client.get("/readyz")
        assert ready.status_code == 200
        parts = ready.json()
        assert (parts["status"], parts["postgres"], parts["redis"]) == ("degraded", "up", "down")
        # And when Redis is back, it is push again.
        private.start()
        private.ready()
        deadline = time.monotonic() + 10
        while await metric(here, "taskbeam_bus_connected") != 1:
            assert time.monotonic() < deadline, "the bus did not come back"
            await asyncio.sleep(0.05)
        _, late = await seen_after(here, play, web=0, follower=0)
        assert sorted(late)[10] < 0.2
    finally:
        private.stop()


async def test_a_restart_in_the_middle(deploy: Deploy, bus: dict[str, str]) -> None:
    here = await deploy(dispatchers=0, generator=False, env=bus)
    play = await Play.of(here)
    task_id = await play.create()
    await play.report(task_id, 10)
    async with here.client() as client:
        async with stream(client, f"taskId={task_id}") as events:
            while not (event := await anext(events)).is_change:
                pass
            cursor = event.id
            began = time.monotonic()
            here.web.signal(15)
            rest = [event async for event in events]  # ends cleanly, or this raises
        assert [event.event for event in rest if event.data is not None] == ["bye"]
        assert any(event.retry for event in rest)
        here.web.wait()
        assert time.monotonic() - began < 5
        await here.web.start()
        await play.report(task_id, 60)
        following = asyncio.create_task(changes(client, f"taskId={task_id}", {"Last-Event-ID": str(cursor)}))
        await play.finish(task_id)
        seen = await following
        check_followed(seen, after=int(str(cursor)))
        assert seen[-1].data["status"] == "completed"


async def test_the_whole_path_without_redis(deploy: Deploy) -> None:
    here = await deploy(env={"REDIS_URL": ""})
    play = await Play.of(here)
    task_id = await play.create()
    async with here.client() as client:
        seen = await changes(client, f"taskId={task_id}")
        check_followed(seen)
        assert seen[-1].data["status"] == "completed"
        assert len({event.data["progress"] for event in seen} - {None, 0, 100}) >= 1
        ready = (await client.get("/readyz")).json()
        assert ready == {"status": "ready", "postgres": "up", "redis": "none", "qstash": "up"}


async def test_changes_that_others_make_are_pushed(deploy: Deploy, owner: Connection, bus: dict[str, str]) -> None:
    """The app's own route, or a person in the table editor, in a transaction of many seconds."""
    here = await deploy(dispatchers=0, generator=False, env=bus)
    play = await Play.of(here)
    task_id = await play.create()
    async with here.client() as client, stream(client, f"taskId={task_id}") as events, stream(client, "") as all_events:
        for each in (events, all_events):
            while not (await anext(each)).is_change:
                pass
        transaction = owner.transaction()
        await transaction.start()
        await owner.execute("update image_generations set status = 'processing' where task_id = $1", task_id)
        await asyncio.sleep(7)
        await transaction.commit()
        committed = time.monotonic()
        for each in (events, all_events):
            event = await anext(each)
            assert (event.event, event.data["status"], event.data["version"]) == ("status", "processing", 2)
        assert time.monotonic() - committed < TICK_SECONDS_MAX


async def test_a_change_that_nobody_told_of_and_that_took_long_is_found(deploy: Deploy, owner: Connection) -> None:
    """Another writer's transaction of many seconds, or a COMMIT that hangs; and the notice of it is lost too."""
    here = await deploy(dispatchers=0, generator=False)
    play = await Play.of(here)
    task_id = await play.create()
    async with here.client() as client, stream(client, f"taskId={task_id}") as events, stream(client, "") as all_events:
        for each in (events, all_events):
            while not (await anext(each)).is_change:
                pass
        transaction = owner.transaction()
        await transaction.start()
        await owner.execute("update image_generations set status = 'processing' where task_id = $1", task_id)
        await asyncio.sleep(7)
        ended = await owner.fetchval(
            """select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and query ilike 'listen%'"""
        )
        await transaction.commit()
        committed = time.monotonic()
        assert ended >= 1, "nobody was listening: the test shows nothing"
        for each in (events, all_events):
            event = await anext(each)
            assert (event.event, event.data["status"], event.data["version"]) == ("status", "processing", 2)
        assert time.monotonic() - committed < TICK_SECONDS_MAX
