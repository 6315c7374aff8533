"""Connections to Postgres: one pool a process, and the two ways a statement may run.

Every connection works as `service_role` (callbacks, outbox, clean-up). What a browser asks for runs inside
`acting_as(claims)`: as `authenticated` with the caller's claims, for one transaction, so that row level
security decides what is visible and nothing leaks to the connection's next borrower.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import asyncpg.pool

from server.settings import Settings

# Generic for the type checker only: asyncpg's classes cannot be subscripted when they run.
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

# The tick re-reads the changes of the last few seconds; no write of ours may be under way for longer.
STATEMENT_TIMEOUT_MS = 3_000
ACQUIRE_TIMEOUT_SECONDS = 5.0

# What a route may answer with 503 and a follower may wait out: Postgres is away, restarting or full.
UNAVAILABLE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
)

# What a loop that must go on for ever takes in its stride.
DATABASE_ERRORS: tuple[type[BaseException], ...] = (*UNAVAILABLE, asyncpg.PostgresError)


async def open_pool(settings: Settings, *, application: str, size: int | None = None) -> Pool:
    """A pool whose connections act as service_role; `application` shows in pg_stat_activity.

    Raises what asyncpg raises when the server cannot be reached.
    """
    return await asyncpg.create_pool(
        settings.database_url,
        min_size=1,
        max_size=size or settings.database_connections,
        command_timeout=STATEMENT_TIMEOUT_MS / 1000 + 2,
        timeout=ACQUIRE_TIMEOUT_SECONDS,
        server_settings={
            "application_name": f"taskbeam {application}",
            "role": "service_role",
            "timezone": "UTC",
            "statement_timeout": str(STATEMENT_TIMEOUT_MS),
            "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_MS),
            "jit": "off",  # every statement here is short
        },
    )


@contextlib.asynccontextmanager
async def acting_as(pool: Pool, claims: str) -> AsyncIterator[Connection]:
    """A transaction as `authenticated` with these claims (a JSON object as text); rolled back on an error."""
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection, connection.transaction():
        await connection.execute("select taskbeam.act_as($1)", claims)
        yield connection
