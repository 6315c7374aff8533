"""What it costs that row level security decides: a read as its caller beside the same one as the server, and the joins
of thousands of users at once; and what an access token costs.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable

import asyncpg
import jwt
import msgspec
from starlette.requests import HTTPConnection

from server.db import Pool, acting_as, open_pool
from server.identity.identity import Identity
from server.metrics import Metrics
from server.settings import Settings
from server.tasks.reading import TaskReader

USERS = 10_000
READS = 600
TOKENS = 2_000
ISSUER, SECRET = "https://issuer.example.com", "secret-of-the-bench-0123456789abcdef"
NEWEST = """select c.* from (select version from public.image_generations where task_id = $1) t
            cross join lateral (select * from taskbeam.changes where (task_id, version) = ($1, t.version) limit 1) c"""


class Rights(msgspec.Struct):
    """Seconds; of tokens, of the CPU."""

    read_bare: list[float]
    read_as_caller: list[float]
    users: int
    joins: float
    token_first: float
    token_again: float


async def measure_rights(url: str, owner_url: str) -> Rights:
    """`url` as the processes have it, `owner_url` for the tasks of 10,000 users, which are made here."""
    people = await _people(owner_url)
    settings = Settings.from_env({"DATABASE_URL": url, "AUTH_ISSUER": ISSUER, "AUTH_SECRET": SECRET})
    pool = await open_pool(settings, application="bench")
    try:
        bare, as_caller = await _reads(pool, people)
        reader = TaskReader(pool, public_url="")
        await _joins(reader, people[:300])  # plans and catalogue caches
        joins = await _joins(reader, people)
    finally:
        await pool.close()
    first, again = await _tokens(settings)
    return Rights(bare, as_caller, len(people), joins, first, again)


async def _people(owner_url: str) -> list[tuple[str, str]]:
    """Claims and a task each."""
    users = [str(uuid.uuid4()) for _ in range(USERS)]
    tasks = [f"bench-{number}" for number in range(USERS)]
    owner = await asyncpg.connect(owner_url)
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
        for way, times in taken.items():
            began = time.perf_counter()
            await way(*people[round_])
            times.append(time.perf_counter() - began)
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
