"""Notices over a connection that has died without a word; and text that becomes a constant of SQL."""

import asyncio
import dataclasses
import random
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from server import db
from server.chaos.link import Link
from server.settings import Settings
from tests.conftest import Connection
from tests.deployment import Database


async def test_a_half_open_connection_for_notices_is_noticed(
    database: Database, owner: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "LISTEN_CHECK_SECONDS", 0.3)
    monkeypatch.setattr(db, "LISTEN_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(db, "ACQUIRE_TIMEOUT_SECONDS", 1.0)
    far = parse_qs(urlsplit(database.url).query)["host"][0]
    link = Link("postgres", Path(far) / ".s.PGSQL.5432", tmp_path / ".s.PGSQL.5432")
    await link.start()
    heard: asyncio.Queue[str] = asyncio.Queue()
    url = f"postgresql:///{database.name}?host={tmp_path}&user=taskbeam"
    listening = asyncio.create_task(db.listen(url, "here", heard.put_nowait))
    try:
        async with asyncio.timeout(10):
            assert await heard.get() == ""  # connected
            await owner.execute("notify here, 'one'")
            assert await heard.get() == "one"
            link.turn("stalled")
            await owner.execute("notify here, 'lost'")
            await asyncio.sleep(0.1)
            link.turn("whole", forget=True)
            assert await heard.get() == ""  # connected anew: what was lost is looked for
            await owner.execute("notify here, 'two'")
            assert await heard.get() == "two"
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await link.stop()


NASTY = [
    "",
    "'",
    "\\",
    "\\'",
    "'; drop table public.image_generations; --",
    "\\'; select 1; --",
    "$$ E'' \\x41 \\u0041 \\101",
    '{"sub":"x","name":"O\'Neil \\\\ \\n"}',
    "\u2019\u02bc\U0001f98a\r\n\t",
]


@pytest.mark.parametrize("conforming", ["on", "off"])
async def test_a_constant_means_what_it_is_made_of(owner: Connection, conforming: str) -> None:
    try:
        await owner.execute(f"set standard_conforming_strings = {conforming}")
    except asyncpg.PostgresError:
        pytest.skip("this Postgres knows no other strings")
    draw = random.Random(7)
    made_up = ["".join(draw.choices("a'\\\"$;{}\n\u00e9", k=draw.randrange(30))) for _ in range(300)]
    for text in [*NASTY, *made_up]:
        # Several statements in one message, as acting_as sends them.
        await owner.execute(f"begin; select set_config('here.text', {db.literal(text)}, true)")
        assert await owner.fetchval("select current_setting('here.text')") == text
        await owner.execute("rollback")


def test_nul_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="NUL"):
        db.literal("a\0b")


async def test_acting_as_somebody_is_two_round_trips_more(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    far = parse_qs(urlsplit(database.url).query)["host"][0]
    link = Link("postgres", Path(far) / ".s.PGSQL.5432", tmp_path / ".s.PGSQL.5432")
    await link.start()
    url = f"postgresql:///{database.name}?host={tmp_path}&user=taskbeam"
    pool = await db.open_pool(dataclasses.replace(settings, database_url=url), application="test", size=1)
    seconds = 0.1  # of one round trip

    async def once(as_caller: bool) -> float:
        began = time.monotonic()
        if as_caller:
            async with db.acting_as(pool, "{}") as connection:
                await connection.execute("select 1")
        else:
            await pool.execute("select 1")
        return (time.monotonic() - began) / seconds

    try:
        await once(True)
        link.turn("delayed", seconds / 2)
        assert 1 <= await once(False) < 1.9
        assert 3 <= await once(True) < 3.9
    finally:
        await db.close_pool(pool)
        await link.stop()
