"""Public keys that somebody publishes at a URL: fetched when they are needed, kept, renewed now and then.

What no known key fits may be of a new key: they are fetched again, but not more often than every half minute, whoever
sends what. Who has keys does not wait for newer ones, and keeps them while they cannot be had.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import httpx
import structlog

log = structlog.get_logger()

Keys = TypeVar("Keys")

AGAIN_SECONDS_MIN = 30.0
FETCH_SECONDS_MAX = 5.0
BYTES_MAX = 65_536


class KeysUnavailable(Exception):
    """The keys cannot be had now."""


class PublishedKeys(Generic[Keys]):
    """`current()`; where they do not fit `renewed()`. One fetch at a time.

    `read` makes keys of the document, or raises ValueError. After `fresh_seconds` newer ones are fetched on the side;
    after `kept_seconds_max` (None: for ever) the old ones are no longer used.
    """

    def __init__(
        self, url: str, read: Callable[[bytes], Keys], *, fresh_seconds: float, kept_seconds_max: float | None
    ) -> None:
        self._url = url
        self._read = read
        self._fresh_seconds = fresh_seconds
        self._kept_seconds_max = kept_seconds_max
        self._keys: Keys | None = None
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()
        self._aside: asyncio.Task[None] | None = None

    async def current(self) -> Keys:
        """Raises KeysUnavailable."""
        keys = self._usable()
        if keys is None:
            async with self._fetching:
                if self._usable() is None:
                    await self._fetch()
                keys = self._usable()
            if keys is None:
                raise KeysUnavailable
        elif self._stale() and self._may_ask() and (self._aside is None or self._aside.done()):
            self._aside = asyncio.get_running_loop().create_task(self._fetch_aside())
        return keys

    async def renewed(self, known: Keys) -> Keys:
        """Newer keys than these, or the same when there can be none yet."""
        async with self._fetching:
            if self._keys is known:
                await self._fetch()
            return self._keys or known

    @property
    def away(self) -> bool:
        """Whether they could not be had when they were last asked for."""
        return self._tried_at > self._fetched_at

    def _usable(self) -> Keys | None:
        kept = self._kept_seconds_max
        return self._keys if kept is None or time.monotonic() - self._fetched_at <= kept else None

    def _stale(self) -> bool:
        return time.monotonic() - self._fetched_at > self._fresh_seconds

    def _may_ask(self) -> bool:
        return time.monotonic() - self._tried_at >= AGAIN_SECONDS_MIN

    async def _fetch_aside(self) -> None:
        async with self._fetching:
            await self._fetch()

    async def _fetch(self) -> None:
        if not self._may_ask():
            return
        self._tried_at = time.monotonic()
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS_MAX),
                httpx.AsyncClient(trust_env=False) as client,
                client.stream("GET", self._url) as response,
            ):
                response.raise_for_status()
                document = b""
                async for chunk in response.aiter_bytes():
                    document += chunk
                    if len(document) > BYTES_MAX:
                        raise ValueError("too large")
            keys = self._read(document)
        except Exception as error:  # also of what reads it: whoever publishes is not to be able to stop us
            log.warning("keys_unavailable", host=httpx.URL(self._url).host, reason=type(error).__name__)
            return
        self._fetched_at = self._tried_at
        if keys != self._keys:  # the same ones stay the same object, for whoever keeps what they have verified
            self._keys = keys
