"""Keeps so many tasks open at once, and a crowd of followers on them, until told to stop."""

import asyncio
import contextlib
import random
from collections import deque

import msgspec

from server.chaos.parts import Parts
from server.clients.crowd import Crowd
from server.clients.followers import Follower
from server.clients.streaming import BrokenAnswer, fetch
from server.db import DATABASE_ERRORS

CREATE_SECONDS_MAX = 8.0
LOOK_SECONDS = 0.25
A_STEP_MAX = 10
# One in so many follows all tasks; not more than these, since each is told of every change.
ALL_SHARE = 20
ALL_MAX = 25
# Which tasks a client may choose from: so many times those that are open, the newest ones.
KNOWN = 1.5
NEWEST = 5


class Load:
    """`await run()` until cancelled or `ending` is set; `open` is what Postgres said last."""

    def __init__(self, parts: Parts, crowd: Crowd, tasks: int, followers: int, seed: int) -> None:
        self._parts = parts
        self._crowd = crowd
        self._tasks = tasks
        self._followers = followers
        self._draw = random.Random(seed)  # noqa: S311  (spreads clients)
        self._known: deque[str] = deque(maxlen=int(tasks * KNOWN) or 1)
        self._creating: set[asyncio.Task[None]] = set()
        self._any = asyncio.Event()
        self.ending = asyncio.Event()
        self.accepted = 0
        self.open = 0
        self.seq = 0
        self.under_way: set[Follower] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._create_for_ever())
            for number in range(self._followers):
                everything = number % ALL_SHARE == 0 and number // ALL_SHARE < ALL_MAX
                group.create_task(self._follow_for_ever(everything))

    async def look(self) -> bool:
        """Ask Postgres how many tasks are open; whether it has answered."""
        with contextlib.suppress(*DATABASE_ERRORS):
            connection = await self._parts.admin()
            try:
                found = await connection.fetchrow(
                    """select (select count(*) from public.image_generations
                                where status in ('pending', 'processing')) as open,
                              (select coalesce(max(seq), 0) from taskbeam.owners) as seq"""
                )
            finally:
                connection.terminate()
            self.open, self.seq = (found["open"], found["seq"]) if found else (0, 0)
            return True
        return False

    async def _create_for_ever(self) -> None:
        while not self.ending.is_set():
            if await self.look():
                for _ in range(min(A_STEP_MAX, self._tasks - self.open - len(self._creating))):
                    task = asyncio.create_task(self._create())
                    self._creating.add(task)
                    task.add_done_callback(self._creating.discard)
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.gather(*self._creating)

    async def _create(self) -> None:
        origin = self._draw.choice(self._parts.client_origins)
        body = msgspec.json.encode({"prompt": f"picture {self._draw.randrange(10**9)}"})
        headers = {"Content-Type": "application/json"}
        try:
            answer = await fetch(
                origin, "POST", "/api/generate", headers=headers, body=body, seconds=CREATE_SECONDS_MAX
            )
        except (OSError, TimeoutError, BrokenAnswer):
            return
        if answer.status == 202:
            self.accepted += 1
            self._known.append(msgspec.json.decode(answer.body)["taskId"])
            self._any.set()

    def _choose(self) -> str:
        """As pages do, many follow what was just accepted; others look at what has been there for a while."""
        newest = self._known[-1 - self._draw.randrange(min(NEWEST, len(self._known)))]
        return newest if self._draw.random() < 0.6 else self._draw.choice(self._known)

    async def _follow_for_ever(self, everything: bool) -> None:
        await self._any.wait()
        while not self.ending.is_set():
            follower = Follower(self._crowd, None if everything else self._choose())
            self.under_way.add(follower)
            try:
                await follower.run()
            finally:
                self.under_way.discard(follower)
