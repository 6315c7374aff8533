"""Tells a task that our dispatcher has begun with it, from the dispatcher's own process.

A generator that reports nothing would otherwise leave its task `pending` until the end, and the time that a run
may take is counted from here. The dispatcher knows messages only, so the two are put together outside of it.
And so is what it and the web process look at alike before they start.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import structlog

from server.db import DATABASE_ERRORS, Pool
from server.metrics import ProcessMetrics
from server.push.publisher import Publisher, outlet
from server.push.redis_link import refusal
from server.settings import Settings
from server.tasks.state import Report
from server.tasks.store import NoSuchTask, TaskStore

log = structlog.get_logger()

# (task id, attempt, delivery) of each message claimed
Starter: TypeAlias = Callable[[Sequence[tuple[str, int, int]]], Awaitable[None]]


def redis_problems(settings: Settings) -> list[str]:
    """Why REDIS_URL, right as a URL, leads to nothing: a line at most."""
    reason = None if settings.redis_url is None else refusal(settings.redis_url)
    return [] if reason is None else [f"REDIS_URL {reason}"]


@asynccontextmanager
async def task_starter(settings: Settings, pool: Pool, metrics: ProcessMetrics) -> AsyncIterator[Starter]:
    """A function that marks tasks as `processing` and publishes it. It never raises: the delivery matters more."""
    publisher = Publisher(outlet(settings, pool), metrics)
    sending = asyncio.create_task(publisher.run())
    store = TaskStore(
        pool,
        publisher.publish,
        public_url=settings.public_url or "",
        deadline_seconds=settings.task_deadline_seconds,
    )

    async def start(claimed: Sequence[tuple[str, int, int]]) -> None:
        for task_id, attempt, delivery in claimed:
            try:
                await store.report(task_id, Report(attempt=attempt, delivery=delivery))
            except NoSuchTask:
                log.info("claimed_for_no_task", task_id=task_id, attempt=attempt)
            except DATABASE_ERRORS as error:
                reason = type(error).__name__
                log.warning("start_not_noted", task_id=task_id, attempt=attempt, reason=reason)

    try:
        yield start
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
