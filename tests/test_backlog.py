"""What waits in Postgres is asked for seldom, once at a time, and never shown when it is old or unknown."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from server import backlog
from server.backlog import Backlog
from tests.exposition import Series, parse, value


class Source:
    """Stands in for Postgres: counts who asks, answers when `gate` is open, or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def read(self) -> Sequence[Metric]:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            return [GaugeMetricFamily("waiting", "", value=self.asked)]
        finally:
            self.at_once -= 1


Shown = Callable[[], Awaitable[Series]]


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def shown(source: Source) -> Shown:
    """Scrape it."""
    kept, registry = Backlog(source.read, scrape_seconds_max=0.05), CollectorRegistry()
    registry.register(kept)

    async def scrape() -> Series:
        await kept.refresh()
        return parse(generate_latest(registry).decode())

    return scrape


async def test_many_scrapers_are_one_question(source: Source, shown: Shown) -> None:
    for series in await asyncio.gather(*(shown() for _ in range(50))):
        assert value(series, "waiting") == 1
        assert value(series, "taskbeam_database_up") == 1
    assert source.asked == 1


async def test_it_is_asked_for_again_when_it_is_old(
    source: Source, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shown()
    monkeypatch.setattr(backlog, "READ_SECONDS", 0.0)
    assert value(await shown(), "waiting") == 2
    source.error = ConnectionRefusedError()
    for _ in range(2):  # what was known before is not shown for what is so now
        assert await shown() == {("taskbeam_database_up", frozenset()): 0}
    source.error = None
    assert value(await shown(), "waiting") == 5


async def test_a_failure_is_not_asked_again_by_every_scrape(source: Source, shown: Shown) -> None:
    source.error = TimeoutError()
    for _ in range(20):
        assert value(await shown(), "taskbeam_database_up") == 0
    assert source.asked == 1


async def test_a_postgres_that_says_nothing_holds_up_no_scrape(
    source: Source, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "READ_SECONDS", 0.0)
    assert value(await shown(), "waiting") == 1
    source.gate.clear()
    began = time.monotonic()
    for series in await asyncio.gather(*(shown() for _ in range(20))):
        assert series == {("taskbeam_database_up", frozenset()): 0}
    assert 0.04 < time.monotonic() - began < 0.5
    await shown()
    assert source.most_at_once == 1
    # It is given up in the end.
    monkeypatch.setattr(backlog, "ANSWER_SECONDS_MAX", 0.05)
    source.gate.set()
    assert value(await shown(), "taskbeam_database_up") == 1
    source.gate.clear()
    asked = source.asked
    await shown()
    await asyncio.sleep(0.05)
    assert source.at_once == 0
    await shown()
    assert source.asked == asked + 2


async def test_a_defect_is_no_absence(source: Source, shown: Shown) -> None:
    source.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await shown()
