"""`taskbeam verify`: some tasks on a running deployment, followed over every transport, over its public API alone.

Of each task one client a transport follows steadily, and some go away and come back over another. What they saw is
judged as in a chaos run, but against what they saw together: the log of the far end cannot be read from here.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable

import click
import msgspec
import uvloop

from server.clients.crowd import Crowd, Pace
from server.clients.followers import STATUS, Follower
from server.clients.judge import Defect, judge, judge_log
from server.clients.origin import Origin
from server.clients.streaming import BrokenAnswer, fetch
from server.clients.times import times_of
from server.clients.views import TRANSPORTS, Follow, Log, Seen, Transport
from server.verify import outside
from server.verify.final import Final
from server.verify.reach import NotReached, ask, reach, told
from server.verify.report import Report

RESTLESS = 2  # clients of each task that come and go
RESTLESS_PACE = Pace(visit=1.5, away_max=1.0, all=(86_400.0, 86_400.0))
JOIN_SECONDS_MAX = 3.0
# When all tasks have ended, who was away comes back and sees it.
SETTLE_SECONDS_MAX = 8.0
CLEAN_SECONDS_MAX = 15.0
LOOK_SECONDS = 0.05
SAY_SECONDS = 5.0
PROMPT_CHARACTERS_SHOWN = 60


class Plan(msgspec.Struct, frozen=True):
    """So many tasks with this prompt; they have `seconds` to end. `keep`: they are not deleted at the end."""

    tasks: int
    seconds: float
    prompt: str
    seed: int
    keep: bool


def run_verify(plan: Plan, origin: Origin) -> Report:
    """Run it to its end. Raises NotReached, and KeyboardInterrupt or CancelledError when told to stop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_told(Verify(plan, origin, say)))


async def _until_told(verify: "Verify") -> Report:
    mine = asyncio.current_task()
    assert mine is not None  # noqa: S101  (a runner runs this in one)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, mine.cancel)
    return await verify.run()


class Verify:
    """`await run()`; also when that is cancelled, the tasks are deleted before it returns."""

    def __init__(self, plan: Plan, origin: Origin, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._origin = origin
        self._say = say
        self._follows: list[Follow] = []
        self._crowd = Crowd([origin], self._follows.append, plan.seed, RESTLESS_PACE)
        self._running: dict[Follower, asyncio.Task[None]] = {}
        self._creating: set[asyncio.Task[None]] = set()
        self._tasks: dict[str, None] = {}
        self._refused: list[str] = []
        self._checks: Counter[str] = Counter()
        self._defects: list[Defect] = []
        self._notes: list[str] = []

    async def run(self) -> Report:
        """Raises NotReached."""
        began = time.monotonic()
        version = await reach(self._origin)
        self._announce(version)
        watching = asyncio.create_task(self._crowd.watch())
        try:
            await self._follow()
            await self._until_ended(time.monotonic() + self._plan.seconds)
            await self._await_heartbeat(began + self._plan.seconds)
            await self._quit()
            finals = [Final(self._origin, task) for task in self._tasks]
            await asyncio.gather(*(final.examine() for final in finals))
        finally:
            watching.cancel()
            await self._quit()
            await self._clean()
        return self._report(version, finals, time.monotonic() - began)

    def _announce(self, version: str) -> None:
        plan = self._plan
        cut = len(plan.prompt) > PROMPT_CHARACTERS_SHOWN
        prompt = plan.prompt[:PROMPT_CHARACTERS_SHOWN] + "…" * cut
        after = "they stay" if plan.keep else "they are deleted at the end"
        self._say(f"{self._origin.url} is Taskbeam {version}; seed {plan.seed}")
        self._say(f"{plan.tasks} tasks with the prompt {prompt!r}, each a run of its generator at its price; {after}")

    # Who follows what

    async def _follow(self) -> None:
        """All tasks first, so that those to come are owed whole; then each as soon as it was accepted."""
        for transport in ("sse", "websocket"):
            self._begin(None, transport, steady=True)
            self._begin(None, transport, steady=False)
        deadline = time.monotonic() + JOIN_SECONDS_MAX
        while not all(map(_has_joined, self._running)) and time.monotonic() < deadline:  # noqa: ASYNC110  (many, one look)
            await asyncio.sleep(LOOK_SECONDS)
        self._creating = {asyncio.create_task(self._create()) for _ in range(self._plan.tasks)}
        await asyncio.wait(self._creating)
        if not self._tasks:
            raise NotReached(self._refused[0])
        self._defects += [Defect("refused", "none", "a task to be accepted", why) for why in self._refused]

    async def _create(self) -> None:
        body = msgspec.json.encode({"prompt": self._plan.prompt})
        try:
            answer = await ask(self._origin, "POST", "/api/generate", body)
            task = str(msgspec.json.decode(answer.body)["taskId"]) if answer.status == 202 else ""
        except (NotReached, msgspec.MsgspecError, LookupError, TypeError) as error:
            self._refused.append(f"the task was not accepted: {error}")
            return
        if not task:
            self._refused.append(f"the task was not accepted: {told(self._origin, answer)}")
            return
        self._tasks[task] = None
        for transport in TRANSPORTS:
            self._begin(task, transport, steady=True)
        for _ in range(RESTLESS):
            self._begin(task, self._crowd.draw.choice(TRANSPORTS), steady=False)

    def _begin(self, task: str | None, transport: Transport, *, steady: bool) -> None:
        follower = Follower(self._crowd, task, first=transport, steady=steady)
        self._running[follower] = asyncio.create_task(follower.run())

    # Until when

    async def _until_ended(self, deadline: float) -> None:
        """Until every task has ended and everybody has seen it, for as long as that may take."""
        said = time.monotonic()
        while len(ended := self._ended()) < len(self._tasks) and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            if time.monotonic() > said + SAY_SECONDS:
                said = time.monotonic()
                self._say(f"{len(ended)} of {len(self._tasks)} tasks have ended, {self._crowd.events} events seen")
        self._say(f"{len(ended)} of {len(self._tasks)} tasks have ended; waiting for everybody to see it")
        self._crowd.ending = True
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while not self._have_seen(self._ended()) and time.monotonic() < deadline:  # noqa: ASYNC110  (many, one look)
            await asyncio.sleep(LOOK_SECONDS)

    def _ended(self) -> set[str]:
        return {follower.follow.task for follower in self._running if follower.ended and follower.follow.task}

    def _have_seen(self, ended: set[str]) -> bool:
        """Whether all that follow one of these are done with it, and all that follow all know of each."""
        for follower, running in self._running.items():
            follow = follower.follow
            if follow.task is None and not ended <= {seen.task for seen in follow.seen if seen.is_terminal}:
                return False
            if follow.task in ended and not running.done():
                return False
        return True

    async def _await_heartbeat(self, deadline: float) -> None:
        """Of the steady stream of all tasks, the first that was begun."""
        leg = next(iter(self._running)).follow.legs[0]
        until = leg.at + outside.HEARTBEAT_SECONDS_MAX + 1
        if not leg.heartbeats and deadline - time.monotonic() < until - time.time():
            self._notes.append("--seconds left no time for a heartbeat, which comes every 15 s")
            return
        if not leg.heartbeats:
            self._say("waiting for a heartbeat, which comes every 15 s")
        while not leg.heartbeats and not leg.lasted_seconds and time.time() < until:  # noqa: ASYNC110  (not an event)
            await asyncio.sleep(LOOK_SECONDS)

    async def _quit(self) -> None:
        self._crowd.quit()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=CLEAN_SECONDS_MAX)

    # What is left behind, and what is said

    async def _clean(self) -> None:
        """Also of a task that was being accepted when this was told to stop."""
        if self._creating:
            await asyncio.wait(self._creating, timeout=CLEAN_SECONDS_MAX)
        if self._plan.keep or not self._tasks:
            return
        self._say(f"deleting {len(self._tasks)} tasks")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEAN_SECONDS_MAX):
                await asyncio.gather(*map(self._delete, self._tasks))
        left = len(self._tasks) - self._checks["deleted"]
        if left:
            self._say(f"{left} tasks could not be deleted")

    async def _delete(self, task: str) -> None:
        saw = "no answer"
        with contextlib.suppress(OSError, TimeoutError, BrokenAnswer):
            for method, target in (("DELETE", f"/api/generate?taskId={task}"), ("GET", f"{STATUS}?taskId={task}")):
                answer = await fetch(self._origin, method, target, seconds=CLEAN_SECONDS_MAX)
                saw = f"HTTP {answer.status} to {method}"
                if answer.status != (200 if method == "DELETE" else 404):
                    break
            else:
                self._checks["deleted"] += 1
                return
        self._defects.append(Defect("refused", task, "to be deleted, and gone", saw))

    def _report(self, version: str, finals: list[Final], seconds: float) -> Report:
        log = outside.log_of(self._follows, self._tasks)
        ended = outside.ends(self._follows, self._tasks)
        self._judge(log, all_ended=len(ended) >= len(self._tasks))
        for final in finals:
            self._defects += final.defects
            self._checks += final.checks
        late = outside.lateness(self._follows, ended)
        self._defects += outside.judge_lateness(late)
        legs = [leg for follow in self._follows for leg in follow.legs]
        begun = [leg.begun_seconds for leg in legs if leg.begun_seconds is not None]
        self._checks["connections"] += len(legs)
        self._checks["resumed"] += sum(leg.cursor > 0 for leg in legs)
        self._checks["joins"] += sum(leg.recovered is not None for leg in legs)
        self._checks["heartbeats"] += sum(leg.heartbeats for leg in legs)
        self._checks["304"] += sum(leg.unchanged for leg in legs)
        self._checks["streams"] += sum(first <= outside.FIRST_BYTES_SECONDS_MAX for first in begun)
        states = Counter(log.of(task)[-1].status for task in self._tasks)
        self._tell_failures(finals)
        return Report(
            url=self._origin.url,
            version=version,
            seed=self._plan.seed,
            seconds=round(seconds, 1),
            tasks={
                "completed": states["completed"],
                "failed": states["failed"],
                "open": len(self._tasks) - states["completed"] - states["failed"],
            },
            checks=dict(self._checks),
            first_bytes_ms=times_of(begun),
            late_ms={name: times_of(found) for name, found in _by_transport(late).items()},
            defects=self._defects,
            notes=self._notes,
        )

    def _judge(self, log: Log, all_ended: bool) -> None:
        self._defects += judge_log(log)
        for seen in self._follows:
            follow = outside.of_tasks(seen, self._tasks) if seen.task is None else seen
            # Of an open task nobody can be said to have seen the newest: they left one after the other.
            follow.left = follow.left or not (all_ended if follow.task is None else _is_over(log, follow.task))
            self._checks["changes"] += len(follow.seen)
            self._defects += judge(follow, log) + outside.judge_connections(follow)
        self._defects += outside.judge_transports(self._follows)

    def _tell_failures(self, finals: list[Final]) -> None:
        """A task that has failed has ended as it should; but who asked wants to know."""
        told = Counter(str(final.task["error"])[:200] for final in finals if final.task and final.task.get("error"))
        self._notes += [f"{count} tasks failed: {error}" for error, count in told.items()]


def _has_joined(follower: Follower) -> bool:
    return any(leg.recovered is not None for leg in follower.follow.legs)


def _is_over(log: Log, task: str) -> bool:
    return log.of(task)[-1].status in ("completed", "failed")


def _by_transport(late: Iterable[tuple[Follow, Seen, float]]) -> dict[str, list[float]]:
    names = [*TRANSPORTS, "sse (all tasks)", "websocket (all tasks)"]
    found: dict[str, list[float]] = {name: [] for name in names}
    for follow, seen, seconds in late:
        transport = follow.legs[seen.leg].transport
        name = transport if follow.task is not None else f"{transport.removesuffix('_after')} (all tasks)"
        found[name].append(seconds)
    return found


def say(line: str) -> None:
    """Progress, beside the report."""
    click.echo(f"… {line}", err=True)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
