"""The schedule of faults: repeatable, complete, and never so that everything is down for ever."""

from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from server.chaos.schedule import DISPATCHER_PLACES, KINDS, LINKS, WEB_PLACES, Fault, plan

pytestmark = pytest.mark.pure

SEEDS = range(5)


def test_the_seed_gives_the_schedule() -> None:
    assert plan(7, 300, 180) == plan(7, 300, 180)
    assert plan(7, 300, 180) != plan(8, 300, 180)


@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_as_asked_for_in_order_and_in_time(seed: int) -> None:
    faults = plan(seed, 200, 120)
    assert len(faults) == 200
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert 0 <= faults[0].at <= faults[-2].at <= 120
    assert (faults[-1].kind, faults[-1].seconds) == ("redis.swallow", 4.0)
    for fault in faults[:-1]:
        kind = KINDS[fault.kind]
        assert fault.target in kind.targets
        if not fault.place:
            assert kind.seconds_min <= fault.seconds <= kind.seconds_max


def test_a_long_run_has_every_kind_every_link_and_every_place() -> None:
    faults = plan(1, 2_000, 1_200)
    counts = Counter(fault.kind for fault in faults)
    assert counts.keys() == KINDS.keys()
    assert min(counts.values()) >= 5
    assert {fault.target for fault in faults if fault.kind.startswith("link.")} == set(LINKS)
    assert {fault.place for fault in faults} - {""} == {*WEB_PLACES, *DISPATCHER_PLACES}


@pytest.mark.parametrize("seed", SEEDS)
def test_one_part_is_broken_in_one_way_at_a_time_and_one_process_is_left(seed: int) -> None:
    ends: dict[str, float] = defaultdict(float)
    for fault in plan(seed, 400, 60):
        held = fault.target.rstrip("01")
        if fault.kind == "clients.cut":
            continue
        assert fault.at >= ends[held if held in ("web", "dispatcher") else fault.target], fault
        ends[held if held in ("web", "dispatcher") else fault.target] = fault.at + fault.seconds


@pytest.mark.parametrize("seed", SEEDS)
def test_postgres_has_peace_in_between(seed: int) -> None:
    faults = [fault for fault in plan(seed, 2_000, 1_200) if fault.target == "postgres"]
    assert len(faults) > 50
    for before, after in pairwise(faults):
        assert after.at - (before.at + before.seconds) >= 1.99


def test_links_that_are_broken_together_are_left_alone_meanwhile() -> None:
    faults = plan(3, 2_000, 600)
    together = [fault for fault in faults if fault.kind in ("redis.slow", "postgres.stall")]
    assert together

    def overlap(one: Fault, two: Fault) -> bool:
        return one.at < two.at + two.seconds and two.at < one.at + one.seconds

    for all_of in together:
        for fault in faults:
            if fault.target.endswith(f"-{all_of.target}"):
                assert not overlap(all_of, fault), (all_of, fault)
