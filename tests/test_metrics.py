"""What the web processes count: each for itself, in series whose number no request can raise."""

import asyncio
import json
import time
import typing

from websockets.asyncio.client import connect

from server import metrics
from server.push import wire
from tests.conftest import Connection, Deploy
from tests.exposition import parse, scrape, value
from tests.playing import Play
from tests.receiver import until
from tests.sse import changes, stream

UNSENT = "taskbeam_deployment_outbox_unsent"
LAG = "taskbeam_event_loop_lag_seconds"
LATENCY = "taskbeam_commit_to_send_seconds_count"


async def test_two_processes_count_for_themselves_and_agree_on_what_waits(deploy: Deploy) -> None:
    here = await deploy(webs=2, dispatchers=0, generator=False)
    first, second = (web.url for web in here.webs)
    play = await Play.of(here)
    sse, websocket, poll = ({"transport": name} for name in ("sse", "websocket", "poll"))
    task_id = await play.create(web=0)
    socket = await connect(f"{second.replace('http', 'ws')}/api/generate/ws", proxy=None)
    await socket.send(json.dumps({"type": "subscribe", "taskIds": [task_id]}))
    assert [json.loads(await socket.recv())["type"] for _ in range(2)] == ["subscribed", "status"]
    async with here.client(1) as client:
        held = asyncio.create_task(client.get(f"/api/generate/status?taskId={task_id}&wait=20&after=1"))
        async with stream(client, f"taskId={task_id}") as events:
            while (await anext(events)).event != "status":
                pass

            async def all_there() -> bool:
                shown = await scrape(second)
                return all(value(shown, "taskbeam_streams_open", way) == 1 for way in (sse, websocket, poll))

            await until(all_there, "three followers are counted")
            for progress in (10, 20, 30):
                await play.report(task_id, progress, web=0)
                while not (event := await anext(events)).is_change:
                    pass
                assert event.data["progress"] == progress
                assert json.loads(await socket.recv())["task"]["progress"] == progress
            assert (await held).json()["progress"] == 10
            await play.finish(task_id, web=0)
            assert [event async for event in events if event.is_change]
        # From its cursor: what it missed, then a cursor at the end.
        assert len(await changes(client, f"taskId={task_id}&after=2")) == 1
        assert (await client.get(f"/api/generate/events?taskId={task_id}&after=5")).status_code == 204
    assert json.loads(await socket.recv())["task"]["status"] == "completed"
    await socket.close()

    one, two = await scrape(first), await scrape(second)
    assert value(one, "taskbeam_tasks_created_total") == 1
    assert value(two, "taskbeam_tasks_created_total") == 0
    assert value(one, "taskbeam_callbacks_total", {"outcome": "applied"}) == 1
    assert value(one, "taskbeam_reports_total", {"outcome": "applied"}) == 3
    assert value(one, "taskbeam_events_sent_total", sse) == 0
    assert value(two, "taskbeam_events_sent_total", sse) == 1 + 3 + 1 + 1
    assert value(two, "taskbeam_events_sent_total", websocket) == 1 + 3 + 1
    assert value(two, "taskbeam_events_sent_total", poll) == 1
    assert value(two, "taskbeam_joins_total", {**sse, "mode": "snapshot"}) == 1
    assert value(two, "taskbeam_joins_total", {**sse, "mode": "replay"}) == 1
    assert value(two, "taskbeam_joins_total", {**websocket, "mode": "snapshot"}) == 1
    assert value(two, "taskbeam_joins_total", {**poll, "mode": "live"}) == 1
    assert value(two, LATENCY) == 4 + 4 + 1  # neither the snapshots nor what was replayed
    assert value(two, "taskbeam_commit_to_send_seconds_bucket", {"le": "300.0"}) == 9

    for shown in (one, two):
        assert value(shown, "taskbeam_database_up") == 1
        assert value(shown, UNSENT) == 0 or value(shown, "taskbeam_deployment_outbox_oldest_seconds") > 0
        assert abs(value(shown, "taskbeam_database_clock_ahead_seconds")) < 0.5
        assert (
            1 <= value(shown, "taskbeam_pool_connections_open") <= value(shown, "taskbeam_pool_connections_max") == 10
        )
        assert value(shown, "taskbeam_pool_wait_seconds_count") > 5
        assert value(shown, "process_resident_memory_bytes") > 10_000_000
        assert {"version", "python", "process"} == {
            label for name, labels in shown if name == "taskbeam_build_info" for label, _ in labels
        }


async def test_what_waits_is_counted_in_postgres(deploy: Deploy, owner: Connection) -> None:
    here = await deploy(webs=2, dispatchers=0, generator=False)
    play = await Play.of(here)
    ids = [await play.create() for _ in range(5)]
    await play.report(ids[0], 10)
    await play.finish(ids[1])
    await owner.execute(
        "update taskbeam.dispatches set created_at = now() - interval '5 minutes' where task_id = $1", ids[2]
    )
    await owner.execute(
        "update taskbeam.dispatches set created_at = now() - interval '1 hour', sent_at = now() where task_id = $1",
        ids[3],
    )
    for web in here.webs:
        shown = await scrape(web.url)
        assert value(shown, "taskbeam_deployment_tasks", {"status": "pending"}) == 3
        assert value(shown, "taskbeam_deployment_tasks", {"status": "processing"}) == 1
        assert 3 <= value(shown, UNSENT) <= 4  # the one that has ended may have been struck off
        assert 300 <= value(shown, "taskbeam_deployment_outbox_oldest_seconds") < 310


async def test_what_was_before_a_follower_joined_is_not_late(deploy: Deploy) -> None:
    here = await deploy(dispatchers=0, generator=False)
    play = await Play.of(here)
    ids = [await play.create() for _ in range(5)]
    async with here.client() as client, stream(client, "after=s1") as events:
        seen = 0
        while seen < 4:  # the log, from the cursor
            seen += (await anext(events)).is_change
        shown = await scrape(here.web.url)
        assert value(shown, "taskbeam_events_sent_total", {"transport": "sse"}) == 4
        assert value(shown, LATENCY) == 0
        await play.report(ids[0], 10)
        while not (await anext(events)).is_change:
            pass
        assert value(await scrape(here.web.url), LATENCY) == 1


async def test_no_request_adds_series_without_end(deploy: Deploy) -> None:
    here = await deploy(dispatchers=0, generator=False)

    async def assault(salt: str, *unusual: str) -> None:
        async with here.client() as client:
            for n in range(40):
                for place in ("", "api/generate/", "results/", "static/", "api/generate/webhook/"):
                    method = ("GET", "POST", "DELETE", unusual[n % len(unusual)])[n % 4]
                    await client.request(method, f"/{place}{salt}{n}.png?task=x&attempt={n}")
                await client.get(f"/api/generate/events?taskId={salt}{n}")
                await client.get(f"/api/generate/status?taskId={salt}{n}&wait=1")
                await client.post(
                    f"/api/generate/callback?task={salt}{n}&attempt=1", headers={"Upstash-Signature": salt}
                )
                await client.get("/metrics", headers={"Host": f"{salt}{n}.test"})
                await client.get("/healthz", headers={"X-Request-Id": f"{salt}{n}", "User-Agent": f"{salt}{n}"})

    await assault("first", "PUT")
    await scrape(here.web.url)  # it is a request itself
    before = await scrape(here.web.url)
    await assault("second", "PATCH", "PROPFIND", "LOCK")
    after = await scrape(here.web.url)
    assert after.keys() == before.keys()
    counted = {key: number for key, number in after.items() if key[0] == "taskbeam_requests_total"}
    assert sum(counted.values()) > 700, "they were not counted at all"
    assert {dict(labels)["method"] for _, labels in counted} <= {"GET", "HEAD", "POST", "DELETE", "WS", "other"}


async def test_a_loop_that_is_held_up_is_seen() -> None:
    counted = metrics.Metrics()
    watching = asyncio.create_task(counted.watch_loop())
    await asyncio.sleep(0.1)
    assert value(parse((await counted.exposition()).decode()), f"{LAG}_count") == 0
    time.sleep(0.7)  # noqa: ASYNC251  (that is what is to be seen)
    await asyncio.sleep(0.05)
    shown = parse((await counted.exposition()).decode())
    watching.cancel()
    assert value(shown, f"{LAG}_count") == 1
    assert value(shown, f"{LAG}_bucket", {"le": "0.25"}) == 0
    assert 0.4 < value(shown, f"{LAG}_sum") < 2


def test_the_modes_are_those_of_the_wire() -> None:
    assert set(metrics.MODES) == set(typing.get_args(wire.Mode))
