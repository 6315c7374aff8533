"""The bytes of what many clients are told: made once, counted for each, and never missing."""

import pytest

from server.metrics import Metrics
from server.push.hub import Item, task_item
from server.push.turns import Copies, Turns
from tests.push.heard import change
from tests.push.test_turns import Loop

pytestmark = pytest.mark.pure


def test_made_once_and_counted_for_each() -> None:
    made: list[Item] = []

    def encoded(item: Item) -> bytes:
        made.append(item)
        return item.change.body

    loop, metrics = Loop(), Metrics()
    turns = Turns(loop, 20)
    copies = Copies(turns, encoded, metrics.sse.sent, metrics.send_seconds)
    items = [task_item(change("one", 1)), task_item(change("two", 1))]
    assert {copies.of(list(items)) for _ in range(250)} == {b"".join(item.change.body for item in items)}
    turns._flush([], loop.time())  # the end of a turn
    assert made == items
    assert metrics.sse.sent.value == 500
    (sent,) = metrics.send_seconds.collect()
    assert next(sample.value for sample in sent.samples if sample.name.endswith("_count")) == 500


def test_what_could_not_be_encoded_for_one_is_not_nothing_for_the_next() -> None:
    broken = True

    def encoded(item: Item) -> bytes:
        if broken:
            raise ValueError("not today")
        return item.change.body

    metrics = Metrics()
    copies = Copies(Turns(Loop(), 20), encoded, metrics.sse.sent, metrics.send_seconds)
    items = [task_item(change("one"))]
    with pytest.raises(ValueError, match="not today"):
        copies.of(items)
    broken = False
    assert copies.of(list(items)) == items[0].change.body
