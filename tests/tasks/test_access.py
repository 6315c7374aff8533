"""Whether those who follow may still, asked of Postgres for many at once: users, their sessions, and tasks."""

import asyncio
import uuid
from typing import cast

import asyncpg
import pytest

from server.auth import Caller
from server.db import Pool
from server.metrics import Metrics
from server.migrate import create_login_role, migrate
from server.push.rights import TURNS, Rights
from server.tasks.access import ASKED_A_CALL_MAX, Access, Standing, Whose
from server.tasks.store import TaskStore
from tests.clusters import Elsewhere
from tests.conftest import Connection
from tests.push.test_rights import Follows
from tests.tasks.conftest import Counting, User

SESSIONS = (
    "create table auth.sessions (id uuid primary key, user_id uuid not null references auth.users on delete cascade)"
)
NO_SESSION = str(uuid.uuid4())


@pytest.fixture
def access(pool: Pool) -> Access:
    return Access(pool)


async def made(store: TaskStore, user: User) -> str:
    return (await store.create(user.claims, user.id, "a boat", b"{}")).task_id


async def test_thousands_of_pairs_are_few_calls_and_each_is_decided(store: TaskStore, counting: Counting) -> None:
    access = Access(cast(Pool, counting))
    users = [User() for _ in range(10)]
    tasks = [await made(store, user) for user in users]
    pairs = [(user, task) for user in users for task in [*tasks, "absent"] for _ in range(20)]
    found = await asyncio.gather(*(access.sees(user.claims, task) for user, task in pairs))
    assert found == [task == tasks[users.index(user)] for user, task in pairs]
    assert len(counting.calls) <= len(pairs) / ASKED_A_CALL_MAX + 2, counting.calls
    counting.calls.clear()
    standings = await asyncio.gather(*(access.standing(Whose(user.id, None)) for user in users for _ in range(200)))
    assert standings == ["known"] * 2_000
    assert len(counting.calls) <= 2_000 / ASKED_A_CALL_MAX + 2, counting.calls


async def test_two_thousand_followers_are_two_calls_a_turn(store: TaskStore, counting: Counting) -> None:
    rights = Rights(Access(cast(Pool, counting)), Metrics())
    users = [User() for _ in range(10)]
    tasks = [await made(store, user) for user in users]
    followers = [Follows(tasks[number % 10]) for number in range(2_000)]
    intruder = Follows(tasks[0])
    for number, follower in enumerate([*followers, intruder]):
        user = users[1 if follower is intruder else number % 10]
        rights.enter(Caller(user.id, user.claims, 4e9), (follower,), lambda: None)
    for _ in range(TURNS):
        await rights.check()
    assert intruder.revoked == [tasks[0]]
    assert not any(follower.revoked for follower in followers)
    assert (len(counting.calls), sum(counting.calls)) == (2 * TURNS, 2 * 2_001)


async def test_row_level_security_decides(store: TaskStore, access: Access, owner: Connection, user: User) -> None:
    task, other = await made(store, user), User()
    await made(store, other)
    assert await access.sees(user.claims, task)
    policy = "create policy strict on image_generations as restrictive for select to authenticated using (false)"
    await owner.execute(policy)
    assert not await access.sees(user.claims, task)
    await owner.execute("drop policy strict on image_generations")
    # Moved to another user, by somebody who may what no process of ours can.
    await owner.execute("set session_replication_role = replica")
    await owner.execute("update image_generations set user_id = $1 where task_id = $2", other.id, task)
    await owner.execute("update task_events set user_id = $1, owner_seq = 100 where task_id = $2", other.id, task)
    assert not await access.sees(user.claims, task)
    assert await access.sees(other.claims, task)


async def test_users_that_are_entered_as_they_come(
    store: TaskStore, access: Access, owner: Connection, user: User
) -> None:
    async def standing(session: str | None = None) -> Standing:
        return await access.standing(Whose(user.id, session))

    assert await standing() == "unknown"
    await made(store, user)
    assert await standing() == await standing(NO_SESSION) == "known"
    await owner.execute(SESSIONS)  # comes later than our tables
    session = str(
        await owner.fetchval("insert into auth.sessions values (gen_random_uuid(), $1) returning id", user.id)
    )
    assert (await standing(), await standing(session), await standing(NO_SESSION)) == ("known", "known", "signed_out")
    await owner.execute("delete from auth.sessions")
    assert await standing(session) == "signed_out"
    await owner.execute("drop table auth.sessions")
    assert await standing(session) == "known"
    await owner.execute("delete from auth.users where id = $1", user.id)
    assert await standing() == "unknown"


async def test_what_spoils_one_does_not_spoil_the_others(store: TaskStore, access: Access, user: User) -> None:
    task = await made(store, user)
    found = await asyncio.gather(access.sees(user.claims, task), access.sees("no JSON", task), return_exceptions=True)
    assert found[0] is True
    assert isinstance(found[1], asyncpg.PostgresError)


async def test_users_of_supabase(supabase: Elsewhere, user: User) -> None:
    """Its users and sessions are another role's: the one that migrates may read them, our processes may not."""
    await migrate(supabase.owner_url)
    async with supabase.connect(superuser=True) as admin:
        await create_login_role(admin)
        async with supabase.pool() as pool:
            access = Access(pool)
            whose = Whose(user.id, NO_SESSION)
            assert await access.standing(whose) == "gone"
            await admin.execute("insert into auth.users (id) values ($1)", user.id)
            assert await access.standing(whose) == "known"
            # Sessions that may not be read, or are hidden by row level security, are not taken for ended.
            await admin.execute(f"set role supabase_auth_admin; {SESSIONS}")
            assert await access.standing(whose) == "known"
            await admin.execute(
                "grant select on auth.sessions to postgres; alter table auth.sessions enable row level security"
            )
            await admin.execute("reset role; alter role postgres nobypassrls")
            assert await access.standing(whose) is None
            await admin.execute("alter role postgres bypassrls")
            assert await access.standing(whose) == "signed_out"
            await admin.execute("insert into auth.sessions values ($1, $2)", NO_SESSION, user.id)
            assert await access.standing(whose) == "known"
            for table in ("users", "sessions"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await pool.fetch(f"select * from auth.{table}")  # noqa: S608
