"""Percentiles and medians of what was measured. Pure."""

import math
from collections.abc import Sequence

import msgspec


class Times(msgspec.Struct, frozen=True):
    """Milliseconds, by nearest rank; `count` is of how many. A p99.9 of fewer than a thousand is their maximum."""

    count: int
    p50_ms: float
    p99_ms: float
    p999_ms: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that at least `share` (0 to 1) of them do not exceed. `ordered` rises."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def times(seconds: Sequence[float]) -> Times | None:
    """Of durations in seconds; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    shares = (0.5, 0.99, 0.999)
    p50, p99, p999 = (round(percentile(ordered, share) * 1_000, 3) for share in shares)
    return Times(len(ordered), p50, p99, p999)


def median(values: Sequence[float]) -> float:
    """The middle one, or half way between the two. Raises ValueError of nothing."""
    if not values:
        raise ValueError("a median of nothing")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times theirs ours is: the median over rounds that were run side by side, as the machine changes between.

    Raises ValueError where there are not as many of each.
    """
    return median([mine / other for mine, other in zip(ours, theirs, strict=True)])
