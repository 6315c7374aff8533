"""docs/rights.md is what Postgres does, with everything of ours. On Supabase: test_supabase.py."""

import asyncpg
import pytest

from server.migrate import migrate
from server.tasks.store import TaskStore
from tests.conftest import Connection
from tests.deployment import Database
from tests.shapes import GENEROUS_DEFAULTS
from tests.tasks.conftest import User
from tests.tasks.rights import WRITTEN, differences

LOGIN = "taskbeam"


async def test_each_role_may_what_is_written_and_no_more(owner: Connection) -> None:
    assert await differences(owner, LOGIN, []) == []


async def test_also_where_all_that_is_made_is_everyones(empty_database: Database) -> None:
    admin = await asyncpg.connect(empty_database.owner_url)
    await admin.execute(GENEROUS_DEFAULTS)
    await migrate(empty_database.owner_url)
    assert await differences(admin, LOGIN, []) == []
    await admin.close()


async def test_what_is_too_wide_or_not_written_down_is_found(owner: Connection) -> None:
    """Each of these would be a hole; that it is told shows that the others are looked for."""
    holes = {
        "create table public.more (n int)": "table public.more has no row",
        "create sequence taskbeam.numbers": "sequence taskbeam.numbers has no row",
        "create function taskbeam.more(n int) returns int language sql as 'select 1'": "function taskbeam.more(",
        "grant truncate on public.task_events to anon": "anon: truncate public.task_events: the catalogue says True",
        "grant select on taskbeam.secrets to authenticated": "authenticated: select taskbeam.secrets value: allowed",
        "grant select (prompt) on public.image_generations to public": "stranger: select public.image_generations pr",
        "grant update (result) on public.image_generations to authenticated": "authenticated: update public.image_gen",
        "grant execute on function taskbeam.act_as(text) to authenticated": "authenticated: execute taskbeam.act_as(",
        "grant create on schema taskbeam to service_role": "service_role: create taskbeam: allowed",
        "grant usage on schema dispatcher to taskbeam": "taskbeam: usage dispatcher: allowed",
        "revoke delete on public.task_events from service_role": "service_role: delete public.task_events: denied",
        "grant references on public.task_events to authenticated": "authenticated: references public.task_events: all",
        "grant trigger on taskbeam.changes to anon": "anon: trigger taskbeam.changes: the catalogue says True",
    }
    await owner.execute(";".join(holes))
    wrong = await differences(owner, LOGIN, [])
    for hole, told in holes.items():
        assert any(line.startswith(told) for line in wrong), (hole, wrong)


async def test_own_means_rows_of_ones_own(store: TaskStore, owner: Connection) -> None:
    """Every verb that a browser has, on the rows of two users: its own and none of the other's."""
    users = [User(), User()]
    for user in users:
        task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
        await owner.execute(
            "insert into task_deliveries (task_id, user_id, attempt, delivery, kind, outcome) "
            "values ($1, $2, 1, 1, 'callback', 'applied')",
            task_id,
            user.id,
        )
    verbs = {
        (name, verb): right
        for (kind, name), rights in WRITTEN.items()
        if kind in ("table", "view")
        for role in ("everyone", "anon", "authenticated")
        for verb, right in rights[role].items()
    }
    assert all(right.own for right in verbs.values()), "a browser may only ever reach its own"
    assert {verb for _, verb in verbs} == {"select", "insert"}, "say below what a new verb does to another's rows"
    assert {name for name, verb in verbs if verb == "insert"} == {"public.image_generations"}

    async def seen(role: str, claims: str, name: str) -> set[str]:
        async with owner.transaction():
            await owner.execute(f"set local role {role}")
            await owner.execute("select set_config('request.jwt.claims', $1, true)", claims)
            return {str(row[0]) for row in await owner.fetch(f"select user_id from {name}")}  # noqa: S608

    for name, verb in verbs:
        if verb == "select":
            for user in users:
                assert await seen("authenticated", user.claims, name) == {user.id}, name
            for nobody in ("", "{}", User().claims):
                assert await seen("authenticated", nobody, name) == set(), name
            assert await seen("service_role", "", name) == {user.id for user in users}, name

    async def insert(user_id: str, status: str = "pending") -> None:
        async with owner.transaction():
            await owner.execute("set local role authenticated")
            await owner.execute("select set_config('request.jwt.claims', $1, true)", users[0].claims)
            await owner.execute(
                "insert into image_generations (task_id, user_id, prompt, status) values ($1, $2, 'x', $3)",
                f"by-{user_id}-{status}",
                user_id,
                status,
            )

    await insert(users[0].id)
    for another, status in ((users[1].id, "pending"), (users[0].id, "processing")):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await insert(another, status)


async def test_policies_ask_once_a_statement(owner: Connection) -> None:
    """A bare auth.uid() would be computed for each row, and no index be used."""
    policies = await owner.fetch("select policyname, concat(qual, ' ', with_check) as said from pg_policies")
    asking = [row for row in policies if "auth.uid()" in row["said"]]
    assert len(asking) >= 8
    for row in asking:
        assert row["said"].count("auth.uid()") == row["said"].count("( SELECT auth.uid() AS uid)"), row["policyname"]
