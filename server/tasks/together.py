"""Answers the questions of many with few calls: who asks while calls are under way waits for the next one."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, cast

from server.db import UNAVAILABLE

Question = TypeVar("Question")
Answer = TypeVar("Answer")

CALLS_MAX = 2


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

    async def ask(self, question: Question) -> Answer:
        """Raises what the call raises: UNAVAILABLE for all of its questions, anything else for the one it is of."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._asked.append((question, answer))
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
        while self._asked:
            batch = [self._asked.popleft() for _ in range(min(self._batch_max, len(self._asked)))]
            batch = [(question, answer) for question, answer in batch if not answer.done()]
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
        if not batch:
            return
        answers = await self._call([question for question, _ in batch])
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def _fail(batch: Sequence[tuple[Question, "asyncio.Future[Answer]"]], error: BaseException) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
