"""A stand-in for Upstash's service, written from its documentation and sharing no code with our dispatcher.

It is as awkward as the real one may be: ids of another form, times as strings, a signature with the next key now and
then, callbacks that come late, in the wrong order, and more than once.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import secrets
import time
from typing import Any

import httpx
import jwt

from tests.provider import Memory, Remembered
from tests.receiver import Receiver, Reply, Request

PUBLISH = "/v2/publish/"


class Upstash:
    """Publishes below `receiver`; `reach` maps an origin as it is told to one where it really is (a tunnel)."""

    def __init__(self, receiver: Receiver, destination: str, token: str, keys: tuple[str, str]) -> None:
        self.receiver = receiver
        self.reach: dict[str, str] = {}
        self.published: list[Request] = []
        self.answers: list[tuple[str, int, str]] = []  # of each callback: kind, status, body
        self.memory = Memory(receiver, token)
        self.loses_callbacks = False  # they go to the dead letters instead
        self._token = token
        self._keys = itertools.cycle(keys)
        self._ids: dict[str, str] = {}
        self._work: set[asyncio.Task[None]] = set()
        receiver.on(PUBLISH + destination, self._publish)

    async def done(self) -> None:
        """When all that was published is over and told."""
        while self._work:
            await asyncio.gather(*self._work)

    async def _publish(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self._token}":
            return Reply(401, b'{"error":"invalid token"}')
        url = request.target.removeprefix(PUBLISH)
        self.published.append(request)
        wish = request.headers.get("upstash-deduplication-id") or secrets.token_hex(8)
        if wish in self._ids:
            return self._json(202, {"messageId": self._ids[wish], "url": url, "deduplicated": True})
        message_id = self._ids[wish] = "msg_" + base64.b32encode(secrets.token_bytes(40)).decode()
        self.memory.messages[message_id] = Remembered(url, request.headers["upstash-callback"], body=request.body)
        task = asyncio.create_task(self._deliver(message_id, url, request))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return self._json(200, {"messageId": message_id, "url": url})

    @staticmethod
    def _json(status: int, body: Any) -> Reply:
        return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    async def _deliver(self, message_id: str, url: str, request: Request) -> None:
        retries = int(request.headers["upstash-retries"])
        forwarded = {
            name.removeprefix("upstash-forward-"): value
            for name, value in request.headers.items()
            if name.startswith("upstash-forward-")
        }
        news: list[dict[str, Any]] = []
        for retried in range(retries + 1):
            own = {
                "Upstash-Message-Id": message_id,
                "Upstash-Retried": str(retried),
                "Content-Type": "application/json",
            }
            answer = await self._send(url, request.body, {**forwarded, **own})
            news.append(
                {
                    "status": answer.status_code,
                    "header": {name.title(): [value] for name, value in answer.headers.items()},
                    "body": base64.b64encode(answer.content).decode(),
                    "retried": retried,
                    "maxRetries": retries,
                    "sourceMessageId": message_id,
                    "url": url,
                    "method": "POST",
                    "sourceHeader": {"Content-Type": ["application/json"]},
                    "sourceBody": base64.b64encode(request.body).decode(),
                    "notBefore": str(int(time.time() * 1000)),
                    "createdAt": str(int(time.time() * 1000)),
                    "callerIP": "203.0.113.9",
                }
            )
            if answer.is_success:
                break
        known = self.memory.messages[message_id]
        known.state, known.at = ("DELIVERED" if answer.is_success else "FAILED"), time.time()
        known.dead = None if answer.is_success else (answer.status_code, answer.content)
        # The news of the last delivery overtakes that of the earlier ones, and is told twice.
        for told in (news[-1], *reversed(news)):
            await self._tell("callback", request.headers["upstash-callback"], told)
        if not 200 <= news[-1]["status"] < 300:
            dead = {**news[-1], "dlqId": f"{int(time.time() * 1000)}-0"}
            for _ in range(2):
                await self._tell("failure", request.headers["upstash-failure-callback"], dead)

    async def _tell(self, kind: str, url: str, body: dict[str, Any]) -> None:
        if self.loses_callbacks:
            self.memory.add(url=url, state="FAILED", dead=(503, b"away"), body=json.dumps(body).encode())
            return
        answer = await self._send(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        self.answers.append((kind, answer.status_code, answer.text))

    async def _send(self, url: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        signature = self._sign(url, body)
        told = httpx.URL(url)
        origin = str(told.copy_with(raw_path=b"/")).rstrip("/")
        here = httpx.URL(self.reach.get(origin, origin)).copy_with(raw_path=told.raw_path)
        given = {
            **headers,
            "Upstash-Signature": signature,
            "Host": told.netloc.decode(),
            "User-Agent": "Upstash-QStash",
        }
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            return await client.post(here, content=body, headers=given)

    def _sign(self, url: str, body: bytes) -> str:
        now = int(time.time())
        claims = {
            "iss": "Upstash",
            "sub": url,
            "exp": now + 300,
            "nbf": now,
            "iat": now,
            "jti": "jwt_" + secrets.token_hex(10),
            "body": base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode(),
        }
        return jwt.encode(claims, next(self._keys), algorithm="HS256")
