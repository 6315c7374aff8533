"""What a web process makes of webhooks: two proofs before it reads one, each counted once, none late."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.dispatch.token import make_token
from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from tests.conftest import Connection, Deploy
from tests.dispatch.conftest import Home, shared_home
from tests.dispatch.runs import Run, delivery
from tests.receiver import Receiver, Reply

PICTURE = "https://cdn.test/a.png"
PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
SECRETS = {"standard": b"s" * 24, "replicate": b"r" * 32}
SECOND = b"t" * 24
KEY = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
APIS = "http://127.0.0.1:9/apis/"
HOOK = {"hook": "{webhookUrl}", "prompt": "{prompt}"}
GENERATORS = {
    "standard": {"url": APIS + "standard", "body": HOOK, "webhook": "standard"},
    "replicate": {"url": APIS + "replicate", "body": HOOK, "webhook": "replicate"},
    "fal": {"url": APIS + "fal?hook={webhookUrl}", "webhook": "fal"},
    "plain": {"url": APIS + "plain"},
}
DONE: dict[str, dict[str, Any]] = {
    "standard": {"type": "image.completed", "data": {"url": PICTURE}},
    "replicate": {"id": "p", "status": "succeeded", "output": [PICTURE]},
    "fal": {"request_id": "q", "status": "OK", "payload": {"images": [{"url": PICTURE}]}},
}
FAILED: dict[str, dict[str, Any]] = {
    "standard": {"type": "image.failed", "error": "out of paint"},
    "replicate": {"id": "p", "status": "failed", "error": "out of paint"},
    "fal": {"request_id": "q", "status": "ERROR", "error": "out of paint", "payload": None},
}
PENDING = ("pending", None, None)


def whsec(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()


def settings(origin: str) -> dict[str, str]:
    return {
        "GENERATORS": json.dumps(GENERATORS),
        "WEBHOOK_SECRET_STANDARD": f"{whsec(SECRETS['standard'])} {whsec(SECOND)}",
        "WEBHOOK_SECRET_REPLICATE": whsec(SECRETS["replicate"]),
        "WEBHOOK_KEYS_FAL": f"{origin}/jwks.json",
    }


@pytest.fixture(scope="module")
def office(postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, folder: Path) -> Iterator[Home]:
    """As the shared one, with generators that call back; the provider also publishes fal's keys."""
    with shared_home(postgres, redis_server, folder, "QSTASH_URL", settings, webs=1, dispatchers=0) as office:
        yield office


@pytest.fixture
async def provider(office: Home) -> AsyncIterator[Receiver]:
    async with Receiver(office.receiver_socket) as provider:
        x = base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).decode().rstrip("=")
        keys = {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}
        provider.on("/jwks.json", Reply(200, json.dumps(keys).encode()))
        yield provider


@dataclass
class Hooked(Run):
    """A run whose generator was told where to call back."""

    provider: str = ""
    hook: str = ""

    def sign(self, body: bytes, webhook_id: str = "", timestamp: str = "", secret: bytes = b"") -> dict[str, str]:
        """The headers of the provider, by its published scheme."""
        webhook_id, timestamp = webhook_id or f"msg_{secrets.token_hex(8)}", timestamp or str(int(time.time()))
        if self.provider == "fal":
            said = {"Request-Id": webhook_id, "User-Id": "github|42", "Timestamp": timestamp}
            signed = "\n".join([*said.values(), hashlib.sha256(body).hexdigest()]).encode()
            said["Signature"] = KEY.sign(signed).hex()
            return {f"X-Fal-Webhook-{name}": value for name, value in said.items()}
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        mac = hmac.new(secret or SECRETS[self.provider], signed, hashlib.sha256).digest()
        signature = "v1," + base64.b64encode(mac).decode()
        return {"Webhook-Id": webhook_id, "Webhook-Timestamp": timestamp, "Webhook-Signature": signature}

    async def tell(self, said: Any, url: str = "", headers: dict[str, str] | None = None, **how: Any) -> httpx.Response:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers = self.sign(body, **how) if headers is None else headers
        return await self.send(url or self.hook, body, {"Content-Type": "application/json", **headers})

    async def told(self, said: Any, **how: Any) -> str:
        answer = await self.tell(said, **how)
        assert answer.status_code == 200, answer.text
        assert answer.json()["ok"] is True
        return str(answer.json()["outcome"])


async def hooked(web: str, provider: Receiver, owner: Connection, name: str) -> Hooked:
    path = f"/v2/publish/{APIS}{name}"
    provider.on(path, Reply(200, b'{"messageId":"msg_1"}'))
    async with httpx.AsyncClient(base_url=web, trust_env=False) as client:
        accepted = await client.post("/api/generate", json={"prompt": "a test", "generator": name})
    assert accepted.status_code == 202, accepted.text
    task_id = accepted.json()["taskId"]
    while not (mine := [r for r in provider.at(path) if task_id in r.headers["upstash-deduplication-id"]]):
        await provider.wait(path, len(provider.at(path)) + 1)
    hook = mine[0].query["hook"] if name == "fal" else mine[0].json()["hook"]
    told = mine[0].headers
    return Hooked(
        web=web,
        task_id=task_id,
        owner=owner,
        callback_url=told["upstash-callback"],
        progress_url=told["upstash-forward-taskbeam-progress-url"],
        token=told["upstash-forward-taskbeam-progress-token"],
        provider=name,
        hook=hook,
    )


@pytest.fixture(params=["standard", "replicate", "fal"])
async def any_run(request: Any, office: Home, provider: Receiver, tasks: Connection) -> Hooked:
    """A task of each kind of generator."""
    return await hooked(office.deployment.web.url, provider, tasks, request.param)


@pytest.fixture
async def hook_run(office: Home, provider: Receiver, tasks: Connection) -> Hooked:
    return await hooked(office.deployment.web.url, provider, tasks, "standard")


async def test_done(any_run: Hooked) -> None:
    """The answer to the job says no more than that it was taken; the webhook ends the run, once."""
    run = any_run
    accepted = {"id": "p", "status": "IN_QUEUE" if run.provider == "fal" else "starting", "url": "https://api.test/p"}
    assert await run.outcome(delivery(201, accepted)) == "applied"
    assert (await run.row())["status"] == "processing"
    assert await run.told(DONE[run.provider]) == "applied"
    assert await run.ended() == ("completed", PICTURE, None)
    assert await run.told(DONE[run.provider]) == "duplicate"
    assert await run.told(FAILED[run.provider]) == "stale"
    assert await run.events() == ["pending", "processing", "completed"]


async def test_failed(any_run: Hooked) -> None:
    assert await any_run.told(FAILED[any_run.provider]) == "applied"
    assert await any_run.ended() == ("failed", None, "out of paint")
    assert (await any_run.row())["error_code"] == "generator_error"
    assert await any_run.told(DONE[any_run.provider]) == "stale"


async def test_done_without_a_picture(any_run: Hooked) -> None:
    said = {**DONE[any_run.provider], "payload": {}, "output": None, "data": {}}
    assert await any_run.told(said) == "applied"
    row = await any_run.row()
    assert (row["status"], row["error_code"]) == ("failed", "bad_response")


async def test_on_the_way(office: Home, provider: Receiver, tasks: Connection) -> None:
    run = await hooked(office.deployment.web.url, provider, tasks, "replicate")
    assert await run.told({"status": "starting"}) == "applied"
    assert await run.told({"status": "processing", "logs": " 46%|###   | 23/50\n"}) == "applied"
    assert ((await run.row())["status"], (await run.row())["progress"]) == ("processing", 46)
    assert await run.told({"status": "processing", "logs": " 30%|##    | 15/50\n"}) == "stale"
    assert await run.told({"status": "canceled"}) == "applied"
    assert await run.ended() == ("failed", None, "The prediction was canceled")


async def test_it_may_bring_the_picture_itself(hook_run: Hooked, office: Home) -> None:
    said = {"type": "prompt.complete", "images": [base64.b64encode(PNG).decode()]}
    assert await hook_run.told(said) == "applied"
    _, result, _ = await hook_run.ended()
    assert result is not None
    async with httpx.AsyncClient(base_url=hook_run.web, trust_env=False) as client:
        picture = await client.get(result)
    assert (picture.content, picture.headers["content-type"]) == (PNG, "image/png")
    assert await hook_run.told(said) == "duplicate"
    assert (office.deployment.folder / result.removeprefix("/")).read_bytes() == PNG


async def test_the_end_overtakes_the_answer(any_run: Hooked) -> None:
    assert await any_run.told(DONE[any_run.provider]) == "applied"
    assert await any_run.outcome(delivery(201, {"status": "starting"})) == "stale"
    assert await any_run.ended() == ("completed", PICTURE, None)


async def refused(run: Hooked, answer: httpx.Response, code: str) -> None:
    status = {"bad_signature": 401, "bad_token": 401}.get(code, 404)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "out of paint" not in answer.text
    assert await run.ended() == PENDING
    assert await run.events() == ["pending"]


async def test_forged(any_run: Hooked) -> None:
    run, body = any_run, json.dumps(DONE[any_run.provider]).encode()
    good = run.sign(body)
    await refused(run, await run.tell(body, headers={}), "bad_signature")
    for other in (body + b" ", body[:-1], body.replace(b"a.png", b"b.png"), b"", b"not json"):
        await refused(run, await run.tell(other, headers=good), "bad_signature")
    compact = json.dumps(json.loads(body), separators=(",", ":")).encode()
    await refused(run, await run.tell(compact, headers=good), "bad_signature")
    for name, value in good.items():
        await refused(run, await run.tell(body, headers={k: v for k, v in good.items() if k != name}), "bad_signature")
        changed = value[:-3] + ("000" if value[-3:] != "000" else "111")
        await refused(run, await run.tell(body, headers=good | {name: changed}), "bad_signature")
    now = int(time.time())
    for timestamp in (str(now - 310), str(now + 310), "NaN", "0", f"{now}.5"):
        await refused(run, await run.tell(body, timestamp=timestamp), "bad_signature")
    assert (await run.tell(body, headers=good)).json()["outcome"] == "applied"


async def test_another_s_secret_is_not_this_one_s(hook_run: Hooked) -> None:
    said = DONE["standard"]
    await refused(hook_run, await hook_run.tell(said, secret=SECRETS["replicate"]), "bad_signature")
    assert await hook_run.told(said, secret=SECOND) == "applied"


async def test_only_with_the_token_of_this_run(
    any_run: Hooked, office: Home, provider: Receiver, tasks: Connection
) -> None:
    """Whatever is signed: the provider signs for all its customers, and for other runs of ours."""
    run, said = any_run, DONE[any_run.provider]
    other = await hooked(run.web, provider, tasks, run.provider)
    told = {name: values[0] for name, values in parse_qs(urlsplit(run.hook).query).items()}
    theirs = parse_qs(urlsplit(other.hook).query)["token"][0]
    for token in ("", "x", run.token, theirs, told["token"][:-1], told["token"] + "A", make_token(b"", run.task_id, 1)):
        url = run.hook.replace(told["token"], token)
        await refused(run, await run.tell(said, url=url), "bad_token")
    await refused(run, await run.tell(said, url=run.hook.replace("&token=", "&nothing=")), "bad_token")
    await refused(run, await run.tell(said, url=run.hook.replace("attempt=1", "attempt=2")), "bad_token")
    await refused(run, await run.tell(said, url=run.hook.replace(f"task={run.task_id}", "task=x")), "bad_token")
    crossed = run.hook.replace(f"task={run.task_id}", f"task={other.task_id}")
    await refused(run, await run.tell(said, url=crossed), "bad_token")
    assert await other.ended() == PENDING
    # And the webhook's token reports nothing.
    assert (await run.report(told["token"], progress=50)).status_code == 401


async def test_who_calls_whom(any_run: Hooked) -> None:
    run, said = any_run, DONE[any_run.provider]
    for name in ("stripe", "Replicate", "standard%20", "fal.ai"):
        url = run.hook.replace(f"/{run.provider}?", f"/{name}?")
        await refused(run, await run.tell(said, url=url), "unknown_provider")
    named = f"generator={run.provider}"
    others = [name for name in GENERATORS if name != run.provider]
    for name in (*others, "nobody", ""):
        url = run.hook.replace(named, f"generator={name}" if name else "x=y")
        await refused(run, await run.tell(said, url=url), "webhook_not_configured")
    # Another provider's path, and a generator of that provider: the token was not made for it.
    for name in set(DONE) - {run.provider}:
        url = run.hook.replace(f"/{run.provider}?", f"/{name}?").replace(named, f"generator={name}")
        await refused(run, await run.tell(said, url=url), "bad_token")


async def test_replayed(any_run: Hooked) -> None:
    """An id counts once, whatever comes with it."""
    run = any_run
    busy = {"status": "processing", "progress": 5}
    assert await run.told(busy, webhook_id="msg_same") == "applied"
    assert await run.told(busy, webhook_id="msg_same") == "duplicate"
    assert await run.told(DONE[run.provider], webhook_id="msg_same") == "duplicate"
    assert await run.events() == ["pending", "processing"]
    outcomes = await asyncio.gather(*(run.told(DONE[run.provider], webhook_id="msg_last") for _ in range(20)))
    assert sorted(outcomes) == ["applied"] + ["duplicate"] * 19
    assert await run.events() == ["pending", "processing", "completed"]


async def test_crossed_attempts(any_run: Hooked) -> None:
    run = any_run
    await run.told(FAILED[run.provider])
    await run.owner.execute("update public.image_generations set status = 'pending' where task_id = $1", run.task_id)
    assert await run.told(DONE[run.provider]) == "stale"
    assert await run.ended() == PENDING


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'"OK"', b"[" * 50_000])
async def test_signed_but_no_webhook(any_run: Hooked, body: bytes) -> None:
    answer = await any_run.tell(body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert await any_run.ended() == PENDING


async def test_a_task_that_is_gone(any_run: Hooked) -> None:
    await any_run.owner.execute("delete from public.image_generations where task_id = $1", any_run.task_id)
    for said in (DONE, FAILED):
        answer = await any_run.tell(said[any_run.provider])
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


async def test_nothing_secret_is_logged(any_run: Hooked, office: Home) -> None:
    run = any_run
    await run.tell(DONE[run.provider], headers={})
    await run.told(DONE[run.provider])
    log = office.deployment.web.log.read_text()
    assert '"webhook_refused"' in log
    token = parse_qs(urlsplit(run.hook).query)["token"][0]
    for secret in (token, token.split(".")[2], *map(whsec, SECRETS.values())):
        assert secret not in log
    assert "Traceback" not in log


async def test_while_postgres_is_away(deploy: Deploy, owner: Connection) -> None:
    """What could not be committed is not taken: the provider is told to come again, and then it counts."""
    async with Receiver() as provider:
        env = {"QSTASH_URL": provider.origin, **settings(provider.origin)}
        here = await deploy(dispatchers=0, generator=False, env=env)
        run = await hooked(here.web.url, provider, owner, "replicate")
        body = json.dumps(DONE["replicate"]).encode()
        headers = run.sign(body)
        lock = await asyncpg.connect(here.database.owner_url)
        held = lock.transaction()
        await held.start()
        await lock.execute("lock table public.image_generations in access exclusive mode")
        answer = await run.tell(body, headers=headers)
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "5")
        await held.rollback()
        await lock.close()
        assert (await run.tell(body, headers=headers)).json()["outcome"] == "applied"
    provider.listener.close()


async def test_a_provider_calls_the_public_address(deploy: Deploy, owner: Connection) -> None:
    """It is on the Internet, where QStash may be near; through a tunnel the route answers to that host's name."""
    async with Receiver() as provider:
        env = {"QSTASH_URL": provider.origin, "PUBLIC_URL": "https://app.example.com", **settings(provider.origin)}
        here = await deploy(dispatchers=0, generator=False, env=env)
        run = await hooked(here.web.url, provider, owner, "standard")
        assert run.hook.startswith("https://app.example.com/api/generate/webhook/standard?")
        assert run.callback_url.startswith(here.web.url)
        run.headers = {"X-Forwarded-For": "203.0.113.7", "Host": "evil.test"}
        assert (await run.tell(DONE["standard"])).status_code == 421
        run.headers["Host"] = "app.example.com"
        assert await run.told(DONE["standard"]) == "applied"
    provider.listener.close()
