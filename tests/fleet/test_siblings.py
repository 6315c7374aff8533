"""Processes behind one port as they see each other: the places of one board, here all in one process."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from server.fleet import siblings
from server.fleet.board import FRESH_SECONDS, PLACES_A_SLOT, Board, Place
from server.fleet.siblings import Siblings
from tests.exposition import Series, parse, value
from tests.fleet.conftest import Processes

SLOTS = 3
SILENT = "taskbeam_processes_silent"


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes(Board.make(SLOTS))
    yield made
    made.close()


def with_figures(place: Place, number: int, size: int = 0) -> Siblings:
    async def own() -> bytes:
        filler = "# HELP filler F.\n# TYPE filler gauge\n" + "".join(f'filler{{n="{n}"}} 1\n' for n in range(size))
        return f"# HELP mine M.\n# TYPE mine gauge\nmine {number}\n{filler}".encode()

    return Siblings(place, own)


async def ask(asker: Siblings, *others: Siblings) -> Series:
    """What is shown while these others answer."""
    running = [asyncio.create_task(other.run()) for other in others]
    await asyncio.sleep(0)
    try:
        return parse((await asker.figures()).decode())
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_of_a_process_and_its_successor_the_newer_answers(processes: Processes) -> None:
    asker = with_figures(processes.enter(0), 10)
    # More than the buffer of a socket.
    old = with_figures(processes.enter(PLACES_A_SLOT), 20, size=10_000)
    other = with_figures(processes.enter(2 * PLACES_A_SLOT), 30)
    shown = await ask(asker, old, other)
    assert [value(shown, "mine", {"slot": slot}) for slot in ("0", "1", "2")] == [10, 20, 30]
    assert value(shown, "filler", {"slot": "1", "n": "9999"}) == 1
    assert value(shown, SILENT) == 0

    new = with_figures(processes.enter(PLACES_A_SLOT + 1, generation=2), 21)
    assert value(await ask(asker, old, new, other), "mine", {"slot": "1"}) == 21
    processes.board.begin(PLACES_A_SLOT, generation=3)  # not ready yet
    assert value(await ask(asker, new, other), "mine", {"slot": "1"}) == 21


async def test_who_does_not_answer_is_left_out_and_counted(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "ANSWER_SECONDS_MAX", 0.1)
    asker = with_figures(processes.enter(0), 10)
    processes.enter(PLACES_A_SLOT)  # stuck
    for _ in range(30):  # until its inbox is full, too
        shown = await ask(asker)
        assert value(shown, SILENT) == 2
        assert [dict(labels)["slot"] for name, labels in shown if name == "mine"] == ["0"]
        monkeypatch.setattr(siblings, "ANSWER_SECONDS_MAX", 0.001)


@pytest.mark.parametrize(
    "said",
    [
        b"# HELP mine M.\n# TYPE mine gauge\nmi",
        b"",
        b"# TYPE mine gauge\nmine 1\n# EOF\n",
        b"\xff\n# EOF\n",
        b"# EOF\n",
    ],
)
async def test_an_answer_that_was_cut_off_or_is_something_else_is_none(processes: Processes, said: bytes) -> None:
    asker = with_figures(processes.enter(0), 10)
    place = processes.enter(PLACES_A_SLOT)

    class Other(Siblings):
        async def _answer(self, asker: socket.socket) -> None:
            with asker:
                asker.sendall(said)

    async def own() -> bytes:
        return b""

    shown = await ask(asker, Other(place, own))
    assert value(shown, SILENT) == 2
    assert value(shown, "mine", {"slot": "0"}) == 10


def test_the_least_is_of_those_that_take_connections(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other, third = (processes.enter(slot * PLACES_A_SLOT) for slot in range(SLOTS))
    mine.tell(1)
    other.tell(7)
    third.tell(5)
    assert mine.least_open() == 5
    third.leave()
    assert mine.least_open() == 7
    later = time.monotonic_ns() + int((FRESH_SECONDS + 1) * 1e9)
    monkeypatch.setattr(time, "monotonic_ns", lambda: later)
    assert mine.least_open() is None, "nobody waits for one that is stuck"
    third.tell(0)
    assert mine.least_open() is None
    other.tell(8)
    assert mine.least_open() == 8
