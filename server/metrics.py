"""What a process counts, for Prometheus. Labels come from closed sets only: no ids, no paths as sent.

Each process has a registry of its own and shares nothing; docs/operations.md says what may be added up. Labels are
bound here, once: to look them up costs more than to count. A series is there from the start, at nought, because the
first step of one that appears is seen by no rate().
"""

import asyncio
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import Metric

from server.backlog import Backlog
from server.db import Pool
from server.generators import PROVIDERS
from server.tally import Latencies, Tallies, Tally
from server.version import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOP_SAMPLE_SECONDS = 0.25
# The tick answers within a second or two; what is above that was an outage.
PUSH_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
WAIT_SECONDS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0)
LAG_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TRANSPORTS = ("sse", "websocket", "poll")
MODES = ("live", "replay", "snapshot")
OUTCOMES = ("applied", "duplicate", "stale")
UNTAKEN = ("unknown_task", "unavailable", "refused")
REFUSALS = (
    "missing",
    "ticket",
    "malformed",
    "wrong_algorithm",
    "unknown_key",
    "wrong_key",
    "expired",
    "not_yet",
    "wrong_issuer",
    "wrong_audience",
    "incomplete",
    "wrong_subject",
    "wrong_role",
    "anonymous",
)
SIGNATURE_REFUSALS = (
    "missing",
    "malformed",
    "wrong_key",
    "wrong_issuer",
    "wrong_url",
    "wrong_body",
    "expired",
    "not_yet",
)
RIGHTS_ENDED = ("expired", "revoked", "session_ended")
VERDICTS = ("apply", "end", "resend")

Read: TypeAlias = Callable[[], Awaitable[Sequence[Metric]]]


class ProcessMetrics:
    """What every process of ours counts; `process` is its name."""

    def __init__(self, process: str) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of birth for each series would be as much again
        self.registry = r = CollectorRegistry()
        self._backlog: Backlog | None = None
        ProcessCollector(registry=r)
        build = Gauge("taskbeam_build_info", "1; what runs.", ["process", "version", "python"], registry=r)
        build.labels(process, VERSION, platform.python_version()).set(1)
        self.loop_lag = Histogram(
            "taskbeam_event_loop_lag_seconds",
            "How late the event loop came to a timer, four times a second.",
            registry=r,
            buckets=LAG_SECONDS,
        )
        self._pool_open = Gauge("taskbeam_pool_connections_open", "Connections to Postgres.", registry=r)
        self._pool_in_use = Gauge("taskbeam_pool_connections_in_use", "Connections that somebody holds.", registry=r)
        self._pool_max = Gauge("taskbeam_pool_connections_max", "As many as may be opened.", registry=r)
        self.pool_wait = Histogram(
            "taskbeam_pool_wait_seconds",
            "How long a statement waited for a connection.",
            registry=r,
            buckets=WAIT_SECONDS,
        )
        self.bus_published = Counter("taskbeam_bus_published_total", "Changes published.", registry=r)
        self.bus_dropped = Counter("taskbeam_bus_dropped_total", "Changes that could not be published.", registry=r)

    def watch(self, pool: Pool, read: Read) -> None:
        """From now on show the pool, and what `read` finds waiting in Postgres."""
        self._pool_open.set_function(pool.get_size)
        self._pool_in_use.set_function(lambda: pool.get_size() - pool.get_idle_size())
        self._pool_max.set_function(pool.get_max_size)
        self._backlog = Backlog(read)
        self.registry.register(self._backlog)

    async def watch_loop(self) -> None:
        """Until cancelled."""
        while True:
            due = time.monotonic() + LOOP_SAMPLE_SECONDS
            await asyncio.sleep(LOOP_SAMPLE_SECONDS)
            self.loop_lag.observe(max(0.0, time.monotonic() - due))

    async def exposition(self) -> bytes:
        """All of it in the Prometheus text format; without what Postgres knows, when Postgres does not answer."""
        if self._backlog is not None:
            await self._backlog.refresh()
        return generate_latest(self.registry)


class Transport:
    """What one way to follow tasks counts: followers `open`, those that `joined` by mode, changes `sent`."""

    def __init__(self, name: str, streams: Gauge, joins: Counter) -> None:
        self.open = streams.labels(name)
        self.joined = {mode: joins.labels(name, mode) for mode in MODES}
        self.sent = Tally()


class Metrics(ProcessMetrics):
    """The web process's, handed to whoever counts."""

    def __init__(self) -> None:
        super().__init__("web")
        r = self.registry
        self.requests = Counter(
            "taskbeam_requests_total", "Requests answered.", ["route", "method", "status"], registry=r
        )
        streams = Gauge("taskbeam_streams_open", "Followers connected now.", ["transport"], registry=r)
        joins = Counter(
            "taskbeam_joins_total", "Followers that joined, by how they began.", ["transport", "mode"], registry=r
        )
        self.sse, self.websocket, self.poll = transports = [Transport(t, streams, joins) for t in TRANSPORTS]
        sent = {name: transport.sent for name, transport in zip(TRANSPORTS, transports, strict=True)}
        r.register(Tallies("taskbeam_events_sent", "Changes sent to followers.", sent, "transport"))
        self.conflated = Tally()
        replaced = "Progress that something newer replaced before it was sent."
        r.register(Tallies("taskbeam_events_conflated", replaced, {"": self.conflated}))
        self.send_seconds = Latencies(
            "taskbeam_commit_to_send_seconds",
            "From a change (by Postgres' clock) to its hand-over to the socket (by ours); replays are not counted.",
            PUSH_SECONDS,
        )
        r.register(self.send_seconds)
        self.tasks_created = Counter("taskbeam_tasks_created_total", "Tasks accepted.", registry=r)
        callbacks = Counter("taskbeam_callbacks_total", "Callbacks by what became of them.", ["outcome"], registry=r)
        self.callbacks = {outcome: callbacks.labels(outcome) for outcome in (*OUTCOMES, *UNTAKEN)}
        forged = Counter(
            "taskbeam_signatures_refused_total",
            "Callbacks and webhooks whose signature is not valid, and why.",
            ["kind", "reason"],
            registry=r,
        )
        self.signatures_refused = {
            (kind, reason): forged.labels(kind, reason)
            for kind in ("callback", "webhook")
            for reason in SIGNATURE_REFUSALS
        }
        webhooks = Counter(
            "taskbeam_webhooks_total", "Webhooks of generators by outcome.", ["provider", "outcome"], registry=r
        )
        self.webhooks = {
            (provider, outcome): webhooks.labels(provider, outcome)
            for provider in PROVIDERS
            for outcome in (*OUTCOMES, *UNTAKEN)
        }
        reports = Counter("taskbeam_reports_total", "Progress reports by outcome.", ["outcome"], registry=r)
        self.reports = {outcome: reports.labels(outcome) for outcome in OUTCOMES}
        dispatched = Counter("taskbeam_dispatches_total", "Attempts to hand a task to QStash.", ["outcome"], registry=r)
        self.dispatched = {outcome: dispatched.labels(outcome) for outcome in ("sent", "failed", "refused")}
        self.bus_connected = Gauge("taskbeam_bus_connected", "1 while Redis answers the listener.", registry=r)
        self.bus_received = Tally()
        r.register(Tallies("taskbeam_bus_received", "Messages received.", {"": self.bus_received}))
        self.bus_confirmations_late = Counter(
            "taskbeam_bus_confirmations_late_total", "Subscriptions that Redis did not confirm in time.", registry=r
        )
        self.tick_catches = Counter(
            "taskbeam_tick_catches_total", "Topics whose followers learnt from the tick, not from the bus.", registry=r
        )
        self.tick_failures = Counter("taskbeam_tick_failures_total", "Ticks that Postgres did not answer.", registry=r)
        deleted = Counter("taskbeam_tasks_deleted_total", "Tasks deleted, by reason.", ["reason"], registry=r)
        self.deleted = {reason: deleted.labels(reason) for reason in ("request", "age")}
        refused = Counter(
            "taskbeam_sign_ins_refused_total", "Requests without a good access token or ticket.", ["reason"], registry=r
        )
        self.sign_ins_refused = {reason: refused.labels(reason) for reason in REFUSALS}
        ended = Counter(
            "taskbeam_access_ended_total", "Rights to follow that ended before the tasks.", ["reason"], registry=r
        )
        self.access_ended = {reason: ended.labels(reason) for reason in RIGHTS_ENDED}
        self.access_checks = Counter(
            "taskbeam_access_checks_total", "Users and tasks of followers looked at again in Postgres.", registry=r
        )
        self.access_check_failures = Counter(
            "taskbeam_access_check_failures_total", "Followers that Postgres did not answer for.", registry=r
        )
        self.access_check_seconds = Histogram(
            "taskbeam_access_check_seconds",
            "How long a look at a twelfth of the followers took.",
            registry=r,
            buckets=WAIT_SECONDS,
        )
        reconciled = Counter(
            "taskbeam_tasks_reconciled_total", "Tasks looked up at the provider and decided.", ["verdict"], registry=r
        )
        self.reconciled = {verdict: reconciled.labels(verdict) for verdict in VERDICTS}
        self.expired = Counter("taskbeam_tasks_expired_total", "Tasks ended at their deadline.", registry=r)
