"""How long statements wait for a connection of the pool."""

import asyncio

import pytest

from server.db import open_pool
from server.settings import Settings


async def test_a_wait_for_a_connection_is_measured(settings: Settings) -> None:
    waits: list[float] = []
    pool = await open_pool(settings, application="test", size=1, waited=waits.append)
    async with pool.acquire():
        asking = asyncio.create_task(pool.fetchval("select 1"))
        with pytest.raises(TimeoutError):
            async with pool.acquire(timeout=0.05):
                pass
        await asyncio.sleep(0.05)
    assert await asking == 1
    await pool.close()
    assert len(waits) == 3
    assert waits[0] < 0.05 <= waits[1]  # in vain, and counted all the same
    assert waits[2] >= 0.1
