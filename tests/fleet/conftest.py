"""One `taskbeam serve` with three web processes, which the tests of a module share; and processes that are played."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from server.fleet.board import Board, Place
from tests.conftest import Spares, named
from tests.deployment import Deployment
from tests.supervised import descendants, wait_until

PROCESSES = 3


@pytest.fixture(scope="module")
def served(
    postgres: EmbeddedPostgres, spares: Spares, redis_server: EmbeddedRedis, folder: Path
) -> Iterator[Deployment]:
    """Its `web` is the supervisor: its port is everybody's."""
    database = named(postgres, spares.take())
    here = Deployment(database, redis_server.url(), folder / database.name, dispatchers=0, generator=False)
    here.web.name = "serve"
    here.web.begin(WEB_PROCESSES=str(PROCESSES))
    wait_until(lambda: said(here, '"web_started"') == PROCESSES, here.web.tail)
    yield here
    here.stop()
    spares.drop(database.name)


def said(here: Deployment, text: str) -> int:
    """How often the log holds it."""
    return here.web.log.read_text().count(text)


def children(here: Deployment) -> set[int]:
    """The web processes that there are now."""
    assert here.web.process is not None
    return set(descendants(here.web.process.pid))


class Processes:
    """What processes would do on a board, all of them in this one."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._places: list[Place] = []

    def at(self, number: int) -> Place:
        """The place of the process that was begun there."""
        self._places.append(Place.parse(Place.format(self.board, number)))
        return self._places[-1]

    def enter(self, number: int, generation: int = 1) -> Place:
        """Begin one, which is ready."""
        self.board.begin(number, generation)
        place = self.at(number)
        place.tell(0)
        place.ready()
        return place

    def close(self) -> None:
        """Each place has the same descriptors, which are to be closed once."""
        for place in self._places:
            for one in (place.inbox, *place._outboxes):
                one.detach()
        for fd in {fd for number in range(self.board.places) for fd in self.board.handed_on(number)}:
            os.close(fd)
