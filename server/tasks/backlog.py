"""What waits in the whole deployment between a user and QStash, as metrics: open tasks, unsent messages."""

import time
from collections.abc import Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from server.backlog import COUNTED_MAX
from server.db import Pool


async def read_backlog(pool: Pool) -> Sequence[Metric]:
    """Ask Postgres. Each count stops at COUNTED_MAX. Raises DATABASE_ERRORS."""
    async with pool.acquire() as connection:
        began = time.time()
        now = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
        ahead = now - (began + time.time()) / 2
        row = await connection.fetchrow(
            """
            with open as (
              select status::text from public.image_generations where status in ('pending', 'processing')
               order by deadline_at limit $1
            ), unsent as (
              select created_at from taskbeam.dispatches where sent_at is null order by next_at limit $1
            )
            select (select count(*) from open where status = 'pending') as pending,
                   (select count(*) from open where status = 'processing') as processing,
                   (select count(*) from unsent) as unsent,
                   (select coalesce(extract(epoch from now() - min(created_at)), 0)::float8 from unsent) as oldest
            """,
            COUNTED_MAX,
        )
    assert row is not None  # noqa: S101  (the statement ends in a select without a FROM)
    tasks = GaugeMetricFamily("taskbeam_deployment_tasks", "Tasks not yet ended. Take max().", labels=["status"])
    tasks.add_metric(["pending"], row["pending"])
    tasks.add_metric(["processing"], row["processing"])
    return (
        tasks,
        GaugeMetricFamily(
            "taskbeam_deployment_outbox_unsent", "Messages not yet handed to QStash. Take max().", value=row["unsent"]
        ),
        GaugeMetricFamily(
            "taskbeam_deployment_outbox_oldest_seconds",
            "Age of the oldest message not yet handed to QStash, 0 without any. Take max().",
            value=max(0.0, row["oldest"]),
        ),
        GaugeMetricFamily(
            "taskbeam_database_clock_ahead_seconds",
            "Postgres' clock minus this process's, to half a round trip.",
            value=ahead,
        ),
    )
