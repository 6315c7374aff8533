"""A data folder whose database is of another Postgres: brought over, or refused with what to do and untouched."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from server.embedded.children import ChildFailed
from server.embedded.postgres import EmbeddedPostgres

OLD = Path("/usr/lib/postgresql/15/bin")
OLD_IS_HERE = OLD.exists()


async def run(server: EmbeddedPostgres, statement: str) -> object:
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_an_older_one_is_brought_over_even_after_a_crash(place: Path) -> None:
    if not OLD_IS_HERE:
        pytest.skip(f"NOT TESTED with Postgres 15: {OLD} is missing (apt-get install postgresql-15)")
    old = EmbeddedPostgres(place, binaries=OLD)
    old.start()
    await old.ready()
    await run(old, "create table kept as select 'from 15' as what")
    assert old.process is not None
    old.process.kill()
    old.process.wait()
    await asyncio.sleep(0.2)
    said: list[str] = []
    new = EmbeddedPostgres(place, say=said.append)
    new.start()
    try:
        await new.ready()
        assert await run(new, "select what from kept") == "from 15"
        assert str(await run(new, "show server_version")).startswith("18")
    finally:
        new.stop()
    assert (place / "postgres.15" / "PG_VERSION").read_text().strip() == "15"
    assert [line for line in said if "is of Postgres 15: bringing it over to 18" in line]
    assert "the old one is kept in" in said[-1]
    # Again, and after a crash between the two renamings: it is the new one.
    (place / "postgres").rename(place / "postgres.upgraded")
    again = EmbeddedPostgres(place, say=said.clear)  # type: ignore[arg-type]  # there is nothing to say
    again.start()
    try:
        await again.ready()
        assert await run(again, "select what from kept") == "from 15"
    finally:
        again.stop()


def test_what_cannot_be_brought_over_is_not_touched(place: Path) -> None:
    EmbeddedPostgres(place).prepare()
    for version, reason in (
        ("12", r"is of Postgres 12, and this Taskbeam brings 18: install Postgres 12 \(Debian: postgresql-12\)"),
        ("99", "is of Postgres 99, newer than the 18 of this Taskbeam: use the newer one again"),
        ("what?", "names no version"),
    ):
        (place / "postgres" / "PG_VERSION").write_text(f"{version}\n")
        before = {path: path.stat().st_mtime_ns for path in (place / "postgres").rglob("*")}
        with pytest.raises(ChildFailed, match=reason):
            EmbeddedPostgres(place).start()
        assert {path: path.stat().st_mtime_ns for path in (place / "postgres").rglob("*")} == before
        assert not (place / "postgres.upgraded").exists()
    if not OLD_IS_HERE:
        return
    # It says that it is an older one, and is not.
    (place / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ChildFailed, match="postgres: "):
        EmbeddedPostgres(place).start()
    assert (place / "postgres" / "global" / "pg_control").exists()
    assert not (place / "postgres.upgraded").exists()
