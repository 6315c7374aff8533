"""Plays the generator and QStash towards a web process, so that a test decides when a task changes."""

import base64
import secrets
import time
from typing import Any

import asyncpg
import httpx
import jwt
import msgspec

from server.dispatch.signature import body_hash
from server.dispatch.token import make_token
from tests.deployment import CURRENT_KEY, Deployment


class Play:
    """Build with `await Play.of(deployment)`."""

    def __init__(self, here: Deployment, secret: bytes) -> None:
        self._here = here
        self._secret = secret

    @classmethod
    async def of(cls, here: Deployment) -> "Play":
        connection = await asyncpg.connect(here.database.owner_url)
        try:
            secret = await connection.fetchval("select value from taskbeam.secrets where name = 'progress_token'")
        finally:
            await connection.close()
        return cls(here, secret)

    async def create(self, prompt: str = "a quiet harbour", web: int = 0) -> str:
        async with self._here.client(web) as client:
            answer = await client.post("/api/generate", json={"prompt": prompt})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["taskId"])

    async def report(self, task_id: str, progress: int | None = None, *, web: int = 0, **report: Any) -> dict[str, Any]:
        """As the generator, for attempt 1 unless told otherwise."""
        token = make_token(self._secret, task_id, report.pop("attempt", 1))
        body = report if progress is None else {"progress": progress, **report}
        async with self._here.client(web) as client:
            answer = await client.post(
                "/api/generate/progress", json=body, headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.status_code == 200, answer.text
            said: dict[str, Any] = answer.json()
            return said

    async def finish(self, task_id: str, *, web: int = 0, status: int = 200, attempt: int = 1) -> httpx.Response:
        """As QStash after the last delivery, signed."""
        path, body, headers = self.callback(task_id, status=status, attempt=attempt)
        async with self._here.client(web) as client:
            return await client.post(path, content=body, headers=headers)

    def callback(
        self, task_id: str, *, status: int = 200, attempt: int = 1, size: int = 0
    ) -> tuple[str, bytes, dict[str, str]]:
        """Path, body (of `size` bytes at least) and headers of such a signed request."""
        path = f"/api/generate/callback?task={task_id}&attempt={attempt}"
        answer = base64.b64encode(b'{"result":"https://example.com/picture.png"}').decode()
        body = msgspec.json.encode({"status": status, "body": answer, "retried": 3, "maxRetries": 3}).ljust(size)
        now = int(time.time())
        claims = {
            "iss": "Upstash",
            "sub": self._here.env["CALLBACK_URL"] + path,
            "iat": now,
            "nbf": 0,
            "exp": now + 300,
            "jti": f"jwt_{secrets.token_hex(8)}",
            "body": body_hash(body),
        }
        return path, body, {"Upstash-Signature": jwt.encode(claims, CURRENT_KEY, algorithm="HS256")}
