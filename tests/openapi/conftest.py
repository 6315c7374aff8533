"""A web process, a dispatcher and what plays the rest, shared by the tests of the descriptions."""

import asyncio
import base64
import hashlib
import hmac
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest

from server.dispatch.token import make_token
from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from tests.deployment import TOKEN, Deployment
from tests.dispatch.conftest import shared_database
from tests.openapi.description import DISPATCHER, WEB, Operation
from tests.receiver import until

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

WEBHOOK_SECRET = b"the secret of a webhook's sender"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
APART = {
    # Nothing is handed on: tasks stay as a test leaves them.
    "QSTASH_URL": "http://127.0.0.1:9",
    "GENERATOR_URL": "http://127.0.0.1:9/?hook={webhookUrl}",
    "GENERATOR_WEBHOOK": "standard",
    "WEBHOOK_SECRET_STANDARD": "whsec_" + base64.b64encode(WEBHOOK_SECRET).decode(),
}


@pytest.fixture(scope="package")
def shared(postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, folder: Path) -> Iterator[Deployment]:
    with shared_database(postgres) as database:
        deployment = Deployment(database, redis_server.url(), folder / database.name, generator=False, env=APART)
        try:
            asyncio.run(deployment.start())
            yield deployment
        finally:
            deployment.stop()


@pytest.fixture
async def rows(shared: Deployment) -> AsyncIterator[Connection]:
    """A superuser's connection."""
    connection = await asyncpg.connect(shared.database.owner_url)
    yield connection
    await connection.close()


def webhook_signature(body: bytes) -> dict[str, str]:
    """The headers of a Standard Webhooks sender."""
    said = {"Webhook-Id": f"msg_{secrets.token_hex(8)}", "Webhook-Timestamp": str(int(time.time()))}
    text = f"{said['Webhook-Id']}.{said['Webhook-Timestamp']}.".encode() + body
    mac = hmac.digest(WEBHOOK_SECRET, text, hashlib.sha256)
    return {**said, "Webhook-Signature": "v1," + base64.b64encode(mac).decode()}


class Here:
    """The two APIs, every answer of which is held to its description."""

    def __init__(self, deployment: Deployment, rows: Connection, secret: bytes, client: httpx.AsyncClient) -> None:
        self.deployment = deployment
        self.rows = rows
        self.secret = secret
        self.client = client
        self.web = WEB
        self.dispatcher = DISPATCHER

    def origin(self, operation: Operation) -> str:
        mine = operation.description is self.dispatcher
        return (self.deployment.dispatcher if mine else self.deployment.web).url

    async def ask(self, operation: Operation, target: str, **request: Any) -> httpx.Response:
        """`target` is the path and query, sent as it is."""
        raw = httpx.URL(self.origin(operation)).copy_with(raw_path=target.encode())
        answer = await self.client.request(operation.method, raw, **request)
        operation.hold(answer)
        return answer

    async def create(self) -> str:
        answer = await self.client.post(f"{self.deployment.web.url}/api/generate", json={"prompt": "a test"})
        return str(answer.json()["taskId"])

    async def ticket(self, task_id: str) -> str:
        answer = await self.client.post(f"{self.deployment.web.url}/api/generate/ticket", json={"taskIds": [task_id]})
        return str(answer.json()["ticket"])

    def report_headers(self, task_id: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {make_token(self.secret, task_id, 1)}"}

    def webhook(self, task_id: str) -> str:
        """The path and query that a sender of webhooks is told."""
        token = make_token(self.secret, task_id, 1, "webhook standard ")
        return f"/api/generate/webhook/standard?task={task_id}&attempt=1&token={token}"

    async def report(self, task_id: str, **report: Any) -> None:
        answer = await self.client.post(
            f"{self.deployment.web.url}/api/generate/progress",
            json=report,
            headers=self.report_headers(task_id),
        )
        assert answer.status_code == 200, answer.text

    async def publish(self, destination: str = "https://example.com/hook", **options: str) -> str:
        """A message, which is not delivered while a test lasts unless `options` say otherwise; its id."""
        url = f"{self.deployment.dispatcher.url}/v2/publish/{destination}"
        headers = {"Upstash-Delay": "1h", **options, "Content-Type": "application/json"}
        answer = await self.client.post(url, content=b"{}", headers={**BEARER, **headers})
        return str(answer.json()["messageId"])

    async def dead_letter(self) -> tuple[str, str]:
        """A message that was answered with 404, once and for all; its id, and its dead letter's."""
        nowhere = f"{self.deployment.web.url}/nowhere"
        message_id = await self.publish(nowhere, **{"Upstash-Delay": "0s", "Upstash-Retries": "0"})
        url = f"{self.deployment.dispatcher.url}/v2/dlq?messageId={message_id}"

        async def letters() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await self.client.get(url, headers=BEARER)).json()["messages"]
            return found

        (letter,) = await until(letters, "its dead letter")
        return message_id, letter["dlqId"]


@pytest.fixture
async def here(shared: Deployment, rows: Connection) -> AsyncIterator[Here]:
    secret = await rows.fetchval("select value from taskbeam.secrets where name = 'progress_token'")
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the usual one reads all certificates, for each test
    async with httpx.AsyncClient(trust_env=False, timeout=30, verify=no_tls) as client:
        yield Here(shared, rows, secret, client)
