"""Which way a URL leads, and what of it the driver gets to see."""

import pytest

from server.database_url import Pooler, contradictions, for_driver, is_pooled

pytestmark = pytest.mark.pure

DIRECT = "postgres://u:p%40@db.test:5432/app?sslmode=require"
POOLED = "postgres://u:p%40@pooler.test:6543/app"


@pytest.mark.parametrize(
    ("url", "pooler", "pooled"),
    [
        (DIRECT, "auto", False),
        (POOLED, "auto", True),
        (POOLED + "?pgbouncer=true", "auto", True),
        (DIRECT + "&pgbouncer=true", "auto", True),
        (DIRECT + "&pgbouncer=false", "auto", False),
        ("postgresql:///app?host=/run/postgresql&user=u", "auto", False),
        (DIRECT, "transaction", True),
        (POOLED, "none", False),
    ],
)
def test_the_way(url: str, pooler: Pooler, pooled: bool) -> None:
    assert is_pooled(url, pooler) is pooled


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        (DIRECT, DIRECT),
        (POOLED + "?pgbouncer=true", POOLED),
        (DIRECT + "&pgbouncer=true&connection_limit=1", DIRECT),
        ("postgresql:///app?host=%2Frun%2Fpg&user=u&pgbouncer=true", "postgresql:///app?host=%2Frun%2Fpg&user=u"),
    ],
)
def test_what_the_driver_sees(url: str, seen: str) -> None:
    assert for_driver(url) == seen


@pytest.mark.parametrize(
    ("url", "direct", "pooler", "first"),
    [
        (DIRECT, None, "auto", None),
        (DIRECT, DIRECT, "auto", None),
        (POOLED, DIRECT, "auto", None),
        (POOLED, None, "none", None),
        (None, None, "auto", None),
        (POOLED, None, "auto", "DATABASE_DIRECT_URL is needed"),
        (DIRECT, None, "transaction", "DATABASE_DIRECT_URL is needed"),
        (POOLED, POOLED, "auto", "DATABASE_DIRECT_URL leads through"),
        (None, DIRECT, "auto", "DATABASE_URL is needed with DATABASE_DIRECT_URL"),
        (None, None, "transaction", "DATABASE_URL is needed with DATABASE_POOLER"),
    ],
)
def test_what_fits_together(url: str | None, direct: str | None, pooler: Pooler, first: str | None) -> None:
    found = contradictions(url, direct, pooler)
    assert len(found) == (first is not None)
    assert first is None or found[0].startswith(first)
    assert "p%40" not in "".join(found)
