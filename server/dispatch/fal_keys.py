"""The public keys that fal signs webhooks with, fetched when they are needed and kept for a day at most, as fal asks.

A signature that no known key fits may be of a new key: they are fetched again, but not more often than every half
minute, whoever sends what.
"""

import asyncio
import time

import httpx
import structlog

from server.dispatch.webhook_signature import PublicKeys, read_keys

log = structlog.get_logger()

KEPT_SECONDS_MAX = 86_400.0
AGAIN_SECONDS_MIN = 30.0
FETCH_SECONDS_MAX = 5.0
BYTES_MAX = 65_536


class KeysUnavailable(Exception):
    """The keys cannot be had now."""


class FalKeys:
    """`current()`; after a failure `renewed()`. One fetch at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: PublicKeys | None = None
        self._fetched_at = self._tried_at = -KEPT_SECONDS_MAX
        self._fetching = asyncio.Lock()

    async def current(self) -> PublicKeys:
        """Raises KeysUnavailable."""
        async with self._fetching:
            if self._keys is None or time.monotonic() - self._fetched_at > KEPT_SECONDS_MAX:
                await self._fetch()
            if self._keys is None:
                raise KeysUnavailable
            return self._keys

    async def renewed(self, known: PublicKeys) -> PublicKeys:
        """Newer keys than these, or the same when there can be none yet."""
        async with self._fetching:
            if self._keys == known:
                await self._fetch()
            return self._keys or known

    async def _fetch(self) -> None:
        now = time.monotonic()
        if now - self._tried_at < AGAIN_SECONDS_MIN:
            return
        self._tried_at = now
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
            self._keys, self._fetched_at = read_keys(document), now
        except (httpx.HTTPError, ValueError, TimeoutError) as error:
            log.warning("webhook_keys_unavailable", reason=type(error).__name__)
            if now - self._fetched_at > KEPT_SECONDS_MAX:
                self._keys = None
