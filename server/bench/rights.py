"""What it costs that row level security decides: a read as its caller beside the same one as the server, and the joins
of thousands of users at once; and what an access token costs.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable

import jwt
from starlette.requests import HTTPConnection

from server.bench.figures import Rights
from server.bench.push import Say
from server.bench.stage import ISSUER, SECRET, Stage
from server.bench.times import times
from server.db import Pool, acting_as, open_pool
from server.identity.identity import Identity
from server.metrics import Metrics
from server.settings import Settings
from server.tasks.reading import TaskReader

USERS = 10_000
READS = 600
TOKENS = 2_000
NEWEST = """select c.* from (select version from public.image_generations where task_id = $1) t
            cross join lateral (select * from taskbeam.changes where (task_id, version) = ($1, t.version) limit 1) c"""


def measure_rights(stage: Stage, say: Say) -> Rights:
    say(f"reads, joins and tokens of {USERS} users")
    return asyncio.run(_measure(stage))


async def _measure(stage: Stage) -> Rights:
    people = await _people(stage)
    settings = Settings.from_env({"DATABASE_URL": stage.url(), "AUTH_ISSUER": ISSUER, "AUTH_SECRET": SECRET})
    pool = await open_pool(settings, application="bench")
    try:
        bare, as_caller = await _reads(pool, people)
        reader = TaskReader(pool, public_url="")
        await _joins(reader, people[:300])  # plans and catalogue caches
        joins = await _joins(reader, people)
    finally:
        await pool.close()
    first, again = await _tokens(settings)
    read_bare, read_as_caller = times(bare), times(as_caller)
    assert read_bare is not None and read_as_caller is not None  # noqa: S101, PT018  (READS are made)
    return Rights(read_bare, read_as_caller, USERS, joins * 1_000, first * 1e6, again * 1e6)


async def _people(stage: Stage) -> list[tuple[str, str]]:
    """Claims and a task each."""
    users = [str(uuid.uuid4()) for _ in range(USERS)]
    tasks = [f"bench-{number}" for number in range(USERS)]
    owner = await stage.owner()
    try:
        await owner.execute(
            """insert into public.image_generations (task_id, user_id, prompt)
               select t, u, 'a picture' from unnest($1::text[], $2::uuid[]) as made (t, u)""",
            tasks,
            users,
        )
        await owner.execute("analyze public.image_generations; analyze public.task_events")
    finally:
        await owner.close()
    claims = [json.dumps({"sub": user, "role": "authenticated", "aud": "authenticated"}) for user in users]
    return list(zip(claims, tasks, strict=True))


async def _reads(pool: Pool, people: list[tuple[str, str]]) -> tuple[list[float], list[float]]:
    """By turns, so that both meet the same machine."""

    async def bare(_: str, task: str) -> None:
        assert await pool.fetchrow(NEWEST, task)  # noqa: S101  (else it measures something else)

    async def as_caller(claims: str, task: str) -> None:
        async with acting_as(pool, claims) as connection:
            assert await connection.fetchrow(NEWEST, task)  # noqa: S101  (else it measures something else)

    taken: dict[Callable[[str, str], Awaitable[None]], list[float]] = {bare: [], as_caller: []}
    for round_ in range(READS):
        for way, durations in taken.items():
            began = time.perf_counter()
            await way(*people[round_])
            durations.append(time.perf_counter() - began)
    warm = READS // 10
    return taken[bare][warm:], taken[as_caller][warm:]


async def _joins(reader: TaskReader, people: list[tuple[str, str]]) -> float:
    began = time.perf_counter()
    found = await asyncio.gather(*(reader.since(claims, task, 0) for claims, task in people))
    taken = time.perf_counter() - began
    assert all(len(history.changes) == 1 for history in found)  # noqa: S101  (else it measures something else)
    return taken


async def _tokens(settings: Settings) -> tuple[float, float]:
    """What it takes to know a caller by a token that is new, and by one that was seen before."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": "authenticated", "role": "authenticated", "iat": now, "exp": now + 3600}
    connections = []
    for _ in range(TOKENS):
        token = jwt.encode({**claims, "sub": str(uuid.uuid4())}, SECRET, algorithm="HS256")
        headers = [(b"authorization", f"Bearer {token}".encode())]
        connections.append(HTTPConnection({"type": "http", "headers": headers}))
    identity = Identity(settings, Metrics())
    taken = []
    for _ in range(2):
        began = time.process_time()
        for connection in connections:
            await identity.caller(connection)
        taken.append((time.process_time() - began) / TOKENS)
    return taken[0], taken[1]
