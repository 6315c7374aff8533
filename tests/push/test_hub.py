"""Holds followers to what they promise, against a bus that drops, doubles and reorders as it likes (world.py)."""

from random import Random
from typing import Any, cast
from unittest.mock import patch

import pytest

from server.auth import LOCAL
from server.push import follow, hub
from server.push.hub import Hub, Subscription
from server.tally import Tally
from server.tasks.reading import HISTORY_CHUNK
from server.tasks.snapshot import TaskChange
from server.tasks.state import State
from tests.push.world import USER_TOPIC, Client, Step, World, change_of, finish

pytestmark = pytest.mark.pure


SCENARIOS = 600
TASKS = ("a", "b", "c")
KINDS = ("progress", "progress", "progress", "complete", "fail", "retry", "retry")


def happening(rng: Random, tasks: tuple[str, ...]) -> Step:
    """A change of a task, or something that befalls the bus."""
    return rng.choice(
        [
            ("change", rng.choice(tasks), rng.choice(KINDS)),
            ("change", rng.choice(tasks), rng.choice(KINDS)),
            ("bus", rng.randrange(20), rng.random() < 0.3),
            ("bus", 0, False),
            ("lose", rng.randrange(20)),
            ("tick",) if rng.random() < 0.2 else ("bus", 0, False),
        ]
    )


def scenario(rng: Random, tasks: tuple[str, ...]) -> list[Step]:
    """What had happened, the join (slow: more happens while it reads), and what happens then."""

    def some(low: int, high: int) -> list[Step]:
        return [happening(rng, tasks) for _ in range(rng.randint(low, high))]

    def later() -> Step:
        chance = rng.random()
        if chance < 0.15:
            return "take", some(0, 12)
        return ("delete", rng.choice(tasks)) if chance < 0.2 else happening(rng, tasks)

    before: list[Step] = [("change", rng.choice(tasks), rng.choice(KINDS)) for _ in range(rng.randint(1, 14))]
    if rng.random() < 0.4:
        before.append(("delete", rng.choice(tasks)))
    if rng.random() < 0.3:
        before.append(("trim", rng.choice(tasks)))
    cursor = rng.choice([None, 0, rng.randrange(12)])
    return [*before, ("join", cursor, some(0, 10)), *(later() for _ in range(rng.randint(0, 40)))]


def play(steps: list[Step], *, many: bool) -> None:
    """One scenario to its end, with bounds so low that a short history exceeds them."""
    with patch.object(hub, "INBOX_MAX", 4), patch.object(follow, "HISTORY_CHUNK", 3):
        world, client, gone = World(chunk=3), None, set[str]()
        for step in steps:
            match step:
                case ("join", cursor, meanwhile):
                    gone = world.gone & world.states.keys()
                    world.untold.clear()  # ticks have found them
                    client = join(world, cursor, meanwhile, many)
                case ("take", meanwhile) if client:
                    world.meanwhile = meanwhile
                    client.take()
                case ("delete", _) if not many and client is None:
                    continue
                case _:
                    world.do(step)
            assert all(len(s.inbox or ()) <= hub.INBOX_MAX for s in subscriptions(world)), "bounded"
        if client:
            client.rest()
            client.hold_to_the_promise()
            assert client.hears_of((world.gone & world.states.keys()) - gone)


def subscriptions(world: World) -> list[Subscription]:
    return [s for topic in world.hub._topics for s in world.hub._followers(topic)]


def join(world: World, cursor: int | None, meanwhile: list[Step], many: bool) -> Client | None:
    world.meanwhile = meanwhile
    if many:
        cursor = None if cursor is None else min(cursor, world.seq)
        follower = finish(world.following.all(LOCAL, cursor, world.wake))
    elif "a" in world.states:
        cursor = min(cursor or 0, world.states["a"].version)
        follower = finish(world.following.task(LOCAL, "a", cursor, world.wake))
    else:
        return None
    assert follower is not None
    return Client(world, follower, cursor or 0, by_seq=many)


def breaks(steps: list[Step], *, many: bool) -> bool:
    try:
        play(steps, many=many)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("many", [False, True], ids=["one task", "all tasks of a user"])
def test_whatever_the_bus_does(many: bool) -> None:
    for seed in range(SCENARIOS):
        steps = scenario(Random(seed), TASKS if many else ("a",))
        if breaks(steps, many=many):
            for at in reversed(range(len(steps))):  # show no more than it takes
                fewer = steps[:at] + steps[at + 1 :]
                steps = fewer if breaks(fewer, many=many) else steps
            print(f"scenario {seed}, reduced:", *steps, sep="\n  ")  # noqa: T201
            play(steps, many=many)


def follow_all(world: World, cursor: int | None) -> Client:
    client = join(world, cursor, [], many=True)
    assert client is not None
    return client


# Without any tick: that only mends what was lost.


def test_a_history_longer_than_any_bound_arrives_whole() -> None:
    world = World()
    for number in range(2 * max(hub.INBOX_MAX, HISTORY_CHUNK) + 7):
        world.do(("change", f"t{number}", "-"))
    client = follow_all(world, 1)
    client.settle()
    assert [change.seq for change in client.told] == list(range(2, world.log[-1].seq + 1))


def test_what_follows_a_deleted_task_arrives() -> None:
    world = World()
    for task_id in ("a", "b", "c"):
        world.do(("change", task_id, "-"))
    world.do(("delete", "b"))
    client = follow_all(world, 1)
    client.settle()
    assert [change.task_id for change in client.told] == ["c"]


@pytest.mark.parametrize("many", [False, True], ids=["one task", "all tasks of a user"])
@pytest.mark.parametrize("lost", [False, True], ids=["delivered", "the first is lost"])
def test_what_happens_during_the_join_arrives(many: bool, lost: bool) -> None:
    world = World()
    world.do(("change", "a", "-"))
    world.under_way.clear()
    brought: list[Step] = [("bus", 0, False)] * 4
    meanwhile: list[Step] = [("change", "a", "progress"), ("change", "a", "complete")]
    client = join(world, 1, [*meanwhile, *([("lose", 0)] * 2 if lost else []), *brought], many)
    assert client is not None
    client.settle()
    assert [change.status for change in client.told] == ["processing", "completed"]


# The parts, one by one


def changes(*states: tuple[int, int, str]) -> list[TaskChange]:
    return [
        change_of("a", State(status=cast(Any, status), version=version, status_version=status_version), version)
        for version, status_version, status in states
    ]


PENDING, BEGUN, FAILED, RETRIED, DONE = changes(
    (1, 1, "pending"), (2, 2, "processing"), (5, 5, "failed"), (6, 6, "pending"), (9, 9, "completed")
)
PROGRESS = {v: changes((v, 2, "processing"))[0] for v in (3, 4, 5)}


def test_the_log_does_not_tell_a_failure_that_was_retried() -> None:
    def told(changes: list[TaskChange], after: int) -> list[tuple[int, int, TaskChange]]:
        return [(item.position, item.since, item.change) for item in hub.task_items(changes, after)]

    assert told([BEGUN, FAILED, RETRIED, DONE], 1) == [(2, 1, BEGUN), (6, 2, RETRIED), (9, 6, DONE)]
    assert told([FAILED, RETRIED], 4) == [(6, 4, RETRIED)]
    assert told([BEGUN, FAILED], 1) == [(2, 1, BEGUN), (5, 2, FAILED)]
    assert hub.task_items([], 4) == []


class Heard:
    """A subscription to a task from version 2, and how often it woke."""

    def __init__(self) -> None:
        self.wakes = 0
        self.subscription = Subscription(hub.task_topic("a"), 2, self.wake, Tally())

    def wake(self) -> None:
        self.wakes += 1

    def offer(self, *offered: TaskChange) -> "Heard":
        for change in offered:
            self.subscription.offer(hub.task_item(change))
        return self

    def took(self) -> list[int]:
        return [item.position for item in self.subscription.take()]


def test_the_newest_progress_wins() -> None:
    heard = Heard().offer(PROGRESS[3], PROGRESS[4], PROGRESS[5])
    assert heard.took() == [5]
    assert heard.took() == []


def test_progress_gives_way_to_the_end_and_an_end_to_nothing() -> None:
    assert Heard().offer(PROGRESS[3], PROGRESS[4], FAILED, RETRIED).took() == [5, 6]


def test_a_lost_progress_is_no_gap_and_a_lost_status_is_one() -> None:
    heard = Heard().offer(PROGRESS[5])
    assert not heard.subscription.gap
    assert heard.offer(DONE).subscription.gap
    assert heard.took() == [5]


def test_old_news_is_dropped_in_silence() -> None:
    heard = Heard().offer(PENDING, BEGUN)
    assert (heard.took(), heard.subscription.gap, heard.wakes) == ([], False, 0)


def test_of_a_task_that_is_withheld_nothing_comes_any_more_and_no_gap_is_made() -> None:
    subscription = Subscription(USER_TOPIC, 0, lambda: None, Tally())
    one, other = State(), State()
    for seq, task in enumerate(("a", "b"), 1):
        subscription.offer(hub.user_item(change_of(task, one, seq)))
    assert subscription.withhold("a")
    assert not subscription.withhold("a")
    for seq, task in enumerate(("a", "b", "a"), 3):
        subscription.offer(hub.user_item(change_of(task, other, seq)))
    assert [(item.position, item.change.task_id) for item in subscription.take()] == [(2, "b"), (4, "b")]
    assert (subscription.received, subscription.gap, subscription.deleted) == (5, False, ("a",))


def test_a_gap_wakes_once() -> None:
    heard = Heard().offer(DONE, RETRIED)
    assert (heard.took(), heard.subscription.gap, heard.wakes) == ([], True, 1)


def test_an_inbox_that_nobody_empties_stays_bounded_and_says_that_something_is_missing() -> None:
    subscription = Subscription(USER_TOPIC, 0, lambda: None, Tally())
    for seq in range(1, hub.INBOX_MAX + 50):
        subscription.offer(hub.user_item(change_of(f"t{seq}", State(), seq)))
        assert len(subscription.inbox or ()) <= hub.INBOX_MAX
    assert subscription.gap
    reached = [item.position for item in subscription.take()]
    assert reached == list(range(1, len(reached) + 1)), "what is left has no hole"
    assert subscription.received == len(reached), "and the log is read from its end"


class Bus:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.hub = Hub(
            lambda topic: self.said.append(f"+{topic}"), lambda topic: self.said.append(f"-{topic}"), Tally()
        )


def test_the_bus_hears_of_the_first_and_the_last_follower_of_a_topic() -> None:
    bus = Bus()
    first, second, other = (bus.hub.subscribe(topic, 0, lambda: None) for topic in ("t", "t", "u"))
    assert (bus.said, len(bus.hub)) == (["+t", "+u"], 3)
    for subscription in (first, first, other, second, second):
        bus.hub.unsubscribe(subscription)
    assert (bus.said, len(bus.hub)) == (["+t", "+u", "-u", "-t"], 0)
    bus.hub.subscribe("t", 0, lambda: None)
    assert bus.said[-1] == "+t"


def test_only_followers_of_the_topic_hear_of_it() -> None:
    followers = Bus().hub
    mine, gone, foreign = (followers.subscribe(topic, 2, lambda: None) for topic in ("t", "t", "u"))
    followers.unsubscribe(gone)
    followers.deliver("t", hub.task_item(PROGRESS[3]))
    followers.deliver("nobody", hub.task_item(PROGRESS[3]))
    assert [len(s.inbox or ()) for s in (mine, gone, foreign)] == [1, 0, 0]


def test_each_change_that_a_newer_one_replaces_is_told_of() -> None:
    conflated = Tally()
    followers = Hub(lambda _: None, lambda _: None, conflated)
    slow, quick = (followers.subscribe("t", 2, lambda: None) for _ in range(2))
    for change in (PROGRESS[3], PROGRESS[4], FAILED, RETRIED):
        followers.deliver("t", hub.task_item(change))
        quick.take()
    assert [item.position for item in slow.take()] == [5, 6]
    assert conflated.value == 2


def test_behind_is_the_one_who_has_least() -> None:
    followers = Bus().hub
    for after in (7, 3, 5):
        followers.subscribe("t", after, lambda: None)
    assert [followers.behind("t", position) for position in (8, 4, 3, 1)] == [3, 3, None, None]
    assert followers.behind("nobody", 9) is None


def test_a_nudge_makes_them_look_and_closing_makes_them_go() -> None:
    followers, woken = Bus().hub, list[str]()
    old = followers.subscribe("t", 0, lambda: woken.append("old"))
    followers.nudge("nobody")
    assert not old.gap
    followers.nudge("t")
    assert (old.gap, woken) == (True, ["old"])
    assert not old.closing
    followers.close()
    late = followers.subscribe("t", 0, lambda: woken.append("late"))
    assert (old.closing, late.closing, woken) == (True, True, ["old", "old", "late"])
