"""Applies the files of sql/ once each, in order, forward only.

One advisory lock makes any number of runners take turns; each file runs in a transaction of its own together
with its entry in the ledger, so a file is applied whole or not at all. A file that changed after it was
applied is refused: what runs in production is then not what the repository says.
"""

import contextlib
import hashlib
from pathlib import Path

import asyncpg

HERE = Path(__file__).parent
# In a checkout the folder lies beside `server`; in an installed package inside it.
SQL_FOLDER = next(f for f in (HERE.parent / "sql", HERE / "sql") if f.is_dir())
LOCK_KEY = 7_364_002_110_341
LOCK_TIMEOUT = "60s"
LOGIN_ROLE = "taskbeam"


class MigrationRefused(Exception):
    """The database and the files do not belong together; the message says which file and why."""


async def migrate(url: str, folder: Path = SQL_FOLDER) -> list[str]:
    """Bring the database at `url` up to date and return the names of the files applied now, in order.

    `url` must belong to the role that owns the tables (on Supabase `postgres`), and must not be
    a transaction pooler's: the lock belongs to a session.
    Raises MigrationRefused for an applied file that was changed or is gone and for a new one that comes too late,
    and asyncpg's errors with a note that names the file.
    """
    files = _read(folder)
    connection = await asyncpg.connect(url, timeout=10)
    try:
        # A role's own statement_timeout is for requests; filling the log of a large older table may take longer.
        # Not as parameters of the connection: a session pooler would refuse or drop them.
        await connection.execute(
            "select set_config('lock_timeout', $1, false), set_config('statement_timeout', '0', false)", LOCK_TIMEOUT
        )
        await connection.execute("select pg_advisory_lock($1)", LOCK_KEY)
        return await _apply(connection, files)
    finally:
        await connection.close()


async def create_login_role(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The role our processes log in as: not the owner, no superuser; it may what the grants say. Idempotent.

    It has no password: whoever connects over a network gives it one (`alter role taskbeam password …`).
    """
    with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        if not await connection.fetchval("select exists (select from pg_roles where rolname = $1)", LOGIN_ROLE):
            await connection.execute("create role taskbeam login noinherit")
    missing = await connection.fetch(
        "select r from unnest(array['authenticated', 'service_role']) r where not pg_has_role($1, r, 'MEMBER')",
        LOGIN_ROLE,
    )
    if missing:
        await connection.execute("grant authenticated, service_role to taskbeam")


def _read(folder: Path) -> list[tuple[str, str]]:
    return [(file.name, file.read_text(encoding="utf-8")) for file in sorted(folder.glob("[0-9]*.sql"))]


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", files: list[tuple[str, str]]) -> list[str]:
    await connection.execute(
        """
        create schema if not exists taskbeam;
        revoke all on schema taskbeam from public;
        create table if not exists taskbeam.migrations (
          name text primary key, sha256 text not null, applied_at timestamptz not null default now());
        """
    )
    ledger = {
        row["name"]: row["sha256"] for row in await connection.fetch("select name, sha256 from taskbeam.migrations")
    }
    missing = sorted(set(ledger) - {name for name, _ in files})
    if missing:
        raise MigrationRefused(f"{missing[0]} was applied to this database but is not here: is this an older version?")
    applied = []
    for name, text in files:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if name in ledger:
            if ledger[name] != digest:
                raise MigrationRefused(f"{name} was changed after it was applied: add a new file instead")
            continue
        if name < max(ledger, default=""):
            raise MigrationRefused(
                f"{name} comes too late: {max(ledger)} was applied before it; give it a higher number"
            )
        try:
            await _run(connection, name, text, digest)
        except asyncpg.InsufficientPrivilegeError as error:
            reason = str(error).partition("\n")[0]
            raise MigrationRefused(
                f"{name}: {reason}. The role that migrates must own the tables and may create roles (alter role … "
                "createrole), or anon, authenticated and service_role are there already and are granted to it"
            ) from error
        except asyncpg.PostgresError as error:
            error.add_note(f"in {name}: nothing of it was applied")
            raise
        ledger[name] = digest
        applied.append(name)
    return applied


async def _run(connection: "asyncpg.Connection[asyncpg.Record]", name: str, text: str, digest: str) -> None:
    async with connection.transaction():
        await connection.execute(text)
        await connection.execute("insert into taskbeam.migrations (name, sha256) values ($1, $2)", name, digest)
