"""login.sql, run by psql: the role it makes can do a process's work and no more; running it again is no harm."""

import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from server.app import PROBE
from server.db import SESSION, acting_as, close_pool, open_pool
from server.settings import Settings
from tests.conftest import Connection
from tests.deploy.login import create_login
from tests.deploy.proxies import FILES
from tests.deployment import Database


@pytest.fixture
async def role(owner: Connection) -> AsyncIterator[str]:
    """A name that no other test's cluster has: roles are the cluster's."""
    name = f"login_{secrets.token_hex(4)}"
    yield name
    await owner.execute(f"drop role if exists {name}")


async def test_the_login_role(database: Database, owner: Connection, role: str, tmp_path: Path) -> None:
    for password in ("first", "it's another"):
        create_login(database.owner_url, tmp_path, role, password)
    kept = await owner.fetchrow("select rolsuper, rolinherit, rolpassword from pg_authid where rolname = $1", role)
    assert kept is not None
    assert (kept["rolsuper"], kept["rolinherit"]) == (False, False)
    assert kept["rolpassword"].startswith("SCRAM-SHA-256")

    url = database.url.replace("user=taskbeam", f"user={role}")
    assert role in url
    pool = await open_pool(Settings.from_env({"DATABASE_URL": url}), application="test")
    try:
        await pool.execute(PROBE)
        async with acting_as(pool, '{"sub":"00000000-0000-0000-0000-000000000000"}') as connection:
            assert await connection.fetchval("select current_user") == "authenticated"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute("create table taskbeam.of_mine (n int)")
    finally:
        await close_pool(pool)


@pytest.mark.pure
def test_it_brings_along_what_a_process_would_ask_for() -> None:
    text = (FILES / "login.sql").read_text()
    assert dict(re.findall(r"^alter role taskbeam set (\w+) = '(\w+)';$", text, re.MULTILINE)) == SESSION
