"""Notices over a connection that has died without a word: its end must be noticed, no packet tells of it."""

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from server import db
from server.chaos.link import Link
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
