"""How the recovery is measured: from the end of a fault to the first sight of a change that was committed later."""

import pytest

from server.chaos.recovery import Arrivals, Heal
from server.chaos.views import Change

pytestmark = pytest.mark.pure

CHANGES = [Change("one", version, version, "processing", 1, version, float(10 * version)) for version in (1, 2, 3)]


def arrivals() -> Arrivals:
    found = Arrivals(2)
    found.note(0, "sse", "one", 1, 10.5)
    found.note(0, "sse", "one", 2, 26.0)
    found.note(0, "websocket", "one", 2, 25.0)
    found.note(1, "websocket", "one", 2, 21.0)
    found.note(1, "sse", "one", 3, 30.25)
    return found


def test_from_the_end_of_the_fault_to_a_later_change() -> None:
    heals = [Heal("redis.kill", 5.0), Heal("redis.kill", 12.0), Heal("link.cut", 21.5)]
    assert arrivals().after(heals, CHANGES) == {"redis.kill": [5.5, 9.0], "link.cut": [8.75]}


def test_a_change_from_before_does_not_count_however_late_it_is_seen() -> None:
    assert arrivals().after([Heal("web.kill", 20.0, web=0)], CHANGES) == {}


def test_only_the_process_that_it_was_about_counts() -> None:
    assert arrivals().after([Heal("web.stop", 12.0, web=0)], CHANGES) == {"web.stop": [13.0]}
    assert arrivals().after([Heal("web.stop", 12.0, web=1)], CHANGES) == {"web.stop": [9.0]}


def test_a_poll_is_as_late_as_its_client_asks() -> None:
    found = Arrivals(1)
    found.note(0, "poll", "one", 1, 10.1)
    found.note(0, "longpoll", "one", 1, 10.1)
    assert found.after([Heal("web.stop", 5.0)], CHANGES) == {}
    assert found.lateness(CHANGES) == []


def test_lateness_is_that_of_the_first_client() -> None:
    assert arrivals().lateness(CHANGES) == [0.5, 1.0, 0.25]
