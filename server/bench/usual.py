"""The usual design of the same thing, as a peer: sse-starlette over redis-py's PubSub, a queue for each client.

Written as its libraries' own examples go, and run by uvicorn: no users, no history. A client that does not keep up is
let go of.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator

import redis.asyncio
import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

QUEUE_MAX = 256


class Hub:
    """Hands what Redis says on a channel to the queue of each client that follows it."""

    def __init__(self, url: str) -> None:
        self._pubsub = redis.asyncio.Redis.from_url(url).pubsub()
        self._queues: dict[str, set[asyncio.Queue[str | None]]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}

    async def run(self) -> None:
        await self._pubsub.connect()  # type: ignore[no-untyped-call]  # redis has no annotation there
        while True:
            message = await self._pubsub.get_message(timeout=1.0)
            if message is None:
                continue
            channel = message["channel"].decode()
            if message["type"] == "subscribe":
                self._confirmed[channel].set()
            elif message["type"] == "message":
                text = message["data"].decode()
                for queue in self._queues[channel]:
                    with contextlib.suppress(asyncio.QueueFull):
                        queue.put_nowait(text)

    async def follow(self, channel: str) -> AsyncIterator[ServerSentEvent]:
        queue: asyncio.Queue[str | None] = asyncio.Queue(QUEUE_MAX)
        confirmed = self._confirmed.get(channel)
        self._queues.setdefault(channel, set()).add(queue)
        if confirmed is None:
            confirmed = self._confirmed[channel] = asyncio.Event()
            await self._pubsub.subscribe(channel)
        try:
            await confirmed.wait()
            yield ServerSentEvent("{}", event="sync", id="0", sep="\n")
            number = 0
            while (text := await queue.get()) is not None:
                number += 1
                # On a user's channel the snapshot has its number before it.
                yield ServerSentEvent(text[text.index("{") :], event="progress", id=str(number), sep="\n")
        finally:
            self._queues[channel].discard(queue)


def build(url: str) -> Starlette:
    hub = Hub(url)

    async def events(request: Request) -> Response:
        return EventSourceResponse(hub.follow(request.query_params["channel"]), sep="\n")

    async def ready(_: Request) -> Response:
        return Response()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        listening = asyncio.create_task(hub.run())
        yield
        listening.cancel()

    return Starlette(routes=[Route("/", events), Route("/ready", ready)], lifespan=lifespan)


if __name__ == "__main__":
    config = uvicorn.Config(build(os.environ["REDIS_URL"]), access_log=False, loop="uvloop", log_level="warning")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
