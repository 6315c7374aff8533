"""Asks a QStash API what became of a message: the message, its log, its dead letter, and that of its callback.

The 404 of a message alone says nothing: a delivered one is forgotten, too. What a dead letter says is trusted as a
signed callback is: it comes from the API that we are configured for, over our token, and whoever has that token can
have any callback signed.
"""

import asyncio
import base64
import re
import time

import msgspec
from qstash import AsyncQStash
from qstash.dlq import DlqMessage
from qstash.errors import DailyMessageLimitExceededError, QStashError, RateLimitExceededError

from server.dispatch.news import Delivery
from server.dispatch.verdict import Found

LOOKUP_SECONDS_MAX = 15.0
LOG_ENTRIES_MAX = 10
# One at a time: each may carry a picture.
LETTERS_MAX = 8
LIMITED_SECONDS_DEFAULT = 10.0
LIMITED_SECONDS_MAX = 60.0
ENDS = ("DELIVERED", "FAILED", "CANCELED")


class Away(Exception):
    """The API did not answer, or not so that it could be understood; the message is for the log."""


class Limited(Away):
    """It asks us to come back later, in `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"rate limit, for {seconds:.0f} s")
        self.seconds = seconds


class Lookup:
    """`client` is the SDK's, without retries of its own."""

    def __init__(self, client: AsyncQStash) -> None:
        self._client = client

    async def find(self, message_id: str, callback_url: str | None) -> Found:
        """What is known of the message, and of its callback, which was to go to this URL. Raises Away and Limited."""
        try:
            async with asyncio.timeout(LOOKUP_SECONDS_MAX):
                return await self._find(message_id, callback_url)
        except (RateLimitExceededError, DailyMessageLimitExceededError) as error:
            raise Limited(limited_seconds(error.reset, time.time())) from error
        except Exception as error:  # whatever a client library makes of a strange answer
            text = f"{type(error).__name__}: {error}"[:300]
            raise Away("".join(c if c.isprintable() else " " for c in text)) from error

    async def _find(self, message_id: str, callback_url: str | None) -> Found:
        is_there = True
        try:
            message = await self._client.message.get(message_id)
            callback_url = message.callback or callback_url
        except QStashError as error:
            if not str(error).startswith("Request failed with status: 404"):
                raise
            is_there = False
        logs = (await self._client.log.list(filter={"message_id": message_id}, count=LOG_ENTRIES_MAX)).logs
        logs = [entry for entry in logs if entry.message_id == message_id]
        latest = next((entry for entry in logs if entry.state.value in ENDS), logs[0] if logs else None)
        state = latest.state.value if latest else None
        dead = None if state == "DELIVERED" else await self._dead_letter(message_id)
        told = await self._untold(callback_url) if callback_url else None
        return Found(
            is_there=is_there, state=state, at=int(latest.time) / 1000 if latest else 0.0, dead=dead, told=told
        )

    async def _dead_letter(self, message_id: str) -> Delivery | None:
        letters = (await self._client.dlq.list(filter={"message_id": message_id}, count=1)).messages
        for letter in letters:
            if letter.message_id == message_id:
                answer = base64.b64encode((letter.response_body or "").encode()).decode()
                body = letter.response_body_base64 or answer
                return Delivery(status=letter.response_status, body=body, dlq_id=letter.dlq_id)
        return None

    async def _untold(self, callback_url: str) -> Delivery | None:
        """Of the callbacks that could not be delivered the one with the result, else that of the last delivery."""
        last, cursor = None, None
        for _ in range(LETTERS_MAX):
            page = await self._client.dlq.list(filter={"url": callback_url}, cursor=cursor, count=1)
            for letter in page.messages:
                told = _told(letter) if letter.url == callback_url else None
                if told is not None and told.is_good:
                    return told
                last = last or (told if told is not None and told.is_last else None)
            cursor = page.cursor
            if not cursor:
                break
        return last


def _told(letter: DlqMessage) -> Delivery | None:
    """None where the body is not kept, or hidden."""
    try:
        body = base64.b64decode(letter.body_base64) if letter.body_base64 else (letter.body or "").encode()
        told = msgspec.json.decode(body, type=Delivery)
        base64.b64decode(told.body or "", validate=True)
    except (msgspec.MsgspecError, ValueError):
        return None
    return told


def limited_seconds(reset: str | None, now: float) -> float:
    """How long to keep away: `reset` is in seconds, or a time in seconds or milliseconds since 1970."""
    if reset is None or not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,6})?", reset):
        return LIMITED_SECONDS_DEFAULT
    value = float(reset)
    if value > 1e11:
        value /= 1000
    if value > 1e8:
        value -= now
    return min(LIMITED_SECONDS_MAX, max(1.0, value))
