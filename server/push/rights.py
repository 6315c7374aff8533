"""How long each client may follow: until its proof ends, and while Postgres says so.

Once a second the few are looked for whose time has come; every five seconds a twelfth of all is looked at in Postgres:
whether the user is still there and signed in, and whether row level security still shows him what he follows by name.
Whoever needs no proof (the local user) has no right to lose, and costs nothing here.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Protocol
from uuid import UUID

import msgspec
import structlog

from server.auth import Caller
from server.db import DATABASE_ERRORS
from server.errors import AccessTokenExpired, SessionEnded
from server.metrics import Metrics
from server.tasks.access import Access, Whose

log = structlog.get_logger()

LOOK_SECONDS = 1.0
WARNING_SECONDS = 60.0
TURNS = 12
TURN_SECONDS = 5.0
# Whoever comes back, or opens a second stream, is not asked for again so soon.
STANDING_SECONDS = 15.0
STANDINGS_MAX = 20_000
CHALLENGE = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


class Followed(Protocol):
    """What a right is a right to (follow.Follower)."""

    @property
    def named(self) -> Collection[str]: ...

    def revoke(self, task_id: str) -> bool: ...


class _Claims(msgspec.Struct):
    session_id: object = None


_decode = msgspec.json.Decoder(_Claims).decode


class Right:
    """One client's: of a stream, a connection, or a held answer. To be left; `wake` is called for news of it."""

    __slots__ = ("_due", "_followers", "_known", "_rights", "_slot", "_wake", "_warning", "caller", "problem")

    def __init__(
        self,
        rights: "Rights",
        caller: Caller,
        followers: Collection[Followed],
        wake: Callable[[], None],
        slot: "set[Right]",
    ) -> None:
        self._rights = rights
        self._followers = followers
        self._wake = wake
        self._slot = slot
        self._due = 0
        self._warning = False
        self._known = False
        self.caller = caller
        self.problem: AccessTokenExpired | SessionEnded | None = None  # why it has ended

    @property
    def news(self) -> bool:
        """Whether there is something to say of it."""
        return self._warning or self.problem is not None

    def take_warning(self) -> float | None:
        """When it ends, in Unix seconds, once that is soon; and once only."""
        warning, self._warning = self._warning, False
        return self.caller.expires_at if warning else None

    def leave(self) -> None:
        """Idempotent."""
        self._rights._leave(self)


class Rights:
    """All rights of a process. `run()` until cancelled."""

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics
        self._due: dict[int, set[Right]] = {}  # by the second, of the wall clock, in which there is something to say
        self._slots: list[set[Right]] = [set() for _ in range(TURNS)]
        self._entered = 0
        self._turn = 0
        self._failing = False
        self._standings: OrderedDict[Whose, float] = OrderedDict()  # those found good, and when

    async def require(self, caller: Caller) -> None:
        """Before a client follows. Raises AccessTokenExpired and SessionEnded.

        Without leeway, or whoever comes back with the same token would be let in again and at once be sent away.
        """
        if caller.expires_at is None:
            return
        self.still(caller)
        whose = _whose(caller)
        if self._standings.get(whose, -math.inf) > time.monotonic() - STANDING_SECONDS:
            return
        try:
            standing = await self._access.standing(whose)
        except DATABASE_ERRORS:
            return  # what it wants to read will not be there either
        if standing in ("gone", "signed_out"):
            raise _session_ended()
        self._standings[whose] = time.monotonic()
        self._standings.move_to_end(whose)
        if len(self._standings) > STANDINGS_MAX:
            self._standings.popitem(last=False)

    def still(self, caller: Caller) -> None:
        """Again, after what took a while. Raises AccessTokenExpired."""
        if caller.expires_at is not None and caller.expires_at <= time.time():
            raise _expired()

    def enter(self, caller: Caller, followers: Collection[Followed], wake: Callable[[], None]) -> Right | None:
        """From now on its right is watched; None where there is nothing to watch. `followers` may be a live view."""
        if caller.expires_at is None:
            return None
        # Not by when they come: after a restart they all come at once.
        slot = self._slots[self._entered % TURNS]
        self._entered += 1
        right = Right(self, caller, followers, wake, slot)
        slot.add(right)
        self._watch(right, caller.expires_at - WARNING_SECONDS)
        return right

    def renew(self, right: Right, caller: Caller) -> None:
        """The same user has a newer proof."""
        if right.problem is None and caller.expires_at is not None:
            self._unwatch(right)
            right.caller = caller
            right._warning = False
            self._watch(right, caller.expires_at - WARNING_SECONDS)

    def _leave(self, right: Right) -> None:
        self._unwatch(right)
        right._slot.discard(right)
        right._followers = ()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._look_for_ever())
            loops.create_task(self._check_for_ever())

    # Time

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(time.time())

    def look(self, now: float) -> None:
        """Warn those whose proof ends soon, and end what has no proof any more. `now` in Unix seconds."""
        for second in [second for second in self._due if second <= now]:
            for right in self._due.pop(second):
                ends_at = right.caller.expires_at or 0.0
                if ends_at <= now:
                    self._end(right, _expired(), "expired")
                else:
                    right._warning = True
                    self._watch(right, ends_at)
                    right._wake()

    def _watch(self, right: Right, until: float) -> None:
        right._due = math.ceil(until)
        self._due.setdefault(right._due, set()).add(right)

    def _unwatch(self, right: Right) -> None:
        due = self._due.get(right._due)
        if due is not None:
            due.discard(right)
            if not due:
                del self._due[right._due]

    def _end(self, right: Right, problem: AccessTokenExpired | SessionEnded, reason: str) -> None:
        right.leave()
        right.problem = problem
        self._metrics.access_ended[reason].inc()
        right._wake()

    # Postgres

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TURN_SECONDS)
            await self.check()

    async def check(self) -> None:
        """One turn: a twelfth of all who follow. Whom Postgres does not answer for stays."""
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % TURNS
        if not slot:
            return
        began = time.monotonic()
        found = await asyncio.gather(*map(self._check, tuple(slot)), return_exceptions=True)
        failed = [error for error in found if isinstance(error, BaseException)]
        self._metrics.access_check_seconds.observe(time.monotonic() - began)
        self._metrics.access_check_failures.inc(len(failed))
        if failed and not self._failing:
            log.warning("access_check_failed", reason=type(failed[0]).__name__)
        self._failing = bool(failed)
        for error in failed:
            if not isinstance(error, DATABASE_ERRORS):
                raise error

    async def _check(self, right: Right) -> None:
        whose = _whose(right.caller)
        standing = await self._access.standing(whose)
        self._metrics.access_checks.inc()
        if standing in ("gone", "signed_out") or (standing == "unknown" and right._known):
            self._standings.pop(whose, None)
            if right.problem is None and _whose(right.caller) == whose:
                self._end(right, _session_ended(), "session_ended")
            return
        right._known = right._known or standing == "known"
        pairs = [(follower, task_id) for follower in tuple(right._followers) for task_id in follower.named]
        claims = right.caller.claims
        seen = await asyncio.gather(*(self._access.sees(claims, task_id) for _, task_id in pairs))
        self._metrics.access_checks.inc(len(pairs))
        if right.caller.claims != claims:
            return  # renewed meanwhile: it was not asked with what it has now
        for (follower, task_id), sees in zip(pairs, seen, strict=True):
            if not sees and follower.revoke(task_id):
                self._metrics.access_ended["revoked"].inc()


def _whose(caller: Caller) -> Whose:
    session_id = _decode(caller.claims).session_id
    try:
        return Whose(caller.user_id, str(UUID(session_id)) if isinstance(session_id, str) else None)
    except ValueError:
        return Whose(caller.user_id, None)


def _expired() -> AccessTokenExpired:
    return AccessTokenExpired(headers=CHALLENGE)


def _session_ended() -> SessionEnded:
    return SessionEnded(headers=CHALLENGE)
