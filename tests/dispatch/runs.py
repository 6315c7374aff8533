"""A task that was handed on, as QStash was told of it: the tests play QStash and the generator towards a web process.

Signatures are made here with PyJWT alone, from the protocol's description, not by the code that is tested.
"""

import base64
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt

from tests.conftest import Connection
from tests.deployment import CURRENT_KEY
from tests.receiver import Receiver, Reply, Request

GENERATOR = "http://127.0.0.1:9/generator"
PUBLISH = f"/v2/publish/{GENERATOR}"


def sign(url: str, content: bytes, key: str = CURRENT_KEY, **claims: Any) -> str:
    """What Upstash sends in Upstash-Signature; `claims` replace the usual ones, None leaves one out."""
    now = int(time.time())
    usual = {
        "iss": "Upstash",
        "sub": url,
        "iat": now,
        "nbf": now,
        "exp": now + 300,
        "jti": f"jwt_{secrets.token_hex(12)}",
        "body": base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode(),
    }
    said = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(said, key, algorithm="HS256")


def delivery(status: int = 200, answer: Any = None, **fields: Any) -> bytes:
    """The body of a callback; `answer` is what the generator said, as bytes or as something to put in JSON."""
    said = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
    usual = {
        "status": status,
        "header": {"Content-Type": ["application/json"]},
        "body": base64.b64encode(said).decode(),
        "retried": 0,
        "maxRetries": 3,
        "sourceMessageId": "msg_1",
        "url": GENERATOR,
        "method": "POST",
        "sourceHeader": {},
        "sourceBody": "",
        "notBefore": "1700000000000",
        "createdAt": "1700000000000",
        "callerIP": "192.0.2.1",
    }
    return json.dumps({**usual, **fields}).encode()


@dataclass
class Run:
    """One attempt of one task, and what may be said about it."""

    web: str
    task_id: str
    owner: Connection
    callback_url: str
    progress_url: str
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    async def call(self, body: bytes, *, signature: str | None = None, **headers: str) -> httpx.Response:
        """A callback to the URL that QStash was told, signed for it unless a signature is given."""
        signature = sign(self.callback_url, body) if signature is None else signature
        given = {"Upstash-Signature": signature, "Content-Type": "application/json"}
        return await self.send(self.callback_url, body, {**given, **headers})

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """A request to this web process, whatever host the URL names."""
        said = httpx.URL(url)
        here = httpx.URL(self.web).copy_with(raw_path=said.raw_path)
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            return await client.post(here, content=body, headers={**self.headers, **headers})

    async def report(self, token: str | None = None, /, **report: Any) -> httpx.Response:
        token = self.token if token is None else token
        return await self.send(self.progress_url, json.dumps(report).encode(), {"Authorization": f"Bearer {token}"})

    async def outcome(self, body: bytes, **options: Any) -> str:
        """What became of a callback that was taken."""
        answer = await self.call(body, **options)
        assert answer.status_code == 200, answer.text
        assert answer.json()["ok"] is True
        return str(answer.json()["outcome"])

    async def row(self) -> dict[str, Any]:
        row = await self.owner.fetchrow(
            "select *, status::text as status from public.image_generations where task_id = $1", self.task_id
        )
        assert row is not None
        return dict(row)

    async def ended(self) -> tuple[str, str | None, str | None]:
        """Status, result and error."""
        row = await self.row()
        return row["status"], row["result"], row["error"]

    async def events(self) -> list[str]:
        """The status at each version."""
        rows = await self.owner.fetch(
            "select status, version from public.task_events where task_id = $1 order by version", self.task_id
        )
        assert [row["version"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["status"] for row in rows]


async def begin(web: str, provider: Receiver, owner: Connection, **wish: Any) -> Run:
    """Ask for a picture and catch the message at the provider."""
    provider.on(PUBLISH, Reply(200, b'{"messageId":"msg_1"}'))
    async with httpx.AsyncClient(base_url=web, trust_env=False) as client:
        accepted = await client.post("/api/generate", json={"prompt": "a test", **wish})
    assert accepted.status_code == 202, accepted.text
    task_id: str = accepted.json()["taskId"]

    def of_this_task(request: Request) -> bool:
        return request.headers.get("upstash-deduplication-id", "").rpartition("-")[0] == task_id

    while not (mine := list(filter(of_this_task, provider.at(PUBLISH)))):
        await provider.wait(PUBLISH, len(provider.at(PUBLISH)) + 1)
    told = mine[0].headers
    return Run(
        web=web,
        task_id=task_id,
        owner=owner,
        callback_url=told["upstash-callback"],
        progress_url=told["upstash-forward-taskbeam-progress-url"],
        token=told["upstash-forward-taskbeam-progress-token"],
    )
