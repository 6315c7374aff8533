"""Commits together what comes in together: what arrives while a call is under way is in the next one.

A lone change goes at once. Changes of one task go one after the other, in the order they came; each caller gets the
outcome, or the error, of his own. What it means for a row is said in sql/011_together.sql.
"""

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import asyncpg

from server import failpoints
from server.db import ACQUIRE_TIMEOUT_SECONDS, UNAVAILABLE, Pool
from server.tasks import snapshot
from server.tasks.ledger import DELIVERIES_NOTED_MAX, Said
from server.tasks.snapshot import TaskChange
from server.tasks.state import Complete, Fail, Outcome, Report

BATCH_MAX = 500
WAITING_MAX = 10_000
TRIES_MAX = 3
# Somebody else's transaction came in between: the same again may do. Ours lock in one order.
CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

Change: TypeAlias = Report | Complete | Fail
Row: TypeAlias = tuple[str | int | bool | None, ...]  # one element of each array that taskbeam.advance takes
UNSAID: tuple[None, None, None] = (None, None, None)


class _Waiting:
    """A change, and who waits for what becomes of it; None: there is no such task."""

    __slots__ = ("answer", "row", "since", "task_id")

    def __init__(self, task_id: str, row: Row, answer: "asyncio.Future[Outcome | None]", since: float) -> None:
        self.task_id = task_id
        self.row = row
        self.answer = answer
        self.since = since

    def fail(self, error: BaseException) -> None:
        """With an error of its own: each caller's adds its traceback to it."""
        if not self.answer.done():
            self.answer.set_exception(copy.copy(error))


class Commits:
    """`commit()` is all. `turn()` is the right to wait for a lock; `publish` must not block."""

    def __init__(
        self,
        pool: Pool,
        publish: Callable[[TaskChange], None],
        turn: Callable[[], AbstractAsyncContextManager[None]],
        *,
        public_url: str,
        deadline_seconds: float,
    ) -> None:
        self._pool = pool
        self._publish = publish
        self._turn = turn
        self._public_url = public_url
        self._deadline_seconds = deadline_seconds
        self._ready: deque[_Waiting] = deque()
        # Every task of which a change is ready or under way, with those that wait behind it.
        self._behind: dict[str, deque[_Waiting] | None] = {}
        # By owner, what somebody else's lock holds up; None: tasks without one.
        self._held_up: dict[str | None, deque[_Waiting]] = {}
        self._waiting = 0
        self._running: asyncio.Task[None] | None = None
        self._patient: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def commit(self, task_id: str, change: Change, said: Said | None) -> Outcome | None:
        """Apply the change, note it in the ledger, publish it; None where there is no such task.

        Raises TimeoutError where too much waits, or it waited too long, as the pool does.
        """
        if self._waiting >= WAITING_MAX:
            raise TimeoutError("too many changes wait to be committed")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(task_id, _row(task_id, change, said), loop.create_future(), loop.time())
        self._waiting += 1
        if task_id in self._behind:
            behind = self._behind[task_id]
            if behind is None:
                behind = self._behind[task_id] = deque()
            behind.append(waiting)
        else:
            self._behind[task_id] = None
            self._begin(waiting)
        if self._sweep is None:
            self._sweep = loop.call_later(ACQUIRE_TIMEOUT_SECONDS, self._give_up)
        return await waiting.answer

    def _begin(self, waiting: _Waiting) -> None:
        self._ready.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())

    def _end(self, waiting: _Waiting) -> None:
        """It is no longer under way: the next of its task may begin."""
        self._waiting -= 1
        behind = self._behind[waiting.task_id]
        if behind:
            self._begin(behind.popleft())
        else:
            del self._behind[waiting.task_id]

    def _take(self, queue: deque[_Waiting]) -> list[_Waiting]:
        """The next batch, without those nobody waits for any more."""
        batch: list[_Waiting] = []
        while queue and len(batch) < BATCH_MAX:
            waiting = queue.popleft()
            if waiting.answer.done():
                self._end(waiting)
            else:
                batch.append(waiting)
        return batch

    async def _run(self) -> None:
        try:
            while batch := self._take(self._ready):
                await self._settle(batch, patient=False)
        finally:
            self._running = None

    async def _run_patiently(self, owner_id: str | None) -> None:
        """Each owner's by themselves: who waits for one keeps no other waiting."""
        queue = self._held_up[owner_id]
        try:
            while batch := self._take(queue):
                try:
                    async with self._turn():
                        await self._settle(batch, patient=True)
                except TimeoutError as error:
                    self._refuse(batch, error)
        finally:
            del self._held_up[owner_id]

    async def _settle(self, batch: list[_Waiting], *, patient: bool) -> None:
        try:
            rows = await self._call(batch, patient)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, UNAVAILABLE):
                half = len(batch) // 2  # of one of them, perhaps: the others are not to suffer for it
                await self._settle(batch[:half], patient=patient)
                await self._settle(batch[half:], patient=patient)
            else:
                self._refuse(batch, error)
            return
        except BaseException as error:
            self._refuse(batch, error)
            raise
        failpoints.reached("change.committed")
        outcomes: list[Outcome | None] = [None] * len(batch)
        held_up = []
        for row in rows:
            place, outcome = row["place"] - 1, row["outcome"]
            if outcome != "busy":
                outcomes[place] = outcome
                if row["task_id"] is not None:
                    self._publish(snapshot.from_row(row, self._public_url))
            elif not patient:
                held_up.append((row["owner_id"], batch[place]))
        for owner_id, waiting in held_up:
            self._hold_up(owner_id and str(owner_id), waiting)
        still = {id(waiting) for _, waiting in held_up}
        for waiting, became in zip(batch, outcomes, strict=True):
            if id(waiting) not in still:
                if not waiting.answer.done():
                    waiting.answer.set_result(became)
                self._end(waiting)

    def _hold_up(self, owner_id: str | None, waiting: _Waiting) -> None:
        if owner_id in self._held_up:
            self._held_up[owner_id].append(waiting)
            return
        self._held_up[owner_id] = deque([waiting])
        run = asyncio.create_task(self._run_patiently(owner_id))
        self._patient.add(run)
        run.add_done_callback(self._patient.discard)

    def _refuse(self, batch: Sequence[_Waiting], error: BaseException) -> None:
        for waiting in batch:
            waiting.fail(error)
            self._end(waiting)

    async def _call(self, batch: Sequence[_Waiting], patient: bool) -> list[asyncpg.Record]:
        columns = list(zip(*(waiting.row for waiting in batch), strict=True))
        for left in reversed(range(TRIES_MAX)):
            try:
                async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection:
                    return await connection.fetch(
                        """select place, outcome, owner_id, (change).* from taskbeam.advance(
                             $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)""",
                        *columns,
                        self._deadline_seconds,
                        DELIVERIES_NOTED_MAX,
                        patient,
                    )
            except CROSSED:
                if not left:
                    raise
        raise AssertionError  # the last try returned or raised

    def _give_up(self) -> None:
        """Who waited too long for his turn is told. What is under way ends by itself (statement_timeout)."""
        loop = asyncio.get_running_loop()
        oldest = None
        for waiting in self._in_queues():
            if waiting.since + ACQUIRE_TIMEOUT_SECONDS <= loop.time():
                waiting.fail(TimeoutError("waited too long to be committed"))
            elif oldest is None or waiting.since < oldest:
                oldest = waiting.since
        self._sweep = None
        if oldest is not None:
            self._sweep = loop.call_at(oldest + ACQUIRE_TIMEOUT_SECONDS, self._give_up)

    def _in_queues(self) -> Iterator[_Waiting]:
        yield from self._ready
        for queue in (*self._held_up.values(), *self._behind.values()):
            yield from queue or ()


def _row(task_id: str, change: Change, said: Said | None) -> Row:
    jti, source, status = UNSAID if said is None else (said.jti, said.kind, said.status)
    if isinstance(change, Report):
        details = (change.progress, change.message, change.preview, change.step, change.steps)
        head = ("report", task_id, change.attempt, change.delivery)
        return (*head, *details, None, None, None, None, jti, source, status)
    delivery = None if said is None else said.delivery
    if isinstance(change, Complete):
        head = ("complete", task_id, change.attempt, delivery)
        return (*head, None, None, None, None, None, change.result, None, None, None, jti, source, status)
    head = ("fail", task_id, change.attempt, delivery)
    end = (change.error, change.error_code, change.cancelled)
    return (*head, None, None, None, None, None, None, *end, jti, source, status)
