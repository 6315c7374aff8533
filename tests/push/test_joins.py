"""Many clients come back at once: all of them are soon whole again, and the database is asked a few times."""

import asyncio
import time

from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.exposition import scrape, value
from tests.playing import Play
from tests.push.test_slow_clients import Connected, request

CLIENTS = 500
# Of one turn of the loop each call may take 500. Some come before it is seen that they are many.
CALLS_MAX = 30
# What else the process asks in a second: the tick, the outbox, the reconciler, upkeep.
OTHERS_A_SECOND = 10


async def calls(here: Deployment) -> float:
    """How often the process has taken a connection to Postgres."""
    return value(await scrape(here.web.url), "taskbeam_pool_wait_seconds_count")


async def test_hundreds_join_with_a_few_calls(deploy: Deploy) -> None:
    here = await deploy(dispatchers=0, generator=False)
    play = await Play.of(here)
    tasks = [await play.create() for _ in range(10)]
    begun: list[tuple[str, bytes]] = []

    async def join(number: int) -> Connected:
        task_id = tasks[number % len(tasks)]
        cursor = ("", "&after=1", "&after=7")[number % 3]  # of the present, up to date, and one we never sent
        head = f"GET /api/generate/events?taskId={task_id}{cursor} HTTP/1.1\r\nHost: HOST\r\n\r\n"
        reader, writer = await request(here, head)
        data = await asyncio.wait_for(reader.readuntil(b"event: sync"), 20)
        if cursor != "&after=1":
            data += await asyncio.wait_for(reader.readuntil(b"event: status"), 20)
            data += await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)
        begun.append((task_id, data))
        return reader, writer

    before, began = await calls(here), time.monotonic()
    joined = await asyncio.gather(*map(join, range(CLIENTS)))
    asked = await calls(here) - before
    assert asked <= CALLS_MAX + OTHERS_A_SECOND * (time.monotonic() - began), asked
    assert len(begun) == CLIENTS
    for task_id, data in begun:
        assert b"event: status" not in data or task_id.encode() in data, "the task of somebody else"
    # Each is live: the end of its task comes to it.
    for task_id in tasks:
        await play.finish(task_id)
    for reader, writer in joined:
        assert b'"status":"completed"' in await asyncio.wait_for(reader.read(), 20)
        writer.close()
