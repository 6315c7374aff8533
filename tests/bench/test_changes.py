"""What the bench publishes is what the product's own hub takes: in its form, each joining the one before."""

import time

import pytest

from server.bench.changes import STAMP, Changes
from server.push import hub
from server.push.hub import Subscription
from server.push.publisher import decode, encode
from server.tally import Tally

pytestmark = pytest.mark.pure

TASKS = [("one", "somebody"), ("two", "somebody")]


def followed(changes: Changes, topic: str, after: int) -> list[hub.Item]:
    subscription = Subscription(topic, after, lambda: None, Tally())
    taken = []
    for change in changes.take(6):
        for name, data in encode(change):
            if name == topic:
                subscription.offer(decode(name, data))
        taken += subscription.take()
    assert not subscription.gap
    return taken


def test_changes_of_one_task_join_what_its_log_ends_with() -> None:
    items = followed(Changes(TASKS), hub.task_topic("two"), after=1)
    assert [item.position for item in items] == [2, 3, 4]
    assert all(item.change.is_status for item in items)


def test_changes_of_a_user_go_on_from_his_number() -> None:
    items = followed(Changes(TASKS, seq=20), hub.user_topic("somebody"), after=20)
    assert [item.position for item in items] == [21, 22, 23, 24, 25, 26]
    assert [item.change.task_id for item in items] == ["one", "two"] * 3


def test_progress_of_several_tasks_in_turn_is_progress_and_none_replaces_another() -> None:
    changes = Changes(TASKS, seq=20)
    conflated = Tally()
    subscription = Subscription(hub.user_topic("somebody"), 20, lambda: None, conflated)
    for change in [*changes.take(2), *changes.take(6, progress=True), *changes.take(1)]:
        subscription.offer(decode(*encode(change)[1]))
    taken = subscription.take()
    assert [item.position for item in taken] == list(range(21, 30))
    assert [item.is_status for item in taken] == [True] * 2 + [False] * 6 + [True]
    assert [item.change.status_version for item in taken] == [2, 2, 2, 2, 2, 2, 2, 2, 6]
    assert conflated.value == 0


def test_each_carries_when_it_was_sent() -> None:
    before = time.monotonic_ns()
    (change,) = Changes(TASKS).take(1)
    found = STAMP.search(change.body)
    assert found is not None
    assert before <= int(found[1]) <= time.monotonic_ns()
