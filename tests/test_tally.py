"""What is counted in bulk is what would have been counted one by one."""

from random import Random

import pytest
from prometheus_client.core import Metric

from server.tally import Latencies

pytestmark = pytest.mark.pure

BOUNDS = (0.001, 0.25, 0.5, 1.0)


def shown(latencies: Latencies) -> list[tuple[str, str, float]]:
    metrics: list[Metric] = list(latencies.collect())
    return [(s.name, s.labels.get("le", ""), round(s.value, 9)) for metric in metrics for s in metric.samples]


def test_many_at_once_and_one_by_one_are_the_same() -> None:
    rng = Random(1)
    for size in [*range(8), 100]:
        at_once, single = (Latencies("l", "L.", BOUNDS) for _ in range(2))
        for _ in range(20):
            ages = [rng.choice([-1.0, 0.0, *BOUNDS, 7.0, rng.random()]) for _ in range(size)]
            for age in ages:
                single.observe(max(0.0, age))
            at_once.observe_all(ages)
            assert shown(at_once) == shown(single)
