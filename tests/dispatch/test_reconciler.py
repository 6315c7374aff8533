"""Tasks past their deadline: what is found at the provider decides how they end."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from server.clock import SETTLING_SECONDS
from server.dispatch.reconciler import AWAY_TRIES_MAX, PARALLELISM
from server.tasks.ledger import Said
from server.tasks.state import Report
from tests.clocks import Hands
from tests.conftest import Connection
from tests.dispatch.reconciling import DONE, LONG_AGO, RESULT, World
from tests.provider import Memory, word
from tests.receiver import Receiver, Reply, Request, until
from tests.tasks.conftest import User

# what the provider knows, an undelivered callback, then status, code and what is told
PAST_THE_DEADLINE: dict[str, tuple[dict[str, Any], bytes | None, str, str | None, str]] = {
    "running": ({}, None, "failed", "timeout", "The generator did not finish in time"),
    "in a queue": ({"state": "CREATED"}, None, "failed", "timeout", "The generator did not finish in time"),
    "dead": (
        {"state": "FAILED", "dead": (503, b'{"error":"no capacity"}')},
        None,
        "failed",
        "generator_error",
        "The generator answered 503: no capacity",
    ),
    "dead and forgotten": (
        {"state": None, "gone": True, "dead": (500, b"")},
        None,
        "failed",
        "generator_error",
        "The generator answered 500",
    ),
    "never reached": (
        {"state": "FAILED", "dead": (0, b"")},
        None,
        "failed",
        "unreachable",
        "The generator could not be reached",
    ),
    "callback lost": (
        {"state": "DELIVERED", "at": LONG_AGO},
        None,
        "failed",
        "callback_lost",
        "The generator answered, but its answer did not arrive here",
    ),
    "callback dead": ({"state": "DELIVERED", "at": LONG_AGO}, word(200, DONE), "completed", None, RESULT),
    "callback dead, message gone": ({"state": None, "gone": True}, word(200, DONE), "completed", None, RESULT),
    "callback of a failure dead": (
        {"state": "FAILED", "at": LONG_AGO},
        word(418, b"teapot"),
        "failed",
        "generator_error",
        "The generator answered 418: teapot",
    ),
    "callback dead and hidden": (
        {"state": "DELIVERED", "at": LONG_AGO},
        b"REDACTED:0123",
        "failed",
        "callback_lost",
        "The generator answered, but its answer did not arrive here",
    ),
    "callback of an acceptance dead": (
        {"state": "DELIVERED", "at": LONG_AGO},
        word(202),
        "failed",
        "timeout",
        "The generator accepted the job and did not finish in time",
    ),
    "cancelled": (
        {"state": "CANCELED"},
        None,
        "failed",
        "message_cancelled",
        "The message to the generator was cancelled at the provider",
    ),
    "nowhere": (
        {"state": None, "gone": True},
        None,
        "failed",
        "message_lost",
        "The message to the generator is lost: the provider does not know it any more",
    ),
}


async def test_past_the_deadline(world: World, subtests: pytest.Subtests) -> None:
    applied = {"callback dead": 200, "callback dead, message gone": 200, "callback of a failure dead": 418}
    applied |= {"dead": 503, "dead and forgotten": 500, "never reached": 0, "callback of an acceptance dead": 202}
    for case, (about, letter, status, code, told) in PAST_THE_DEADLINE.items():
        with subtests.test(case):
            task_id, message_id = await world.begin(**about)
            if letter is not None:
                await world.letter(task_id, word(500, retried=0))  # of a delivery before: it decides nothing
                await world.letter(task_id, letter)
                await world.letter(task_id, word(500, retried=0))
            await world.overdue(task_id)
            assert await world.reconciler.step() == 1
            assert await world.task(task_id) == (status, code, told)
            assert world.published[-1].task_id == task_id
            assert await world.reconciler.step() == 0
            if about.get("state", "ACTIVE") in ("ACTIVE", "CREATED"):
                await cancelled(world, message_id)
            noted = "select kind, outcome, status from public.task_deliveries where task_id = $1"
            rows = [tuple(row) for row in await world.owner.fetch(noted, task_id)]
            assert rows == ([("lookup", "applied", applied[case])] if case in applied else [])


async def cancelled(world: World, message_id: str) -> None:
    async def told() -> bool:
        return message_id in world.memory.cancelled

    await until(told, "it is cancelled at the provider", 5)


async def test_a_letter_for_another_task_decides_nothing(world: World, memory: Memory) -> None:
    """Even where an API does not know the filter and shows all it has."""
    task_id, _ = await world.begin(state="DELIVERED", at=LONG_AGO)
    other, _ = await world.begin()
    await world.letter(other, word(200, DONE))
    dead_letters = memory._dead_letters
    memory._dead_letters = lambda query: dead_letters({})  # type: ignore[method-assign]
    await world.overdue(task_id)
    await world.reconciler.step()
    assert (await world.task(task_id))[1] == "callback_lost"


async def test_a_callback_that_may_still_come_is_waited_for(world: World) -> None:
    task_id, message_id = await world.begin(state="DELIVERED")
    await world.overdue(task_id)
    assert await world.reconciler.step() == 1
    assert (await world.task(task_id))[0] == "pending"
    row = await world.dispatch(task_id)
    assert (row["lookups"], row["held"]) == (1, None)
    assert 25 < row["pause"] <= 30
    assert await world.reconciler.step() == 0
    await world.due()
    assert await world.reconciler.step() == 1
    world.memory.messages[message_id].at -= 700
    await world.due()
    assert await world.reconciler.step() == 1
    assert (await world.task(task_id))[1] == "callback_lost"


async def test_a_job_that_was_accepted_and_never_reported(world: World) -> None:
    task_id, _ = await world.begin(state="DELIVERED")
    accepted = Said(kind="callback", jti="1", delivery=1, status=202)
    assert await world.store.report(task_id, Report(attempt=1, delivery=1), accepted) == "applied"
    await world.overdue(task_id)
    await world.reconciler.step()
    assert await world.task(task_id) == (
        "failed",
        "timeout",
        "The generator accepted the job and did not finish in time",
    )


async def test_a_job_that_waited_in_a_queue_to_its_end(world: World, owner: Connection) -> None:
    """Our own dispatcher says when a run begins; until then it has a day."""
    task_id, message_id = await world.begin(state="CREATED")
    await owner.execute("update image_generations set began_at = null where task_id = $1", task_id)
    await world.overdue(task_id)
    await world.reconciler.step()
    assert await world.task(task_id) == ("failed", "not_started", "Nobody began with it in time")
    await cancelled(world, message_id)


async def test_a_message_that_never_left(world: World, user_task: str) -> None:
    await world.overdue(user_task)
    await world.reconciler.step()
    assert (await world.task(user_task))[1] == "not_started"
    assert world.memory.asked == []


@pytest.fixture
async def user_task(world: World) -> str:
    user = User()
    return (await world.store.create(user.claims, user.id, "a boat", b"{}")).task_id


async def test_nobody_is_looked_up_as_late_right_after_a_step_of_the_clock(world: World) -> None:
    task_id, _ = await world.begin()
    hands = Hands()
    world.reconciler._clock = hands.clock()
    await world.overdue(task_id)
    hands.go(0.1, 3_600)
    for _ in range(2):  # what is pending follows the step in a moment
        assert await world.reconciler.step() == 0
    hands.go(SETTLING_SECONDS)
    assert await world.reconciler.step() == 1
    assert (await world.task(task_id))[0] == "failed"


async def test_a_generator_that_we_no_longer_know(world: World, owner: Connection) -> None:
    task_id, _ = await world.begin(state="FAILED", dead=(503, b"secret"))
    await owner.execute("update image_generations set generator = 'gone' where task_id = $1", task_id)
    await world.overdue(task_id)
    await world.reconciler.step()
    status, code, error = await world.task(task_id)
    assert (status, code) == ("failed", "generator_error")
    assert "secret" not in str(error)


STRANGE = {
    "broken": Reply(500),
    "token": Reply(401, b'{"error":"unauthorized"}'),
    "proxy": Reply(200, b"<html>"),
    "empty": Reply(200, b"{}"),
    "no such API": Reply(404, b'{"error":"not found"}'),
}


async def test_a_provider_that_cannot_be_asked(world: World, subtests: pytest.Subtests) -> None:
    """Tried a few times within two minutes; then the task ends, and it is said why."""
    for name, reply in STRANGE.items():
        with subtests.test(name):
            task_id, _ = await world.begin()
            await world.overdue(task_id)
            world.memory.reply = reply
            pauses = []
            for n in range(1, AWAY_TRIES_MAX + 1):
                asked = len(world.memory.asked)
                world.reconciler._away_until = 0.0  # time goes by
                assert await world.reconciler.step() == 1
                assert len(world.memory.asked) > asked
                row = await world.dispatch(task_id)
                if n < AWAY_TRIES_MAX:
                    assert (await world.task(task_id))[0] == "pending"
                    assert (row["lookups_failed"], row["held"]) == (n, None)
                    pauses.append(row["pause"])
                await world.due()
            assert pauses == pytest.approx([5, 10, 20, 40], abs=1)
            status, code, error = await world.task(task_id)
            assert (status, code) == ("failed", "timeout")
            assert str(error).endswith("the provider could not be asked about it")


async def test_failures_are_counted_anew_after_an_answer(world: World) -> None:
    task_id, _ = await world.begin(state="DELIVERED")
    await world.overdue(task_id)
    world.memory.reply = Reply(503)
    await world.reconciler.step()
    world.memory.reply = None
    await world.due()
    await world.reconciler.step()
    assert (await world.dispatch(task_id))["lookups_failed"] == 0


async def test_a_provider_that_hangs_is_not_waited_for_by_each(
    world: World, api: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.dispatch.lookup.LOOKUP_SECONDS_MAX", 0.2)
    ids = [(await world.begin())[0] for _ in range(40)]
    await world.overdue(*ids)
    hung = asyncio.Event()

    async def silent(_: Request) -> Reply:
        await hung.wait()
        return Reply(500)

    api.fallback = silent
    with capture_logs() as lines:
        async with asyncio.timeout(3):
            assert await world.reconciler.step() == 40
    hung.set()
    # A line for each that was asked about; the others are of no interest in an outage.
    warned = [line for line in lines if line["event"] == "lookup_failed" and line["log_level"] == "warning"]
    assert len(warned) == len(api.seen)
    assert PARALLELISM <= len(api.seen) < 2 * PARALLELISM
    failed = await world.owner.fetchval("select count(*) from taskbeam.dispatches where lookups_failed = 1")
    assert failed == 40


async def test_a_rate_limit_is_respected(world: World) -> None:
    first, _ = await world.begin()
    await world.overdue(first)
    world.memory.reply = Reply(429, b"{}", {"Burst-RateLimit-Limit": "10", "Burst-RateLimit-Reset": "20"})
    await world.reconciler.step()
    asked = len(world.memory.asked)
    assert asked == 1
    world.memory.reply = None
    others = [(await world.begin())[0] for _ in range(5)]
    await world.overdue(*others)
    await world.due()
    await world.reconciler.step()
    assert len(world.memory.asked) == asked, "not before the time it told"
    world.reconciler._away_until = 0.0
    await world.due()
    await world.reconciler.step()
    assert {(await world.task(task_id))[1] for task_id in (first, *others)} == {"timeout"}
