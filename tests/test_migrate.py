"""Migrations: once each, whole or not at all, by an owner who is no superuser, and never silently different."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from server.db import open_pool
from server.migrate import SQL_FOLDER, MigrationRefused, create_login_role, migrate
from server.settings import Settings
from tests.clusters import Elsewhere
from tests.deployment import Database

FILES = sorted(file.name for file in SQL_FOLDER.glob("*.sql"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two small migrations."""
    (tmp_path / "001_first.sql").write_text("create table first (n int); insert into first values (1);")
    (tmp_path / "002_second.sql").write_text("insert into first values (2);")
    return tmp_path


async def _numbers(url: str) -> list[int]:
    connection = await asyncpg.connect(url)
    try:
        return [row["n"] for row in await connection.fetch("select n from first order by n")]
    finally:
        await connection.close()


async def test_six_runners_at_once_apply_each_file_once(empty_database: Database) -> None:
    applied = await asyncio.gather(*(migrate(empty_database.owner_url) for _ in range(6)))
    assert sorted(name for one in applied for name in one) == FILES
    assert await migrate(empty_database.owner_url) == []


async def test_files_are_applied_in_order(empty_database: Database, files: Path) -> None:
    assert await migrate(empty_database.owner_url, files) == ["001_first.sql", "002_second.sql"]
    (files / "003_third.sql").write_text("insert into first values (3);")
    assert await migrate(empty_database.owner_url, files) == ["003_third.sql"]
    assert await _numbers(empty_database.owner_url) == [1, 2, 3]


async def test_a_file_that_changed_after_it_was_applied_is_refused(empty_database: Database, files: Path) -> None:
    await migrate(empty_database.owner_url, files)
    (files / "001_first.sql").write_text("create table first (n bigint);")
    (files / "003_third.sql").write_text("insert into first values (3);")
    with pytest.raises(MigrationRefused, match=r"001_first\.sql was changed"):
        await migrate(empty_database.owner_url, files)
    assert await _numbers(empty_database.owner_url) == [1, 2]


async def test_an_older_program_is_refused(empty_database: Database, files: Path) -> None:
    await migrate(empty_database.owner_url, files)
    (files / "002_second.sql").unlink()
    with pytest.raises(MigrationRefused, match=r"002_second\.sql was applied to this database but is not here"):
        await migrate(empty_database.owner_url, files)


async def test_a_file_that_would_come_too_late_is_refused(empty_database: Database, files: Path) -> None:
    await migrate(empty_database.owner_url, files)
    (files / "001_zebra.sql").write_text("insert into first values (9);")
    with pytest.raises(MigrationRefused, match=r"001_zebra\.sql comes too late"):
        await migrate(empty_database.owner_url, files)
    assert await _numbers(empty_database.owner_url) == [1, 2]


async def test_a_file_that_fails_leaves_nothing(empty_database: Database, files: Path) -> None:
    broken = files / "002_second.sql"
    broken.write_text("insert into first values (2); create table half (); select 1 / 0;")
    with pytest.raises(asyncpg.DivisionByZeroError) as raised:
        await migrate(empty_database.owner_url, files)
    assert raised.value.__notes__ == ["in 002_second.sql: nothing of it was applied"]
    assert await _numbers(empty_database.owner_url) == [1]  # the file before stays

    broken.write_text("create table half (); insert into first values (2);")
    assert await migrate(empty_database.owner_url, files) == ["002_second.sql"]
    assert await _numbers(empty_database.owner_url) == [1, 2]


async def test_a_file_and_its_entry_in_the_ledger_are_one(empty_database: Database, files: Path) -> None:
    (files / "002_second.sql").write_text(
        "insert into first values (2); alter table taskbeam.migrations add check (name not like '002%')"
    )
    with pytest.raises(asyncpg.CheckViolationError):
        await migrate(empty_database.owner_url, files)
    assert await _numbers(empty_database.owner_url) == [1]


async def test_an_impatient_role_can_migrate(empty_database: Database, files: Path) -> None:
    """Supabase gives its roles a statement_timeout."""
    (files / "001_first.sql").write_text("create table first (n int); select pg_sleep(0.1);")
    connection = await asyncpg.connect(empty_database.owner_url)
    await connection.execute(f"alter database {empty_database.name} set statement_timeout = '50ms'")
    await connection.close()
    await migrate(empty_database.owner_url, files)
    assert await _numbers(empty_database.owner_url) == [2]


async def test_an_owner_who_is_no_superuser_migrates(hosted: Elsewhere) -> None:
    async with hosted.connect() as owner:
        assert await owner.fetchval("show server_version_num") >= f"{hosted.version}0000"
        assert not await owner.fetchval(
            "select rolsuper or rolbypassrls from pg_roles where rolname = current_user and current_user = 'owner'"
        )
        rows = await owner.fetch("select name from taskbeam.migrations order by name")
        assert [row["name"] for row in rows] == FILES
        await create_login_role(owner)  # again: nothing to do
    assert await migrate(hosted.owner_url) == []


async def test_the_login_role_acts_as_service_role_and_owns_nothing(hosted: Elsewhere) -> None:
    async with hosted.pool() as pool:
        row = await pool.fetchrow(
            "select current_user, session_user, rolsuper, rolbypassrls from pg_roles where rolname = session_user"
        )
        assert row is not None
        assert tuple(row) == ("service_role", "taskbeam", False, False)
        assert await pool.fetchval("select count(*) from public.image_generations") == 0
    async with hosted.connect(superuser=True) as host:
        owned = await host.fetchval(
            "select count(*) from pg_shdepend where refobjid = 'taskbeam'::regrole and deptype = 'o'"
        )
        assert owned == 0


async def test_the_owner_itself_can_be_who_logs_in(hosted: Elsewhere) -> None:
    """Where a platform hands out one URL, the processes use it too."""
    pool = await open_pool(Settings.from_env({"DATABASE_URL": hosted.owner_url}), application="test")
    assert await pool.fetchval("select current_user") == "service_role"
    await pool.close()


async def test_an_owner_who_may_not_create_roles_is_told_what_is_missing(empty_database: Database, files: Path) -> None:
    """As on a fresh Postgres, where the roles are not there and the owner of the database may not make them."""
    (files / "002_second.sql").write_text("create role one_of_ours nologin;")
    connection = await asyncpg.connect(empty_database.owner_url)
    try:
        await connection.execute(
            f"create role plain_owner login; alter database {empty_database.name} owner to plain_owner"
        )
        with pytest.raises(MigrationRefused, match=r"002_second\.sql: permission denied .* createrole"):
            await migrate(empty_database.owner_url.replace("user=postgres", "user=plain_owner"), files)
    finally:
        await connection.execute("drop owned by plain_owner; reassign owned by plain_owner to postgres")
        await connection.execute("drop role plain_owner")
        await connection.close()
