"""Connections to Postgres: one pool a process, and the two ways a statement may run.

Every connection works as `service_role` (callbacks, outbox, clean-up). What a browser asks for runs inside
`acting_as(claims)`: as `authenticated` with the caller's claims, for one transaction, so that row level
security decides what is visible and nothing leaks to the connection's next borrower.

What a connection begins with (SESSION) is told at its start. A transaction pooler refuses or forgets that, so there
the login role brings it along (docs/deploy/login.sql), and nothing else may last longer than a transaction.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias
from urllib.parse import urlsplit

import asyncpg
import asyncpg.pool
import structlog

from server.database_url import for_driver
from server.settings import Settings

log = structlog.get_logger()

# Generic for the type checker only: asyncpg's classes cannot be subscripted when they run.
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

# A write of ours holds the lock of its owner: nobody of the same owner waits longer than this.
STATEMENT_TIMEOUT_MS = 3_000
ACQUIRE_TIMEOUT_SECONDS = 5.0
START_SECONDS_MAX = 30.0
CLOSE_SECONDS_MAX = 1.0
LISTEN_RETRY_SECONDS = 2.0
LISTEN_CHECK_SECONDS = 5.0

# What every connection of a pool begins with.
SESSION = {
    "role": "service_role",
    "timezone": "UTC",
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_MS),
    "jit": "off",  # every statement here is short
    # and wants a few rows in the order of an index. Under row level security Postgres guesses the rows of an
    # average user; for one with many it would fetch and sort them all.
    "enable_bitmapscan": "off",
}
# What a transaction pooler takes from a client and holds to. The rest it refuses, or drops without a word.
POOLER_TAKES = ("timezone",)
STATEMENTS_CACHED = 100

# What a route may answer with 503 and a follower may wait out: Postgres is away, restarting or full.
UNAVAILABLE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,  # PgBouncer's own too, such as "server conn crashed?" and "query_wait_timeout"
    asyncpg.InternalServerError,  # Supabase's pooler says so when it has lost the database, or has no connection left
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection cut while the pool takes it back
    asyncpg.CannotConnectNowError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database lets nobody in, by its owner's will
    asyncpg.InsufficientResourcesError,  # no connection, no memory, or no room on its disk
    asyncpg.PostgresSystemError,  # it could not read or write a file
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,  # with somebody else's transaction: ours lock in one order
)

# What a database says where `migrate` has not been.
UNMIGRATED = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidParameterValueError,  # there is no role service_role yet
)
# What no waiting mends.
HOPELESS = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)

# What a loop that must go on for ever takes in its stride.
DATABASE_ERRORS: tuple[type[BaseException], ...] = (*UNAVAILABLE, asyncpg.PostgresError)


class _Acquire(asyncpg.pool.PoolAcquireContext):
    """Waits for a connection of the pool as asyncpg does, and says how long it took."""

    __slots__ = ("_waited",)

    def __init__(self, pool: "_Pool", timeout: float | None) -> None:
        super().__init__(pool, timeout)
        self._waited = pool.waited

    async def __aenter__(self) -> Connection:
        began = time.monotonic()
        try:
            return await super().__aenter__()
        finally:
            self._waited(time.monotonic() - began)


class _Pool(asyncpg.Pool):
    """Tells `waited` of each wait for a connection, in seconds, also of those in vain; asyncpg has no word for it."""

    waited: Callable[[float], None]

    def acquire(self, *, timeout: float | None = None) -> _Acquire:
        return _Acquire(self, timeout)


async def open_pool(
    settings: Settings,
    *,
    application: str,
    size: int | None = None,
    waited: Callable[[float], None] = lambda _: None,
) -> Pool:
    """A pool whose connections act as service_role; `application` shows in pg_stat_activity.

    `waited` is told how many seconds each statement waited for its connection.

    Raises what asyncpg raises when the server cannot be reached.
    """
    pooled = settings.pooled
    session = {name: value for name, value in SESSION.items() if name in POOLER_TAKES} if pooled else SESSION
    pool = _Pool(
        for_driver(settings.database_url or ""),
        min_size=1,
        max_size=size or settings.database_connections,
        max_queries=50_000,
        max_inactive_connection_lifetime=300.0,
        reset=_leave,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        command_timeout=STATEMENT_TIMEOUT_MS / 1000 + 2,
        timeout=ACQUIRE_TIMEOUT_SECONDS,
        statement_cache_size=0 if pooled else STATEMENTS_CACHED,
        server_settings={"application_name": f"taskbeam {application}", **session},
    )
    pool.waited = waited
    return await pool


async def _leave(_: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Between two borrowers nothing is to be cleaned, and a round trip is saved: we change nothing of a session.

    asyncpg itself ends a transaction that was left open. Behind a pooler what its own reset cleans would be another's.
    """


class DatabaseNotReady(Exception):
    """A process cannot begin its work; the message says what to do, in one line."""


async def wait_until_ready(settings: Settings, probe: str) -> None:
    """Wait for Postgres to come up, and for the migration that makes the statement `probe` work.

    A platform starts all processes at once. To be run before anything is served: a signal ends it at once.
    Raises DatabaseNotReady after START_SECONDS_MAX, or at once where waiting does not help.
    """
    deadline = time.monotonic() + START_SECONDS_MAX
    said = ""
    while True:
        try:
            pool = await open_pool(settings, application="start", size=1)
            try:
                await _check_session(pool, settings)
                await pool.execute(probe)
                return
            finally:
                await close_pool(pool)
        except DATABASE_ERRORS as error:
            reason = explain(error, settings.database_url or "")
            if isinstance(error, HOPELESS) or _is_unknown_pooler(error) or time.monotonic() > deadline:
                raise DatabaseNotReady(reason) from error
            if reason != said:
                log.warning("waiting_for_postgres", reason=reason)
            said = reason
            await asyncio.sleep(0.25)


async def _check_session(pool: Pool, settings: Settings) -> None:
    """A pooler may have dropped what we told it, and the login role may not bring it along. Raises DatabaseNotReady."""
    unlike = await pool.fetch(
        """select w.name, coalesce(s.setting, current_setting(w.name)) as found
             from unnest($1::text[], $2::text[]) w (name, value) left join pg_settings s on lower(s.name) = w.name
            where coalesce(s.setting, current_setting(w.name)) is distinct from w.value""",
        list(SESSION),
        list(SESSION.values()),
    )
    if unlike:
        found = ", ".join(f"{row['name']} is {row['found']} and not {SESSION[row['name']]}" for row in unlike)
        raise DatabaseNotReady(
            f"a connection to {_place(settings.database_url or '')} does not begin as it must: {found}. "
            "Run docs/deploy/login.sql as the owner, log in as the role it makes, and have the pooler connect anew"
        )


def _is_unknown_pooler(error: BaseException) -> bool:
    """PgBouncer at a port that does not tell."""
    return isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in str(error)


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or 'a local socket'}" + (f":{parts.port}" if parts.port else "")


def explain(error: BaseException, url: str) -> str:
    """What is wrong with the database at `url`, in one line for a person; nothing secret of the URL is in it."""
    where = _place(url)
    if _is_unknown_pooler(error):
        return f"{where} is a pooler: set DATABASE_POOLER=transaction, and DATABASE_DIRECT_URL to the database itself"
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        reason = str(error).partition("\n")[0]
        return f"Postgres at {where} says: {reason} (`migrate` and `up` need the owner's URL, and come first)"
    if isinstance(error, UNMIGRATED):
        return f"the database at {where} has no tables of Taskbeam's, or older ones: run `taskbeam migrate`"
    if isinstance(error, asyncpg.PostgresError):
        return f"Postgres at {where} says: {error}".partition("\n")[0]
    if isinstance(error, TimeoutError):
        return f"Postgres at {where} does not answer"
    # Not what a library makes of it: it says "Connect call failed ('127.0.0.1', 5432)".
    known = isinstance(error, OSError) and error.errno is not None and error.errno > 0
    reason = os.strerror(error.errno) if known else str(error) or type(error).__name__  # type: ignore[attr-defined]
    return f"Postgres at {where} cannot be reached: {reason}".partition("\n")[0]


async def close_pool(pool: Pool) -> None:
    """Close, but do not wait long for whoever still holds a connection."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(pool.close(), CLOSE_SECONDS_MAX)


async def listen(url: str, channel: str, heard: Callable[[str], None]) -> None:
    """Call `heard(payload)` for every notice on the channel, and with "" after each new connection; for ever.

    A connection of its own, past any transaction pooler, since LISTEN belongs to a session. Notices are hints:
    whoever needs them polls too. LISTEN is repeated now and then, because a half-open connection is as quiet as one
    without notices.
    """
    while True:
        lost = asyncio.Event()
        try:
            connection = await asyncpg.connect(url, timeout=ACQUIRE_TIMEOUT_SECONDS)
            try:
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                await connection.add_listener(channel, lambda *notice: heard(str(notice[-1])))
                heard("")
                while not lost.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LISTEN_CHECK_SECONDS):
                            await lost.wait()
                    await connection.execute(f'listen "{channel}"', timeout=ACQUIRE_TIMEOUT_SECONDS)
            finally:
                connection.terminate()
        except DATABASE_ERRORS as error:
            log.warning("notices_lost", channel=channel, reason=type(error).__name__)
        await asyncio.sleep(LISTEN_RETRY_SECONDS)


@contextlib.asynccontextmanager
async def acting_as(pool: Pool, claims: str) -> AsyncIterator[Connection]:
    """A transaction as `authenticated` with these claims (a JSON object as text); rolled back on an error.

    Its beginning is one round trip, its end another. Raises TimeoutError when all of it takes longer than one statement
    may.
    """
    async with (
        pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
        asyncio.timeout(STATEMENT_TIMEOUT_MS / 1000),
    ):
        try:
            await connection.execute(f"begin; select taskbeam.act_as({literal(claims)})")
            yield connection
        except BaseException:
            # Where that fails too the pool ends the transaction, or the connection has ended already.
            with contextlib.suppress(*DATABASE_ERRORS):
                await connection.execute("rollback")
            raise
        await connection.execute("commit")


async def fetch_alone(pool: Pool, query: str, *parameters: object) -> list[asyncpg.Record]:
    """The rows of a statement that may change role and claims: it is a transaction of its own, and ends them.

    Raises TimeoutError where it takes longer than a statement may, with what it waits for.
    """
    async with (
        pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
        asyncio.timeout(STATEMENT_TIMEOUT_MS / 1000),
    ):
        return await connection.fetch(query, *parameters)


def literal(text: str) -> str:
    """As a string constant of SQL, for a message of several statements, which takes no parameters.

    Escaped, so that it means the same whatever standard_conforming_strings is. Raises ValueError for NUL.
    """
    if "\0" in text:
        raise ValueError("NUL is no character of Postgres")
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
