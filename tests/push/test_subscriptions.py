"""What is asked of Redis, against a Redis that answers in order and late."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.push.subscriptions import CHANNELS_MAX, Subscriptions

pytestmark = pytest.mark.pure

TOPICS = ("task:a", "task:b", "user:c")


class Server:
    """Commands and answers are each on their way for a while, in order; what was lost with a connection is gone."""

    def __init__(self) -> None:
        self.subscribed: set[bytes] = set()
        self.commands: deque[tuple[bytes, bytes]] = deque()
        self.answers: deque[tuple[bytes, bytes]] = deque()

    def send(self, commands: list[tuple[bytes, ...]]) -> None:
        self.commands.extend((name, channel) for name, *channels in commands for channel in channels)

    def work(self) -> None:
        if self.commands:
            name, channel = self.commands.popleft()
            (self.subscribed.add if name == b"SUBSCRIBE" else self.subscribed.discard)(channel)
            self.answers.append((name, channel))

    def answer(self, to: Subscriptions) -> None:
        if self.answers:
            name, channel = self.answers.popleft()
            if name == b"SUBSCRIBE":
                to.confirm(channel)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["want", "drop"]), st.sampled_from(TOPICS)),
        st.tuples(st.sampled_from(["turn", "work", "answer", "settle", "again"]), st.just("")),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_what_counts_as_confirmed_is_heard(steps: list[tuple[str, str]]) -> None:
    ours, server, wanted = Subscriptions("p:"), Server(), set[str]()
    for step, topic in [*steps, ("settle", "")]:
        match step:
            case "want":
                ours.want(topic)
                wanted.add(topic)
            case "drop":
                ours.drop(topic)
                wanted.discard(topic)
            case "turn":
                server.send(ours.commands())
            case "work":
                server.work()
            case "answer":
                server.answer(ours)
            case "settle":
                server.send(ours.commands())
                while server.commands or server.answers:
                    server.work()
                    server.answer(ours)
            case "again":
                server = Server()
                ours.start_over()
        for each in TOPICS:
            channel = f"p:{each}".encode()
            if ours.is_confirmed(each):
                assert channel in server.subscribed, "confirmed, and Redis does not know it"
                assert (b"UNSUBSCRIBE", channel) not in server.commands
            assert ours.topics.get(channel) in (None, each)
    assert server.subscribed == {f"p:{topic}".encode() for topic in wanted} == set(ours.topics)
    assert {topic for topic in TOPICS if ours.is_confirmed(topic)} == wanted


def test_what_comes_to_nothing_is_not_said() -> None:
    ours = Subscriptions("")
    ours.want("task:a")
    ours.drop("task:a")
    assert ours.commands() == []
    ours.want("task:a")
    assert ours.commands() == [(b"SUBSCRIBE", b"task:a")]
    assert ours.confirm(b"task:a") == "task:a"
    ours.drop("task:a")
    ours.want("task:a")
    assert ours.commands() == []
    assert ours.is_confirmed("task:a")
    ours.drop("task:a")
    assert ours.commands() == [(b"UNSUBSCRIBE", b"task:a")]
    assert not ours.is_confirmed("task:a")


def test_a_late_answer_does_not_count_for_a_later_request() -> None:
    ours = Subscriptions("")
    for say in (ours.want, ours.drop, ours.want):
        say("task:a")
        ours.commands()
    assert ours.confirm(b"task:a") is None
    assert not ours.is_confirmed("task:a")
    assert ours.confirm(b"task:a") == "task:a"
    assert ours.is_confirmed("task:a")
    assert ours.confirm(b"task:a") is None, "said twice, asked once"
    assert ours.confirm(b"task:z") is None


def test_a_command_has_a_bounded_number_of_channels() -> None:
    ours = Subscriptions("")
    for number in range(2 * CHANNELS_MAX + 1):
        ours.want(f"task:{number}")
    assert [len(command) - 1 for command in ours.commands()] == [CHANNELS_MAX, CHANNELS_MAX, 1]
