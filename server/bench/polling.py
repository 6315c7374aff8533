"""What is replaced, in the same run: clients that ask for their task once a second until it has ended."""

import asyncio
import time
from collections.abc import Sequence

import httpx

from server.bench import machine
from server.bench.callers import callback
from server.bench.figures import Polling
from server.bench.machine import CannotMeasure
from server.bench.push import Say
from server.bench.stage import Process, Stage, Task
from server.bench.times import times

CLIENTS = 200
AT_ONCE = 50
ASKING_SECONDS = 4.0
ENDING_SECONDS = 2.0
SEEING_SECONDS_MAX = 20.0


def measure_polling(stage: Stage, web: Process, say: Say) -> Polling:
    """Raises CannotMeasure."""
    tasks = stage.people(CLIENTS)
    say(f"{len(tasks)} clients asking once a second, for comparison")
    return asyncio.run(_measure(web, tasks))


async def _measure(web: Process, tasks: Sequence[Task]) -> Polling:
    poller = _Poller(web.origin, tasks)
    await poller.run(1.0)  # connections, and what is made once
    before = machine.cpu_seconds(web.pid)
    await poller.run(ASKING_SECONDS)
    cpu = machine.cpu_seconds(web.pid) - before
    ending = asyncio.create_task(_end(web, tasks))
    await poller.run(SEEING_SECONDS_MAX)
    sent = await ending
    late = times([poller.seen[task.id] - sent[task.id] for task in tasks if task.id in poller.seen])
    await poller.close()
    if late is None or late.count < len(tasks):
        raise CannotMeasure(f"of {len(tasks)} polling clients {len(poller.seen)} saw the end of their task")
    return Polling(len(tasks), cpu / ASKING_SECONDS / len(tasks) * 1e6, late.p50_ms, late.p99_ms)


async def _end(web: Process, tasks: Sequence[Task]) -> dict[str, float]:
    """One after the other; when each was sent."""
    reader, writer = await asyncio.open_connection(*web.address)
    sent: dict[str, float] = {}
    pause = ENDING_SECONDS / len(tasks)
    for task in tasks:
        await asyncio.sleep(pause)
        sent[task.id] = time.perf_counter()
        writer.write(callback(web, task))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
    writer.close()
    return sent


class _Poller:
    """`seen` holds when the end of a task was seen, by its id."""

    def __init__(self, origin: str, tasks: Sequence[Task]) -> None:
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        self._client = httpx.AsyncClient(base_url=origin, trust_env=False, timeout=30, limits=limits)
        self._tasks = tasks
        self.seen: dict[str, float] = {}

    async def run(self, seconds: float) -> None:
        until = time.perf_counter() + seconds

        async def one(number: int, task: Task) -> None:
            await asyncio.sleep(number / len(self._tasks))
            headers = {"Authorization": f"Bearer {task.token}"}
            while task.id not in self.seen and time.perf_counter() < until:
                asked = time.perf_counter()
                answer = await self._client.get("/api/generate/status", params={"taskId": task.id}, headers=headers)
                if answer.json()["status"] == "completed":
                    self.seen[task.id] = time.perf_counter()
                await asyncio.sleep(max(0.0, asked + 1.0 - time.perf_counter()))

        await asyncio.gather(*(one(number, task) for number, task in enumerate(self._tasks)))

    async def close(self) -> None:
        await self._client.aclose()
