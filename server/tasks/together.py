"""Answers the questions of many with few calls: who asks while calls are under way waits for the next one.

Where a crowd asks, as all clients do after a restart, calls would still be many and small: the database answers faster
than questions come. Then a call waits a little for more of them. Who comes alone waits for nobody.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, cast

from server.db import UNAVAILABLE

Question = TypeVar("Question")
Answer = TypeVar("Answer")

CALLS_MAX = 2
# More of them in a second are a crowd, once it is as many as this above it.
CROWD_A_SECOND = 250
CROWD = 25
# For so long a crowd is waited for, while it keeps coming: somebody in every look.
GATHER_SECONDS = 0.08
LOOK_SECONDS = 0.005


class Together(Generic[Question, Answer]):
    """`call` answers up to `batch_max` questions at once, in their order; `calls_max` calls are under way at most."""

    def __init__(
        self,
        call: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]],
        *,
        batch_max: int,
        calls_max: int = CALLS_MAX,
    ) -> None:
        self._call = call
        self._batch_max = batch_max
        self._calls_max = calls_max
        self._asked: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._gathering = asyncio.Lock()
        self._came = 0  # since the last call
        self._crowd = 0.0  # as a bucket that drains by CROWD_A_SECOND
        self._called_at = -math.inf

    async def ask(self, question: Question) -> Answer:
        """Raises what the call raises: UNAVAILABLE for all of its questions, anything else for the one it is of."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._asked.append((question, answer))
        self._came += 1
        if len(self._calls) < self._calls_max:
            self._calls.add(loop.create_task(self._call_all()))
        return await answer

    async def _call_all(self) -> None:
        try:
            await asyncio.sleep(0)  # for whoever asks in this turn of the loop
            await self._until_all_are_answered()
        finally:
            # Here, and not once the task is done: who asks in between would be waited for by nobody.
            self._calls.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _until_all_are_answered(self) -> None:
        while batch := await self._gather():
            try:
                await self._answer(batch)
            except asyncio.CancelledError:
                for _, answer in batch:
                    answer.cancel()
                raise
            except UNAVAILABLE as error:
                _fail(batch, error)
            except Exception as error:
                # Of one of them, perhaps: the others are not to suffer for it.
                await self._one_by_one(batch, error)

    async def _gather(self) -> list[tuple[Question, "asyncio.Future[Answer]"]]:
        """Who is answered next; nobody where nobody asks any more."""
        async with self._gathering:
            if self._is_crowd():
                await self._while_they_come()
            batch: list[tuple[Question, asyncio.Future[Answer]]] = []
            while self._asked and len(batch) < self._batch_max:
                question, answer = self._asked.popleft()
                if not answer.done():
                    batch.append((question, answer))
            return batch

    def _is_crowd(self) -> bool:
        now = asyncio.get_running_loop().time()
        level = self._crowd + self._came - (now - self._called_at) * CROWD_A_SECOND
        self._crowd = min(max(0.0, level), 2.0 * CROWD)
        self._came = 0
        self._called_at = now
        return self._crowd >= CROWD

    async def _while_they_come(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + GATHER_SECONDS
        before = 0
        while before < len(self._asked) < self._batch_max and loop.time() < until:
            before = len(self._asked)
            await asyncio.sleep(LOOK_SECONDS)

    async def _one_by_one(self, batch: Sequence[tuple[Question, "asyncio.Future[Answer]"]], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch, error)
            return
        for asked in batch:
            try:
                await self._answer([asked])
            except Exception as its_own:
                _fail([asked], its_own)

    async def _answer(self, batch: Sequence[tuple[Question, "asyncio.Future[Answer]"]]) -> None:
        answers = await self._call([question for question, _ in batch])
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def _fail(batch: Sequence[tuple[Question, "asyncio.Future[Answer]"]], error: BaseException) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
