"""Durations in short. Pure."""

import math
from collections.abc import Sequence

import msgspec


class Times(msgspec.Struct):
    """Milliseconds."""

    count: int
    p50: float
    p99: float
    max: float


def times_of(seconds: Sequence[float]) -> Times:
    ordered = sorted(seconds)
    if not ordered:
        return Times(0, 0, 0, 0)
    at = [ordered[max(0, math.ceil(len(ordered) * share) - 1)] * 1000 for share in (0.5, 0.99, 1.0)]
    return Times(len(ordered), *(round(ms, 1) for ms in at))
