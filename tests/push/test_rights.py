"""Until when a client may follow: warned in time, ended in time, and not for want of an answer."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from server.auth import LOCAL, Caller
from server.errors import AccessTokenExpired, SessionEnded
from server.metrics import Metrics
from server.push.follow import Follower
from server.push.rights import TURNS, WARNING_SECONDS, Followed, Right, Rights
from server.tasks.access import Access, Standing, Whose
from tests.push.world import World, finish

pytestmark = pytest.mark.pure

USER = "00000000-0000-4000-8000-00000000000a"
SESSION = "00000000-0000-4000-8000-00000000000b"
END = 4_000_000_000.0


def caller(expires_at: float = END, session_id: object = SESSION) -> Caller:
    claims = {"sub": USER, "exp": expires_at, "session_id": session_id}
    return Caller(USER, msgspec.json.encode(claims).decode(), expires_at)


class Answers:
    """In place of Postgres."""

    def __init__(self) -> None:
        self.user: Standing = "known"
        self.unseen: set[str] = set()
        self.away: Exception | None = None
        self.asked: list[Whose] = []

    async def standing(self, whose: Whose) -> Standing:
        self.asked.append(whose)
        if self.away is not None:
            raise self.away
        return self.user

    async def sees(self, claims: str, task_id: str) -> bool:
        return task_id not in self.unseen


class Follows:
    def __init__(self, *named: str) -> None:
        self.named = named
        self.revoked: list[str] = []

    def revoke(self, task_id: str) -> bool:
        new = task_id not in self.revoked
        if new:
            self.revoked.append(task_id)
        return new


class Here:
    def __init__(self) -> None:
        self.answers = Answers()
        self.metrics = Metrics()
        self.rights = Rights(cast(Access, self.answers), self.metrics)
        self.woken: list[Right] = []

    def enter(self, expires_at: float = END, *followers: Followed) -> Right:
        right = self.rights.enter(caller(expires_at), followers, lambda: self.woken.append(cast(Right, right)))
        assert right is not None
        return right

    async def minute(self) -> None:
        for _ in range(TURNS):
            await self.rights.check()

    def counted(self, reason: str) -> Any:
        return self.metrics.registry.get_sample_value("taskbeam_access_ended_total", {"reason": reason})


@pytest.fixture
def here() -> Here:
    return Here()


def test_warned_once_and_ended_at_the_end(here: Here) -> None:
    right = here.enter()
    here.rights.look(END - WARNING_SECONDS - 1)
    assert (here.woken, right.take_warning()) == ([], None)
    here.rights.look(END - WARNING_SECONDS)
    assert (here.woken, right.take_warning(), right.take_warning(), right.problem) == ([right], END, None, None)
    here.rights.look(END - 0.5)
    assert here.woken == [right]
    here.rights.look(END + 0.5)
    assert here.woken == [right, right]
    assert isinstance(right.problem, AccessTokenExpired)
    here.rights.look(END + 100)
    assert here.woken == [right, right]
    assert here.counted("expired") == 1


def test_where_less_is_left_it_is_warned_at_once(here: Here) -> None:
    right = here.enter()
    here.rights.look(END - 3)
    assert (right.take_warning(), right.problem) == (END, None)


def test_a_clock_that_jumps_ends_it_too(here: Here) -> None:
    right = here.enter()
    here.rights.look(END + 10_000)
    assert right.problem is not None


def test_renewed_it_goes_on(here: Here) -> None:
    right = here.enter()
    here.rights.look(END - 10)
    here.rights.renew(right, caller(END + 1000))
    here.rights.look(END + 10)
    assert (right.take_warning(), right.problem) == (None, None)
    here.rights.look(END + 1000)
    assert right.problem is not None
    here.rights.renew(right, caller(END + 9000))
    assert right.problem is not None, "what has ended has ended"


async def test_who_has_left_is_forgotten(here: Here) -> None:
    for expires_at in (END, END + 7, END + 10_000):
        right = here.enter(expires_at, Follows("t"))
        right.leave()
        right.leave()
    assert not here.rights._due
    assert not any(here.rights._slots)
    await here.minute()
    assert not here.answers.asked


def test_the_local_user_costs_nothing(here: Here) -> None:
    assert here.rights.enter(LOCAL, (), lambda: None) is None


async def test_each_is_looked_at_once_a_minute_and_never_all_at_once(here: Here) -> None:
    for _ in range(2_000):
        here.enter()
    sizes = []
    for _ in range(TURNS):
        before = len(here.answers.asked)
        await here.rights.check()
        sizes.append(len(here.answers.asked) - before)
    assert sum(sizes) == 2_000
    assert max(sizes) <= 2_000 / TURNS + 1


@pytest.mark.parametrize("standing", ["gone", "signed_out"])
async def test_whose_session_has_ended(here: Here, standing: Standing) -> None:
    follower = Follows("t")
    right = here.enter(END, follower)
    here.answers.user = standing
    await here.minute()
    assert isinstance(right.problem, SessionEnded)
    assert (here.woken, follower.revoked, here.counted("session_ended")) == ([right], [], 1)
    with pytest.raises(SessionEnded):
        await here.rights.require(caller())


async def test_a_user_whom_nobody_has_entered_yet_stays_until_he_was_and_is_no_more(here: Here) -> None:
    right = here.enter()
    standings: tuple[Standing, ...] = ("unknown", None, "known", None)
    for standing in standings:
        here.answers.user = standing
        await here.minute()
        await here.rights.require(caller())
        assert right.problem is None
    here.answers.user = "unknown"
    await here.minute()
    assert isinstance(right.problem, SessionEnded)


async def test_a_task_that_is_not_shown_any_more(here: Here) -> None:
    one, many = Follows("t"), Follows("a", "t")
    right = here.enter(END, one, many)
    await here.minute()
    assert (one.revoked, many.revoked) == ([], [])
    here.answers.unseen = {"t"}
    await here.minute()
    assert (one.revoked, many.revoked, right.problem) == (["t"], ["t"], None)
    assert here.counted("revoked") == 2
    await here.minute()
    assert here.counted("revoked") == 2, "each once"


async def test_nobody_is_thrown_out_because_postgres_is_away(here: Here) -> None:
    right = here.enter(END, Follows("t"))
    here.answers.away = ConnectionResetError()
    await here.minute()
    assert right.problem is None
    await here.rights.require(caller())
    failures = here.metrics.registry.get_sample_value("taskbeam_access_check_failures_total")
    assert failures == 1


async def test_a_proof_that_has_ended_is_not_let_in(here: Here) -> None:
    with pytest.raises(AccessTokenExpired):
        await here.rights.require(caller(1_000_000_000))
    await here.rights.require(LOCAL)
    assert not here.answers.asked


async def test_who_comes_often_is_asked_for_once(here: Here) -> None:
    await asyncio.gather(*(here.rights.require(caller()) for _ in range(3)))
    before = len(here.answers.asked)
    await here.rights.require(caller())
    assert len(here.answers.asked) == before


async def test_a_session_that_is_no_uuid_is_none(here: Here) -> None:
    for session_id in (None, 7, "x"):
        await here.rights.require(caller(session_id=session_id))
    assert set(here.answers.asked) == {Whose(USER, None)}


def follower_of_two(world: World) -> Follower:
    for task_id in ("a", "b"):
        world.do(("change", task_id, "progress"))
    follower = finish(world.following.all(LOCAL, None, world.wake, frozenset(("a", "b"))))
    assert follower is not None
    return follower


def test_of_a_task_that_may_not_be_seen_nothing_more_is_told() -> None:
    """Neither what waits nor what comes; of the others everything."""
    world = World()
    follower = follower_of_two(world)
    for task_id in ("a", "b"):
        world.do(("change", task_id, "complete"))
    while world.under_way:
        world.do(("bus", 0, False))
    follower.revoke("a")
    assert [item.change.task_id for item in follower.take()] == ["b"]
    assert (follower.deleted(), follower.deleted()) == (["a"], [])
    world.do(("change", "a", "retry"))
    world.do(("tick",))
    assert finish(follower.ready()) == []
    assert follower.finished


def test_the_end_does_not_wait_for_the_log(here: Here) -> None:
    world = World()
    follower = follower_of_two(world)
    follower.right = here.enter(END, follower)
    world.hub.nudge_all()
    assert follower.behind
    here.rights.look(END)
    assert (follower.behind, type(follower.ended)) == (False, AccessTokenExpired)
    follower.close()
    assert len(world.hub) == 0
