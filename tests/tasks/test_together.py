"""Who asks at once is answered by few calls, and nobody is left waiting for one."""

import asyncio
from collections.abc import Sequence

import pytest

from server.tasks.together import CROWD, CROWD_A_SECOND, GATHER_SECONDS, Together

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


async def test_a_crowd_that_comes_one_by_one_is_gathered() -> None:
    doubling = Doubling()
    together = Together(doubling.double, batch_max=200)
    asking = []
    began = asyncio.get_running_loop().time()
    for number in range(1_000):
        asking.append(asyncio.create_task(together.ask(number)))
        await asyncio.sleep(0)  # time enough for a call
    assert await asyncio.gather(*asking) == [2 * number for number in range(1_000)]
    spent = asyncio.get_running_loop().time() - began
    # Few before it is seen to be a crowd; then each is full, or waited for as long as it may.
    assert len(doubling.calls) <= 2 * CROWD + 1_000 / 200 + spent / GATHER_SECONDS, doubling.calls
    assert max(doubling.calls) == 200


async def test_who_comes_alone_or_with_few_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Together, "_while_they_come", None)  # it would fail
    together = Together(Doubling().double, batch_max=10)
    for _ in range(8):
        assert await asyncio.gather(*map(together.ask, range(3))) == [0, 2, 4]
        await asyncio.sleep(0.02)
    await asyncio.gather(*map(together.ask, range(10)))  # a burst is here already


async def test_who_comes_after_a_crowd_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    together = Together(Doubling().double, batch_max=500)
    await asyncio.gather(*map(together.ask, range(400)))
    await asyncio.gather(*map(together.ask, range(400)))
    await asyncio.sleep(3 * CROWD / CROWD_A_SECOND)
    monkeypatch.setattr(Together, "_while_they_come", None)
    assert await together.ask(1) == 2
