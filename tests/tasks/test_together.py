"""Who asks at once is answered by few calls, and nobody is left waiting for one."""

import asyncio
from collections.abc import Sequence

import pytest

from server.tasks.together import Together

pytestmark = pytest.mark.pure


class Doubling:
    def __init__(self) -> None:
        self.calls: list[int] = []

    async def double(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(len(numbers))
        await asyncio.sleep(0)
        return [2 * number for number in numbers]


async def test_those_who_ask_at_once_are_answered_by_few_calls() -> None:
    doubling = Doubling()
    together = Together(doubling.double, batch_max=10)
    assert await asyncio.gather(*map(together.ask, range(95))) == [2 * number for number in range(95)]
    assert doubling.calls == [10] * 9 + [5]


@pytest.mark.parametrize("calls_max", [1, 2])
async def test_who_asks_in_the_turn_in_which_the_last_calls_end_is_answered(calls_max: int) -> None:
    together = Together(Doubling().double, batch_max=1, calls_max=calls_max)
    async with asyncio.timeout(5):
        for number in range(20):
            others = [asyncio.create_task(together.ask(7)) for _ in range(calls_max - 1)]
            assert await together.ask(number) == 2 * number
            assert await together.ask(number) == 2 * number
            assert await asyncio.gather(*others) == [14] * len(others)
