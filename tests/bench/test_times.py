"""Percentiles by nearest rank, medians, and ratios between neighbours."""

import random

import pytest

from server.bench.times import median, paired_ratio, percentile, times

pytestmark = pytest.mark.pure


def test_percentiles_are_values_that_were_measured() -> None:
    seconds = [number / 1_000 for number in range(1, 1_001)]
    random.Random(3).shuffle(seconds)
    found = times(seconds)
    assert found is not None
    assert (found.count, found.p50_ms, found.p99_ms, found.p999_ms) == (1_000, 500.0, 990.0, 999.0)


def test_of_few_the_far_end_is_the_largest() -> None:
    found = times([0.001, 0.003, 0.002])
    assert found is not None
    assert (found.p50_ms, found.p99_ms, found.p999_ms) == (2.0, 3.0, 3.0)
    assert times([]) is None
    assert percentile([4.0], 0.0) == percentile([4.0], 1.0) == 4.0


def test_the_median() -> None:
    assert median([9, 1, 5]) == 5
    assert median([9, 1, 5, 6]) == 5.5
    with pytest.raises(ValueError, match="nothing"):
        median([])


def test_a_ratio_is_taken_within_rounds() -> None:
    # The machine was half as fast in the second round; of the medians the ratio would be 20/15.
    assert paired_ratio([10, 40, 20], [5, 20, 15]) == 2.0
    with pytest.raises(ValueError, match="argument"):
        paired_ratio([1, 2], [1])
