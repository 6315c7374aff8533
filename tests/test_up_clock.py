"""The supervisor sees a step of its clock and has what is pending in its Postgres follow it, once."""

import asyncio
from pathlib import Path

from server.clock import Clock
from server.embedded.ending import Ending
from server.embedded.postgres import EmbeddedPostgres
from server.settings import Settings
from server.up import Supervisor
from tests.conftest import Connection
from tests.deployment import Database

TASK = """insert into public.image_generations (task_id, user_id, prompt, status, began_at, deadline_at)
          values ('t_step', gen_random_uuid(), 'x', 'processing', now(), now() + interval '15 minutes')"""
LEFT = "select extract(epoch from deadline_at - now())::int from public.image_generations"


class Ours(EmbeddedPostgres):
    """The one that runs, by another URL."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.there = url

    def url(self, database: str, user: str | None = None) -> str:
        return self.there


async def test_deadlines_follow_a_step_once_and_when_postgres_is_back(
    database: Database, owner: Connection, place: Path
) -> None:
    await owner.execute(TASK)
    env = {"DATA_DIR": str(place)}
    supervisor = Supervisor(Settings.from_env(env), env, Ending())
    supervisor._postgres = postgres = Ours(place, database.owner_url)
    wall = [1_800_000_000.0]
    supervisor._clock = Clock(lambda: wall[0], lambda: 0.0)
    wall[0] += 3_600
    postgres.there = "postgresql://127.0.0.1:9/away"
    await asyncio.to_thread(supervisor._follow_clock)
    assert 890 < await owner.fetchval(LEFT) <= 900
    postgres.there = database.owner_url
    for _ in range(2):
        await asyncio.to_thread(supervisor._follow_clock)
        assert 3_600 + 890 < await owner.fetchval(LEFT) <= 3_600 + 900
    supervisor._postgres = None  # the clock of a Postgres elsewhere is not ours
    wall[0] += 3_600
    await asyncio.to_thread(supervisor._follow_clock)
    assert await owner.fetchval(LEFT) <= 3_600 + 900
