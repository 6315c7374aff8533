"""docs/supabase.md, run: what it says to do, done to a project as Supabase makes it, and undone."""

import asyncio
import os
import re
import sys
from pathlib import Path

import asyncpg

from server.settings import Settings
from server.tasks.reading import TaskReader
from tests.clusters import Elsewhere
from tests.deploy.login import PSQL
from tests.deploy.proxies import replaced
from tests.deployment import COMMAND, clean_env
from tests.tasks.conftest import User, store_on

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "supabase.md").read_text()
USER = User("00000000-0000-4000-8000-000000000001")
FOREIGN = re.compile(r"(auth|storage|realtime|cron|extensions)\b")
# All of a database that is not the system's own, with its rights.
CONTENTS = """
with spaces as (select oid, nspacl from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema')
select 'schema' as kind, oid::regnamespace::text as name, nspacl::text as about from spaces
union all select 'relation', c.oid::regclass::text, concat(relkind, relrowsecurity, relforcerowsecurity, relacl)
  from pg_class c where relnamespace in (select oid from spaces)
union all select 'function', p.oid::regprocedure::text, proacl::text
  from pg_proc p where pronamespace in (select oid from spaces)
union all select 'type', t.oid::regtype::text, typacl::text
  from pg_type t where typnamespace in (select oid from spaces)
union all select 'trigger', concat(tgrelid::regclass, ' ', tgname), '' from pg_trigger
union all select 'policy', concat(polrelid::regclass, ' ', polname), '' from pg_policy
union all select 'event trigger', evtname, evtenabled::text from pg_event_trigger
union all select 'published', concat(pubname, schemaname, tablename), '' from pg_publication_tables
union all select 'default', concat(defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype), defaclacl::text
  from pg_default_acl
union all select 'role', rolname, concat(rolsuper, rolinherit, rolcreaterole, rolbypassrls) from pg_roles
union all select 'member', concat(member::regrole, ' ', roleid::regrole), '' from pg_auth_members
order by 1, 2
"""


def block(language: str, heading: str) -> str:
    """The commands in a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(found)


async def run(script: str, folder: Path) -> None:
    """As somebody at a shell in a checkout."""
    for name, command in {"taskbeam": f"{sys.executable} {COMMAND}", "psql": f"{PSQL} --no-psqlrc"}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    env = {**clean_env(), "PATH": f"{folder}:{os.environ['PATH']}"}
    process = await asyncio.create_subprocess_exec(
        "sh", "-euc", script, cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def contents(admin: "asyncpg.Connection[asyncpg.Record]") -> set[tuple[str, ...]]:
    return {tuple(row) for row in await admin.fetch(CONTENTS)}


async def test_the_page(supabase: Elsewhere, tmp_path: Path) -> None:
    async with supabase.connect(superuser=True) as admin, supabase.connect() as postgres:
        await admin.execute("drop role if exists taskbeam")  # another test's, of this cluster
        await admin.execute("insert into auth.users (id) values ($1)", USER.id)
        before = await contents(admin)

        owner_url = "postgres://postgres:PASSWORD@db.REF.supabase.co:5432/postgres"
        await run(replaced(block("sh", "Once"), {owner_url: supabase.owner_url}), tmp_path)
        after = await contents(admin)
        assert before - after == set(), "what was there is as it was"
        # Of what is new, nothing is in schemas of Supabase's, but for the keys to its users.
        foreign = {f"{kind} {name}" for kind, name, _ in after - before if FOREIGN.match(name)}
        assert all(one.startswith("trigger auth.users RI_") for one in foreign), foreign

        await postgres.execute(block("sql", "Realtime"))
        assert await postgres.fetchval("select count(*) from pg_publication_tables") == 1
        async with supabase.pool() as pool:
            store = store_on(pool, [])
            task_id = (await store.create(USER.claims, USER.id, "a boat", b"{}")).task_id
            await postgres.execute(block("sql", "Deleting a user"))
            assert (await TaskReader(pool, public_url="").since(USER.claims, task_id, 0)).changes == []
            assert await pool.fetchval("select count(*) from taskbeam.deletions") == 1
        await postgres.execute(block("sql", "Undoing it"))
        assert await contents(admin) == before


def test_its_settings() -> None:
    told = dict(re.findall(r'^export ([A-Z_]+)="?([^"\n]+)"?$', block("sh", "Settings"), re.MULTILINE))
    settings = Settings.from_env({**told, "PUBLIC_URL": "https://app.test"})
    assert settings.pooled
    assert settings.direct_url == told["DATABASE_DIRECT_URL"]
