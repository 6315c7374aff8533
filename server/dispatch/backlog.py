"""What waits in the dispatcher, of all its processes together, as metrics; by lane, since one may wait alone."""

from collections.abc import Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from server.backlog import COUNTED_MAX
from server.db import Pool


async def read_backlog(pool: Pool) -> Sequence[Metric]:
    """Ask Postgres. Each count stops at COUNTED_MAX. Raises DATABASE_ERRORS."""
    rows = await pool.fetch(
        """
        with due as (
          (select 'messages' as lane, due_at from dispatcher.messages
            where state in ('created', 'retry') and kind = 'message' order by due_at, id limit $1)
          union all
          (select 'callbacks', due_at from dispatcher.messages
            where state in ('created', 'retry') and kind <> 'message' order by due_at, id limit $1)
        ), leased as (
          select case when kind = 'message' then 'messages' else 'callbacks' end as lane from dispatcher.messages
           where state = 'active' order by leased_until limit $1
        )
        select lane,
               (select count(*) from due where due.lane = l.lane and due_at <= now()) as waiting,
               (select count(*) from due where due.lane = l.lane and due_at > now()) as delayed,
               (select count(*) from leased where leased.lane = l.lane) as leased,
               (select greatest(0, extract(epoch from now() - min(due_at)))::float8
                  from due where due.lane = l.lane) as oldest
          from (values ('messages'), ('callbacks')) l (lane)
        """,
        COUNTED_MAX,
    )
    messages = GaugeMetricFamily(
        "taskbeam_deployment_messages", "Messages of the dispatcher by state. Take max().", labels=["lane", "state"]
    )
    oldest = GaugeMetricFamily(
        "taskbeam_deployment_message_oldest_seconds",
        "How long the first in line has been due, 0 without any. Take max().",
        labels=["lane"],
    )
    for row in rows:
        for state in ("waiting", "delayed", "leased"):
            messages.add_metric([row["lane"], state], row[state])
        oldest.add_metric([row["lane"]], row["oldest"] or 0.0)
    return messages, oldest
