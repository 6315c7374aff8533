"""Commits together what comes in together: what arrives while a call is under way is in the next one.

A lone write goes at once. Writes of one task go one after the other, in the order they came; each caller gets the
answer, or the error, of his own. A call waits for nobody else's lock; what is held up by one is called again,
patiently, and apart for each owner, so that it holds up nobody but him. One such call at a time: with two the batches
are smaller, and no more is committed.
"""

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import asyncpg

from server.db import ACQUIRE_TIMEOUT_SECONDS, UNAVAILABLE

Write = TypeVar("Write")
Answer = TypeVar("Answer")

BATCH_MAX = 500
WAITING_MAX = 10_000
TRIES_MAX = 3
# Somebody else's transaction came in between: the same again may do. Ours lock in one order.
CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


class Busy(NamedTuple):
    """Somebody else's lock is in the way; None: of a task without owner. Nothing was written."""

    owner_id: str | None


# Writes in one transaction, and whether it may wait for locks; the answers in the same order.
Call: TypeAlias = Callable[[Sequence[Write], bool], Awaitable[Sequence[Answer | Busy]]]


class _Waiting(Generic[Write, Answer]):
    """A write, and who waits for what becomes of it."""

    __slots__ = ("answer", "since", "task_id", "write")

    def __init__(self, task_id: str, write: Write, answer: "asyncio.Future[Answer]", since: float) -> None:
        self.task_id = task_id
        self.write = write
        self.answer = answer
        self.since = since

    def fail(self, error: BaseException) -> None:
        """With an error of its own: each caller's adds its traceback to it."""
        if not self.answer.done():
            self.answer.set_exception(copy.copy(error))


class Commits(Generic[Write, Answer]):
    """`commit()` is all. `turn()` is the right to wait for a lock, and raises TimeoutError."""

    def __init__(self, call: Call[Write, Answer], turn: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._call = call
        self._turn = turn
        self._ready: deque[_Waiting[Write, Answer]] = deque()
        # Every task of which a write is ready or under way, with those that wait behind it.
        self._behind: dict[str, deque[_Waiting[Write, Answer]] | None] = {}
        self._held_up: dict[str | None, deque[_Waiting[Write, Answer]]] = {}  # by owner
        self._waiting = 0
        self._running: asyncio.Task[None] | None = None
        self._patient: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def commit(self, task_id: str, write: Write) -> Answer:
        """What the call answers, once that is committed. Raises what the call raises.

        Raises TimeoutError where too much waits, or it waited too long, as the pool does.
        """
        if self._waiting >= WAITING_MAX:
            raise TimeoutError("too much waits to be committed")
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Write, Answer] = _Waiting(task_id, write, loop.create_future(), loop.time())
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

    def _begin(self, waiting: _Waiting[Write, Answer]) -> None:
        self._ready.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())

    def _end(self, waiting: _Waiting[Write, Answer]) -> None:
        """It is no longer under way: the next of its task may begin."""
        self._waiting -= 1
        behind = self._behind[waiting.task_id]
        if behind:
            self._begin(behind.popleft())
        else:
            del self._behind[waiting.task_id]

    def _take(self, queue: deque[_Waiting[Write, Answer]]) -> list[_Waiting[Write, Answer]]:
        """The next batch, without those nobody waits for any more."""
        batch: list[_Waiting[Write, Answer]] = []
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

    async def _settle(self, batch: list[_Waiting[Write, Answer]], *, patient: bool) -> None:
        """Answer all of the batch. Raises nothing of the call's."""
        try:
            answers = await self._try([waiting.write for waiting in batch], patient)
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
        for waiting, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Busy):
                self._hold_up(answer.owner_id, waiting)
                continue
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
            self._end(waiting)

    async def _try(self, writes: Sequence[Write], patient: bool) -> Sequence[Answer | Busy]:
        for _ in range(TRIES_MAX - 1):
            try:
                return await self._call(writes, patient)
            except CROSSED:
                continue
        return await self._call(writes, patient)

    def _hold_up(self, owner_id: str | None, waiting: _Waiting[Write, Answer]) -> None:
        if owner_id in self._held_up:
            self._held_up[owner_id].append(waiting)
            return
        self._held_up[owner_id] = deque([waiting])
        run = asyncio.create_task(self._run_patiently(owner_id))
        self._patient.add(run)
        run.add_done_callback(self._patient.discard)

    def _refuse(self, batch: Sequence[_Waiting[Write, Answer]], error: BaseException) -> None:
        for waiting in batch:
            waiting.fail(error)
            self._end(waiting)

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

    def _in_queues(self) -> Iterator[_Waiting[Write, Answer]]:
        yield from self._ready
        for queue in (*self._held_up.values(), *self._behind.values()):
            yield from queue or ()
