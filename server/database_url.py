"""What a Postgres URL says of the way to the database: directly, or through a transaction pooler. Pure.

A transaction pooler (PgBouncer, Supabase's port 6543) lends a connection of the database for one transaction. So
nothing of a session lasts there: no prepared statements, no LISTEN, no session locks, no parameters from the start.
"""

from typing import Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

Pooler: TypeAlias = Literal["auto", "transaction", "none"]

SUPABASE_PORT = 6543
# Words of Prisma's in the URLs that dashboards hand out: for Postgres they would be parameters it does not know.
NOT_FOR_POSTGRES = frozenset({"pgbouncer", "connection_limit", "pool_timeout"})


def is_pooled(url: str, pooler: Pooler) -> bool:
    """Whether it leads through a transaction pooler: as `pooler` says, or by the URL's port or `?pgbouncer=true`."""
    if pooler != "auto":
        return pooler == "transaction"
    parts = urlsplit(url)
    return parts.port == SUPABASE_PORT or ("pgbouncer", "true") in parse_qsl(parts.query)


def for_driver(url: str) -> str:
    """The same without what only other clients understand."""
    place, _, query = url.partition("?")
    kept = [pair for pair in query.split("&") if pair.partition("=")[0] not in NOT_FOR_POSTGRES]
    rest = "&".join(kept)
    return f"{place}?{rest}" if rest else place


def contradictions(url: str | None, direct_url: str | None, pooler: Pooler) -> list[str]:
    """What does not fit together, a line for each."""
    if url is None:
        told = {"DATABASE_DIRECT_URL": direct_url is not None, "DATABASE_POOLER=transaction": pooler == "transaction"}
        return [f"DATABASE_URL is needed with {name}" for name, is_set in told.items() if is_set]
    if is_pooled(url, pooler) and direct_url is None:
        return [
            "DATABASE_DIRECT_URL is needed: DATABASE_URL leads through a transaction pooler, and notices and "
            "migrations do not (Supabase: the direct connection, or the session pooler on port 5432)"
        ]
    if direct_url is not None and is_pooled(direct_url, "auto"):
        return [
            "DATABASE_DIRECT_URL leads through a transaction pooler: take the direct connection or a session pooler"
        ]
    return []
