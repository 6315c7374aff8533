"""What the processes say of themselves while a part is away: /readyz names it, and /metrics does not wait for it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from tests.deployment import Database, Deployment
from tests.exposition import names, scrape, value
from tests.playing import Play
from tests.receiver import Receiver, Reply, until


@pytest.fixture
def own_redis(folder: Path) -> Iterator[EmbeddedRedis]:
    """A server that a test may stop."""
    place = folder / "redis-away"
    place.mkdir()
    server = EmbeddedRedis(place)
    server.start()
    server.ready()
    yield server
    server.stop()


async def ready(url: str) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{url}/readyz")
        return answer.status_code, answer.json()


async def test_each_part_away(own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, folder: Path) -> None:
    database = Database("away", own_postgres.url("postgres", "taskbeam"), own_postgres.url("postgres"))
    here = Deployment(database, own_redis.url(), folder / "away-parts", generator=False)
    web, dispatcher = here.web.url, here.dispatcher.url
    try:
        await here.start()

        async def says(wanted: dict[str, str], status: int = 200) -> None:
            async def said() -> bool:
                return await ready(web) == (status, wanted)

            await until(said, f"/readyz says {wanted}")

        up = {"postgres": "up", "redis": "up"}
        await says({"status": "ready", **up, "qstash": "unknown"})
        play = await Play.of(here)
        await play.create()
        await says({"status": "ready", **up, "qstash": "up"})
        shown = await scrape(web)
        assert "taskbeam_deployment_tasks" in names(shown)

        here.dispatcher.kill()
        async with Receiver(here.dispatcher.listener) as broken:
            broken.on(f"/v2/publish/{here.env['GENERATOR_URL']}", Reply(503))
            await play.create()
            await says({"status": "degraded", **up, "qstash": "down"})
        await here.dispatcher.start()
        await says({"status": "ready", **up, "qstash": "up"})

        own_redis.stop()
        await says({"status": "degraded", "postgres": "up", "redis": "down", "qstash": "up"})
        assert value(await scrape(web), "taskbeam_bus_connected") == 0
        own_redis.start()
        own_redis.ready()
        await says({"status": "ready", **up, "qstash": "up"})

        own_postgres.stop()
        await says({"status": "unavailable", "postgres": "down", "redis": "up", "qstash": "up"}, 503)
        assert await ready(dispatcher) == (503, {"status": "unavailable", "postgres": "down"})
        for url in (web, dispatcher):

            async def told(url: str = url) -> bool:
                began = time.monotonic()
                shown = await scrape(url)
                assert time.monotonic() - began < 2
                assert value(shown, "taskbeam_pool_connections_max") == 10
                old = {name for name in names(shown) if name.startswith("taskbeam_deployment_")}
                return value(shown, "taskbeam_database_up") == 0 and not old

            await until(told, "what Postgres knows is not shown without it")

        own_postgres.start()
        await own_postgres.ready()
        await says({"status": "ready", **up, "qstash": "up"})

        async def again() -> bool:
            return all([value(await scrape(url), "taskbeam_database_up") == 1 for url in (web, dispatcher)])

        await until(again, "Postgres is seen again")
        assert value(await scrape(web), "taskbeam_deployment_tasks", {"status": "processing"}) >= 0
    finally:
        here.stop()
