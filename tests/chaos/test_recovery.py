"""How the recovery is measured: from the end of a fault to the first sight of a change that was committed later."""

import pytest

from server.chaos.recovery import Arrivals, Heal
from server.clients.views import Change, Leg, Seen, Transport

pytestmark = pytest.mark.pure

CHANGES = [Change("one", version, version, "processing", 1, version, float(10 * version)) for version in (1, 2, 3)]


def note(found: Arrivals, web: int, transport: Transport, version: int, at: float, joined: float = 0.0) -> None:
    seen = Seen("one", version, version, "processing", 1, 0, at)
    found.note(Leg(transport, web, 0, joined), seen)


def arrivals() -> Arrivals:
    found = Arrivals(2)
    note(found, 0, "sse", 1, 10.5)
    note(found, 0, "sse", 2, 26.0, joined=22.0)
    note(found, 0, "websocket", 2, 25.0, joined=1.0)
    note(found, 1, "websocket", 2, 21.0, joined=15.0)
    note(found, 1, "sse", 3, 30.25, joined=30.1)
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
    note(found, 0, "poll", 1, 10.1)
    note(found, 0, "longpoll", 1, 10.1)
    assert found.after([Heal("web.stop", 5.0)], CHANGES) == {}
    assert found.lateness(CHANGES) == []


def test_lateness_is_that_of_who_was_there_before_the_change() -> None:
    assert arrivals().lateness(CHANGES) == [0.5, 5.0]  # nobody was, for the third
