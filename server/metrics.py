"""What the process counts, for Prometheus. Labels come from closed sets only: no ids, no paths as sent."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MILLISECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One a process, handed to whoever counts."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        self.requests = Counter(
            "taskbeam_requests_total", "Requests answered.", ["route", "method", "status"], registry=r
        )
        self.streams = Gauge("taskbeam_streams_open", "Followers connected now.", ["transport"], registry=r)
        self.events = Counter("taskbeam_events_sent_total", "Changes sent to followers.", ["transport"], registry=r)
        self.send_seconds = Histogram(
            "taskbeam_commit_to_send_seconds",
            "From a change's commit to its hand-over to the socket.",
            registry=r,
            buckets=MILLISECONDS,
        )
        self.tasks_created = Counter("taskbeam_tasks_created_total", "Tasks accepted.", registry=r)
        self.callbacks = Counter(
            "taskbeam_callbacks_total", "Callbacks by what became of them.", ["outcome"], registry=r
        )
        self.webhooks = Counter(
            "taskbeam_webhooks_total", "Webhooks of generators by outcome.", ["provider", "outcome"], registry=r
        )
        self.reports = Counter("taskbeam_reports_total", "Progress reports by outcome.", ["outcome"], registry=r)
        self.dispatched = Counter(
            "taskbeam_dispatches_total", "Attempts to hand a task to QStash.", ["outcome"], registry=r
        )
        self.bus_connected = Gauge("taskbeam_bus_connected", "1 while Redis answers the listener.", registry=r)
        self.bus_published = Counter("taskbeam_bus_published_total", "Changes published.", registry=r)
        self.bus_dropped = Counter("taskbeam_bus_dropped_total", "Changes that could not be published.", registry=r)
        self.bus_received = Counter("taskbeam_bus_received_total", "Messages received.", registry=r)
        self.bus_confirmations_late = Counter(
            "taskbeam_bus_confirmations_late_total", "Subscriptions that Redis did not confirm in time.", registry=r
        )
        self.tick_catches = Counter(
            "taskbeam_tick_catches_total", "Topics whose followers learnt from the tick, not from Redis.", registry=r
        )
        self.tick_failures = Counter("taskbeam_tick_failures_total", "Ticks that Postgres did not answer.", registry=r)
        self.deleted = Counter("taskbeam_tasks_deleted_total", "Tasks deleted, by reason.", ["reason"], registry=r)
        self.expired = Counter("taskbeam_tasks_expired_total", "Tasks ended at their deadline.", registry=r)

    def exposition(self) -> bytes:
        """All of it in the Prometheus text format."""
        return generate_latest(self._registry)
