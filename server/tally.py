"""What is counted on the way to the sockets, for each event: plain numbers of the event loop, without a lock.

They are handed to Prometheus when somebody scrapes, so what is shown is always exact.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally:
    """A counter: `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        self.value += 1


class Tallies(Collector):
    """One counter for each value of one label, or with no label a single one under ""."""

    def __init__(self, name: str, documentation: str, tallies: Mapping[str, Tally], label: str | None = None) -> None:
        self._name = name
        self._documentation = documentation
        self._tallies = tallies
        self._label = label

    def collect(self) -> Iterator[Metric]:
        labels = None if self._label is None else [self._label]
        family = CounterMetricFamily(self._name, self._documentation, labels=labels)
        for value, tally in self._tallies.items():
            family.add_metric([] if labels is None else [value], tally.value)
        yield family


class Latencies(Collector):
    """A histogram of seconds, with the upper bounds of its buckets, rising."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """So many events took so long each."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._sum += seconds * times

    def observe_all(self, ages: list[float]) -> None:
        """Many events, how long each took; below nought counts as nought. Sorts the list."""
        ages.sort()
        if ages and ages[0] < 0.0:
            ages = [max(0.0, age) for age in ages]
        reached, total = 0, len(ages)
        for bucket, bound in enumerate(self._bounds):
            if reached == total:
                break
            before, reached = reached, bisect_right(ages, bound, reached)
            self._counts[bucket] += reached - before
        self._counts[-1] += total - reached
        self._sum += sum(ages)

    def collect(self) -> Iterator[Metric]:
        reached, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            reached += count
            buckets.append((bound, float(reached)))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)
