"""`taskbeam serve` as it runs: shares connections out, adds figures up, replaces its processes, and ends with them.

The tests share one server and leave it with three processes, until one ends it; those after that begin it anew.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable

import asyncpg

from server.fleet.accept import ACCEPTED_A_TURN, AHEAD_MAX
from server.fleet.slot import STOP_SECONDS_MAX
from tests.deployment import Deployment
from tests.exposition import Series, scrape
from tests.fleet.conftest import PROCESSES, children, said
from tests.playing import Play
from tests.sse import Event, check_followed, stream
from tests.supervised import running, wait_gone, wait_until

HEALTH = {"route": "/healthz", "method": "GET", "status": "200"}
SILENT = ("taskbeam_processes_silent", frozenset[tuple[str, str]]())
CONNECTIONS = 600
FOLLOWERS = 12


def by_slot(shown: Series, name: str, labels: dict[str, str]) -> dict[str, float]:
    found = {}
    for (sample, given), number in shown.items():
        told = dict(given)
        if sample == name and told.items() >= labels.items():
            found[told["slot"]] = number
    return found


async def test_connections_are_shared_out_and_figures_are_of_all(served: Deployment) -> None:
    before = by_slot(await scrape(served.web.url), "taskbeam_requests_total", HEALTH)
    writers = []
    for _ in range(CONNECTIONS):  # each is there while the next one comes: that is what is shared out
        reader, writer = await asyncio.open_connection("127.0.0.1", served.web.port)
        writers.append(writer)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    shown = await scrape(served.web.url)
    for writer in writers:
        writer.close()
    after = by_slot(shown, "taskbeam_requests_total", HEALTH)
    gained = {slot: number - before.get(slot, 0) for slot, number in after.items()}
    assert sum(gained.values()) == CONNECTIONS
    assert sorted(gained) == ["0", "1", "2"]
    assert max(gained.values()) - min(gained.values()) <= 2 * (AHEAD_MAX + ACCEPTED_A_TURN), gained
    assert shown[SILENT] == 0


async def test_a_process_that_does_not_answer_is_missed(served: Deployment) -> None:
    frozen = min(children(served))
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert (await scrape(served.web.url))[SILENT] == 1
    finally:
        os.kill(frozen, signal.SIGCONT)
    async with asyncio.timeout(20):
        while (await scrape(served.web.url))[SILENT]:
            pass


async def test_a_process_that_was_killed_comes_back(served: Deployment) -> None:
    victim, *others = sorted(children(served))
    os.kill(victim, signal.SIGKILL)
    async with asyncio.timeout(20):
        while victim in (now := children(served)) or len(now) < PROCESSES or (await scrape(served.web.url))[SILENT]:  # noqa: ASYNC110  (another process's doing)
            await asyncio.sleep(0.02)
    assert children(served) > set(others)
    assert "ended (SIGKILL); again in 0.25 s" in served.web.tail()


class Visitor:
    """Connects fifty times a second and asks one question each time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answered = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        asking: set[asyncio.Task[None]] = set()
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                task = asyncio.create_task(self._ask())
                asking.add(task)
                task.add_done_callback(asking.discard)
                await asyncio.sleep(0.02)
        await asyncio.gather(*asking)

    async def _ask(self) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            line = await asyncio.wait_for(reader.readline(), 10)
            writer.close()
        except (OSError, TimeoutError) as error:
            self.failed.append(repr(error))
            return
        if line.startswith(b"HTTP/1.1 200"):
            self.answered += 1
        else:
            self.failed.append(repr(line))


class Follower:
    """A browser: comes back with its cursor when its stream has ended."""

    def __init__(self, here: Deployment, task_id: str) -> None:
        self._here = here
        self._task_id = task_id
        self.seen: list[Event] = []
        self.told: list[str] = []

    async def run(self) -> None:
        async with self._here.client() as client:
            while not self.seen or self.seen[-1].data["status"] != "completed":
                headers = {"Last-Event-ID": self.seen[-1].id or ""} if self.seen else {}
                async with stream(client, f"taskId={self._task_id}", headers) as events:
                    async for event in events:
                        self.told.append(event.event)
                        if event.is_change:
                            self.seen.append(event)


async def until(condition: Callable[[], bool], here: Deployment) -> None:
    """Wait, in the event loop, until the call says yes."""
    async with asyncio.timeout(60):
        while not condition():
            assert here.web.process is not None
            assert here.web.process.poll() is None
            await asyncio.sleep(0.02)


async def test_a_rolling_restart_is_noticed_by_nobody(served: Deployment) -> None:
    """Asked for twice: the second time while the first new process is starting, which is then replaced as well."""
    before = children(served)
    play = await Play.of(served)
    task_id = await play.create()
    followers = [Follower(served, task_id) for _ in range(FOLLOWERS)]
    following = asyncio.gather(*(follower.run() for follower in followers))
    await until(lambda: all(follower.seen for follower in followers), served)
    visitor = Visitor(served.web.port)
    visiting = asyncio.create_task(visitor.run())
    most = 0

    def rolled() -> bool:
        nonlocal most
        most = max(most, len(children(served)))
        return said(served, '"roll_ended"') == 1

    served.web.signal(signal.SIGHUP)
    await until(lambda: len(children(served) - before) == 1, served)
    (first_new,) = children(served) - before
    served.web.signal(signal.SIGHUP)
    await until(lambda: not before <= children(served), served)
    await play.report(task_id, 50)
    await until(rolled, served)
    await play.finish(task_id)
    await asyncio.wait_for(following, 20)
    visiting.cancel()
    await visiting

    assert visitor.failed == []
    assert visitor.answered > 50
    assert not children(served) & {*before, first_new}
    assert (len(children(served)), most) == (PROCESSES, PROCESSES + 1), "one at a time"
    for follower in followers:
        check_followed(follower.seen)
        assert [event.data["version"] for event in follower.seen] == [1, 2, 3]
    assert all("bye" in follower.told for follower in followers)
    assert (await scrape(served.web.url))[SILENT] == 0


async def test_where_a_new_process_cannot_start_the_old_ones_stay(served: Deployment) -> None:
    before = children(served)
    owner = await asyncpg.connect(served.database.owner_url)
    role = await owner.fetchval("select usename from pg_stat_activity where application_name ~ 'taskbeam' limit 1")
    await owner.execute(f"alter role {role} nologin")
    try:
        served.web.signal(signal.SIGHUP)
        await until(lambda: said(served, '"roll_given_up"') == 1, served)
    finally:
        await owner.execute(f"alter role {role} login")
        await owner.close()
    assert children(served) == before
    assert "ended (1) before it was ready; the old ones stay" in served.web.tail()
    async with served.client() as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_sigterm_in_the_middle_of_a_rolling_restart_ends_all_of_it(served: Deployment) -> None:
    served.web.signal(signal.SIGHUP)
    await until(lambda: len(children(served)) == PROCESSES + 1, served)
    all_of_them = list(children(served))
    began = time.monotonic()
    served.web.signal(signal.SIGTERM)
    assert served.web.wait(10) == 0
    assert time.monotonic() - began < STOP_SECONDS_MAX + 1
    assert [pid for pid in all_of_them if running(pid)] == []
    assert said(served, '"serve_stopped"') == 1


def test_what_is_wrong_at_the_start_is_said_once(served: Deployment) -> None:
    served.web.stop()
    served.web.log.write_text("")
    served.web.begin(WEB_PROCESSES=str(PROCESSES), GENERATOR_URL="")
    assert served.web.wait() == 2
    lines = [line for line in served.web.log.read_text().splitlines() if line.startswith("taskbeam:")]
    assert lines == ["taskbeam: GENERATOR_URL is not set (`taskbeam up` brings a part of its own)"]


def test_nothing_outlives_a_supervisor_that_is_killed(served: Deployment) -> None:
    served.web.stop()
    served.web.log.write_text("")
    served.web.begin(WEB_PROCESSES="2")
    wait_until(lambda: said(served, '"web_started"') == 2, served.web.tail)
    orphans = list(children(served))
    assert len(orphans) == 2
    served.web.kill()
    assert wait_gone(orphans, 5) == []
