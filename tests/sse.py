"""A client for server-sent events, as strict as a browser: it only knows what the stream says."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

STREAM_SECONDS_MAX = 60.0


@dataclass
class Event:
    event: str = "message"
    id: str | None = None
    data: Any = None
    retry: int | None = None

    @property
    def is_change(self) -> bool:
        return self.event in ("status", "progress")


async def lines(text: AsyncIterator[str]) -> AsyncIterator[str]:
    """Lines as the standard of event streams has them: U+2028 and its like do not end one."""
    rest = ""
    async for piece in text:
        *whole, rest = re.split(r"\r\n|\n|\r", rest + piece)
        for line in whole:
            yield line


async def parse(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Events with data, and those that only set `retry`; comments are passed over."""
    event = Event()
    async for line in lines:
        if not line:
            if event.data is not None or event.retry is not None:
                if event.data is not None:
                    event.data = json.loads(event.data)
                yield event
            event = Event()
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                event.event = value
            case "id":
                event.id = value
            case "data":
                event.data = value if event.data is None else f"{event.data}\n{value}"
            case "retry":
                event.retry = int(value)


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient, query: str, headers: Mapping[str, str] | None = None
) -> AsyncIterator[AsyncIterator[Event]]:
    """Open `/api/generate/events?query` and iterate over its events until the server ends it."""
    async with (
        # Heartbeats keep the client's own time-out from ending a test whose event never comes.
        asyncio.timeout(STREAM_SECONDS_MAX),
        client.stream("GET", f"/api/generate/events?{query}", headers=headers) as response,
    ):
        assert response.status_code == 200, (response.status_code, await response.aread())
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield parse(lines(response.aiter_text()))


async def changes(client: httpx.AsyncClient, query: str, headers: Mapping[str, str] | None = None) -> list[Event]:
    """All changes of a stream that ends by itself."""
    async with stream(client, query, headers) as events:
        return [event async for event in events if event.is_change]


def check_followed(seen: list[Event], after: int = 0) -> None:
    """What every follower of one task may rely on: rising versions, no change of status skipped, the end last."""
    last = after
    for event in seen:
        task = event.data
        assert event.id == str(task["version"])
        assert task["version"] > last, f"version {task['version']} after {last}"
        if last:
            skipped = task["version"] > last + 1 and last < task["statusVersion"] < task["version"]
            assert not skipped, f"status version {task['statusVersion']} skipped between {last} and {task['version']}"
        last = task["version"]
    ended = [event.data["status"] in ("completed", "failed") for event in seen]
    assert not any(ended[:-1]), "something came after the end"
