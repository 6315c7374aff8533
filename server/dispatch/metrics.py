"""What a dispatcher process counts, by lane: the messages, and the callbacks that tell what became of them."""

from prometheus_client import Counter, Gauge, Histogram

from server.metrics import ProcessMetrics

# A generator answers when the picture is there.
DELIVERY_SECONDS = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# failed and refused are dead letters. fenced_off and dropped were taken over by another, or cancelled; unrecorded could
# not be written down, and their leases run out.
OUTCOMES = ("delivered", "retried", "failed", "refused", "fenced_off", "dropped", "unrecorded")


class Lane:
    """Of one lane: deliveries `under_way`, `ended` by outcome, `seconds` each took."""

    def __init__(self, name: str, under_way: Gauge, deliveries: Counter, seconds: Histogram) -> None:
        self.under_way = under_way.labels(name)
        self.ended = {outcome: deliveries.labels(name, outcome) for outcome in OUTCOMES}
        self.seconds = seconds.labels(name)


class DispatcherMetrics(ProcessMetrics):
    """The dispatcher process's."""

    def __init__(self, parallelism: int) -> None:
        super().__init__("dispatcher")
        r = self.registry
        Gauge("taskbeam_delivery_parallelism", "Deliveries that may be under way, in each lane.", registry=r).set(
            parallelism
        )
        under_way = Gauge("taskbeam_deliveries_under_way", "Deliveries under way.", ["lane"], registry=r)
        deliveries = Counter(
            "taskbeam_deliveries_total", "Deliveries by what became of them.", ["lane", "outcome"], registry=r
        )
        seconds = Histogram(
            "taskbeam_delivery_seconds",
            "From the claim to the answer of the destination.",
            ["lane"],
            registry=r,
            buckets=DELIVERY_SECONDS,
        )
        self.messages, self.callbacks = (
            Lane(name, under_way, deliveries, seconds) for name in ("messages", "callbacks")
        )
        self.leases_taken_over = Counter(
            "taskbeam_leases_taken_over_total", "Messages whose holder let the lease run out.", registry=r
        )
