"""A bus that runs, and what it delivers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from server.metrics import Metrics
from server.push import hub
from server.push.bus import RedisBus
from server.push.publisher import Channels
from server.tasks.snapshot import TaskChange
from server.tasks.state import State
from tests.push.world import change_of


def change(task_id: str, version: int = 1) -> TaskChange:
    return change_of(task_id, State(version=version, status_version=version), version)


async def send(out: Channels, *changes: TaskChange) -> None:
    """Publish them; as in the process, it may not last."""
    async with asyncio.timeout(5):
        await out.send(changes)


class Heard:
    """What a bus delivers, once it runs."""

    def __init__(self, url: str, prefix: str = "") -> None:
        self.metrics = Metrics()
        self.bus = RedisBus(url, prefix, self.metrics)
        self.items: list[tuple[str, hub.Item]] = []
        self.times_connected = 0
        self._more = asyncio.Event()

    def deliver(self, topic: str, item: hub.Item) -> None:
        self.items.append((topic, item))
        self._more.set()

    def connected(self) -> None:
        self.times_connected += 1
        self._more.set()

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._more.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), 0.05)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Heard"]:
        task = asyncio.create_task(self.bus.run(self.deliver, self.connected))
        try:
            await self.until(lambda: self.bus.connected or task.done())
            if task.done():
                task.result()
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
