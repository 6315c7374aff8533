"""`taskbeam chaos`: breaks every part and every link on purpose, again and again, and proves what clients still saw.

Two web processes and two dispatchers over a private Postgres and Redis, all of it on loopback; the generator and the
clients are played from this process. At the end all is mended, and what every client saw is judged by the log.
"""

import asyncio
import contextlib
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import asyncpg
import click
import msgspec
import uvloop

from server.chaos.faults import Faults
from server.chaos.figures import Figures, Tally
from server.chaos.load import Load
from server.chaos.parts import Parts
from server.chaos.schedule import Fault, plan
from server.clients.crowd import USUAL, Crowd, Pace
from server.clients.judge import Defect, judge, judge_gaps, judge_log
from server.clients.views import Change, Follow, Log
from server.embedded.children import ChildFailed

WARM_SECONDS = 2.0
SETTLE_SECONDS_MAX = 150.0
QUIET_SECONDS = 2.0
RETURN_SECONDS_MAX = 10.0
SAY_SECONDS = 5.0
# Where there are many clients each stays longer: so many come a second by themselves.
VISITS_A_SECOND = 100
FOLDER_CHARACTERS_MAX = 60
VIEWS = "views.jsonl"


def run_chaos(
    faults: int, seed: int, minutes: float, tasks: int, followers: int
) -> tuple[Figures, list[Defect], Path | None]:
    """Run it; the figures, the defects, and the folder with all logs if there were any.

    Raises ClickException where it cannot begin or a part cannot be brought back.
    """
    _raise_file_limit(followers)
    folder = Path(tempfile.mkdtemp(prefix="taskbeam-chaos-"))
    if len(str(folder)) > FOLDER_CHARACTERS_MAX:
        folder.rmdir()
        raise click.ClickException(f"{folder} is too long a name for sockets to lie below it: set TMPDIR")
    folder.chmod(0o755)  # root's Postgres runs as another user and must reach what is below
    keep = True
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures, defects = runner.run(_Run(folder, seed, plan(seed, faults, minutes * 60), tasks, followers).run())
        keep = bool(defects)
    except (ChildFailed, OSError, asyncpg.PostgresError) as error:
        raise click.ClickException(f"{error} (all logs are in {folder})") from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        keep = False
        raise click.Abort from None
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return figures, defects, folder if keep else None


class _Run:
    def __init__(self, folder: Path, seed: int, schedule: list[Fault], tasks: int, followers: int) -> None:
        self._folder = folder
        self._schedule = schedule
        self._parts = Parts(folder, seed, tasks)
        self._views: BinaryIO = (folder / VIEWS).open("wb")
        pace = Pace(visit=max(USUAL.visit, followers / VISITS_A_SECOND), away_max=USUAL.away_max, all=USUAL.all)
        self._crowd = Crowd(self._parts.client_origins, self._record, seed, pace)
        self._faults = Faults(self._parts, self._crowd)
        self._load = Load(self._parts, self._crowd, tasks, followers, seed)
        self._tally = Tally(seed)
        self._struck = 0

    def _record(self, follow: Follow) -> None:
        self._views.write(msgspec.json.encode(follow) + b"\n")

    async def run(self) -> tuple[Figures, list[Defect]]:
        mine = asyncio.current_task()
        assert mine is not None  # noqa: S101  (a runner runs this in one)
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, mine.cancel)
        began = time.monotonic()
        try:
            say("starting Postgres, Redis, two web processes and two dispatchers")
            await self._parts.start()
            say(f"all is up; {len(self._schedule)} faults from now on")
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(loop) for loop in (self._crowd.watch(), self._say_for_ever())]
                loading = group.create_task(self._load.run())
                await self._break_all(group)
                late = await self._settle(loading)
                for task in watching:
                    task.cancel()
            self._views.close()
            log = await self._read_log()
            self._tally.memory("end", self._parts.processes)
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            await self._parts.stop()
            self._views.close()
        say("judging what every client saw")
        defects = late + self._judge(log)
        return self._tally.figures(self._schedule, self._faults, log, defects, time.monotonic() - began), defects

    async def _break_all(self, group: asyncio.TaskGroup) -> None:
        await asyncio.sleep(WARM_SECONDS)
        self._tally.memory("start", self._parts.processes)
        began = asyncio.get_running_loop().time()
        striking = []
        for fault in self._schedule:
            await asyncio.sleep(max(0.0, began + fault.at - asyncio.get_running_loop().time()))
            striking.append(group.create_task(self._faults.strike(fault)))
            self._struck += 1
        await asyncio.gather(*striking)
        for link in self._parts.links.values():
            link.turn("whole")

    async def _settle(self, loading: "asyncio.Task[None]") -> list[Defect]:
        """All is whole: wait until every task has ended, then until everybody has seen it; who had to and did not."""
        say("all is mended; waiting for the tasks to end")
        self._load.ending.set()
        self._crowd.ending = True
        self._parts.generator.hurry()
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        await self._load.look()
        while self._load.open and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            await self._load.look()
        quiet = time.time()
        await asyncio.sleep(QUIET_SECONDS)
        late = self._crowd.late(quiet)
        deadline = time.monotonic() + RETURN_SECONDS_MAX
        while not self._have_seen_all() and time.monotonic() < deadline:  # noqa: ASYNC110  (many clients, one look)
            await asyncio.sleep(0.05)
        self._crowd.quit()
        await loading
        return late

    def _have_seen_all(self) -> bool:
        """Clients that were away come back after a while; those that follow all tasks never end."""
        return all(f.follow.task is None and f.cursor >= self._load.seq for f in self._load.under_way)

    async def _read_log(self) -> Log:
        connection = await self._parts.admin()
        try:
            rows = await connection.fetch(
                """select task_id, version, status_version, status, attempt, owner_seq, extract(epoch from at)::float8
                     from public.task_events"""
            )
        finally:
            connection.terminate()
        return Log(Change(*row) for row in rows)

    def _judge(self, log: Log) -> list[Defect]:
        """Follow by follow: what they saw together may not fit into memory."""
        defects = judge_log(log) + judge_gaps(log)
        decode = msgspec.json.Decoder(Follow).decode
        with (self._folder / VIEWS).open("rb") as views:
            for line in views:
                follow = decode(line)
                self._tally.note(follow)
                defects += judge(follow, log)
        return defects

    async def _say_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SAY_SECONDS)
            say(
                f"{self._struck} of {len(self._schedule)} faults, "
                f"{self._crowd.events} events, {self._load.open} tasks open"
            )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, without the groups around it."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _raise_file_limit(followers: int) -> None:
    """Each follower is three sockets here: its own, and the two of its link; as many again while a link is stalled.

    A client gives up a silent connection and opens another, but the first one's ends are kept until the link is mended.
    """
    needed = 3 * followers + 2_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.ClickException(f"{followers} followers need {needed} open files, but the limit is {hard}")
    wanted = max(soft, 4 * needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def say(text: str) -> None:
    """Progress, beside the figures."""
    click.echo(f"… {text}", err=True)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
