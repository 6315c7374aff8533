"""The settings in docs/generators.md, each through our dispatcher to a stand-in that answers as the API says."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import shlex
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.conftest import Deploy
from tests.deployment import TOKEN, Deployment
from tests.receiver import Receiver, Reply, Request
from tests.sse import changes, check_followed

PAGE = (Path(__file__).parents[2] / "docs" / "generators.md").read_text()
BLOCKS = re.findall(r"```sh preset=([a-z0-9-]+)\n(.*?)```", PAGE, re.DOTALL)
PNG = b"\x89PNG\r\n\x1a\n" + b"drawn by a stand-in" * 500
URL = "https://cdn.test/drawn.png"
KEY = Ed25519PrivateKey.from_private_bytes(b"f" * 32)


def preset(name: str) -> dict[str, str]:
    """The settings as they stand on the page."""
    (block,) = [block for known, block in BLOCKS if known == name]
    return dict(word.partition("=")[::2] for word in shlex.split(block))


@pytest.fixture
async def api() -> AsyncIterator[Receiver]:
    """The stand-in; it goes on telling until it is done."""
    async with Receiver() as api:
        yield api
    api.listener.close()


async def deployed(deploy: Deploy, api: Receiver, name: str, **more: str) -> tuple[Deployment, str]:
    """A deployment with the preset, but for the API's address; and the path of the API."""
    env = preset(name) | more
    parts = urlsplit(env["GENERATOR_URL"])
    env["GENERATOR_URL"] = api.origin + env["GENERATOR_URL"].partition(parts.netloc)[2]
    return await deploy(generator=False, env=env), parts.path


async def ask(here: Deployment, **params: Any) -> dict[str, Any]:
    """The end of a task, as a browser sees it."""
    async with here.client() as browser:
        accepted = await browser.post("/api/generate", json={"prompt": 'a "red" fox', "params": params})
        assert accepted.status_code == 202, accepted.text
        seen = await changes(browser, f"taskId={accepted.json()['taskId']}")
    check_followed(seen)
    end: dict[str, Any] = seen[-1].data
    return end


async def picture(here: Deployment, end: dict[str, Any]) -> bytes:
    assert (end["status"], end["error"]) == ("completed", None)
    assert end["result"].startswith("/results/")
    async with here.client() as browser:
        return (await browser.get(end["result"])).content


def answer(status: int, body: Any) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def asked(request: Request) -> Any:
    """The body, after a look at what every API is sent."""
    assert request.method == "POST"
    assert request.headers["content-type"] == "application/json"
    return request.json()


def standard(secret: str, body: bytes) -> dict[str, str]:
    """By the specification of Standard Webhooks, which Replicate's documentation repeats."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    at = str(int(time.time()))
    mac = hmac.new(key, f"msg_{at}1.{at}.".encode() + body, hashlib.sha256).digest()
    signature = "v1,AAAA v1," + base64.b64encode(mac).decode()
    return {"webhook-id": f"msg_{at}1", "webhook-timestamp": at, "webhook-signature": signature}


async def call_back(url: str, body: bytes, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        told = await client.post(url, content=body, headers={"Content-Type": "application/json", **headers})
    assert (told.status_code, told.json()) == (200, {"ok": True, "outcome": "applied"})


async def hidden(here: Deployment, *secrets: str) -> None:
    """In no log, and not where the dispatcher shows messages."""
    for server in here.servers:
        for secret in secrets:
            assert secret not in server.log.read_text(), server.name
    ids = re.findall(r'"message_id": "(msg_[^"]+)"', here.web.log.read_text())
    assert ids
    async with httpx.AsyncClient(base_url=here.dispatcher.url, headers={"Authorization": f"Bearer {TOKEN}"}) as qstash:
        shown = (await qstash.get(f"/v2/messages/{ids[0]}")).json()
    assert not [secret for secret in secrets if secret in json.dumps({**shown, "url": "", "callback": ""})]


def test_every_preset_is_tested() -> None:
    tested = {"openai", "replicate", "fal", "automatic1111", "comfyui", "comfyui-webhook"}
    assert {name for name, _ in BLOCKS} == tested


@pytest.mark.parametrize("form", ["b64_json", "url"])
async def test_openai(deploy: Deploy, api: Receiver, form: str) -> None:
    here, path = await deployed(deploy, api, "openai")

    async def generations(request: Request) -> Reply:
        assert request.headers["authorization"] == "Bearer sk-your-key"
        assert asked(request) == {"model": "gpt-image-1", "prompt": 'a "red" fox', "size": "1024x1024"}
        image = {"b64_json": base64.b64encode(PNG).decode()} if form == "b64_json" else {"url": URL}
        return answer(200, {"created": 1713833628, "data": [image], "usage": {"total_tokens": 100}})

    api.on(path, generations)
    end = await ask(here, size="1024x1024", unknown="is not passed on")
    if form == "url":
        assert end["result"] == URL
    else:
        assert await picture(here, end) == PNG
    await hidden(here, "sk-your-key")


async def test_openai_refuses(deploy: Deploy, api: Receiver) -> None:
    here, path = await deployed(deploy, api, "openai", GENERATOR_RETRIES="0")
    error = {"message": "Incorrect API key provided: sk-your-key.", "type": "invalid_request_error", "param": None}
    api.on(path, answer(401, {"error": error}))
    end = await ask(here)
    assert (end["status"], end["errorCode"]) == ("failed", "generator_error")
    assert end["error"] == "The generator answered 401: Incorrect API key provided: ***."
    await hidden(here, "sk-your-key")


async def test_replicate(deploy: Deploy, api: Receiver) -> None:
    here, path = await deployed(deploy, api, "replicate")
    secret = preset("replicate")["WEBHOOK_SECRET_REPLICATE"]
    told: list[asyncio.Task[None]] = []
    hooks: list[str] = []

    async def predictions(request: Request) -> Reply:
        assert request.headers["authorization"] == "Bearer r8_your-token"
        body = asked(request)
        hooks.append(body.pop("webhook"))
        assert body == {
            "input": {"prompt": 'a "red" fox', "seed": 7},
            "webhook_events_filter": ["start", "logs", "completed"],
        }
        prediction = {"id": "gm3qorzdhgbfurvjtvhg6dckhu", "input": body["input"], "output": None, "error": None}
        prediction |= {
            "logs": "",
            "status": "starting",
            "urls": {"get": "https://api.replicate.com/v1/predictions/gm3"},
        }
        told.append(asyncio.create_task(predict(prediction)))
        return answer(201, prediction)

    async def predict(prediction: dict[str, Any]) -> None:
        await asyncio.sleep(0.5)
        done = prediction | {"status": "succeeded", "output": [URL], "logs": "100%|##########| 4/4"}
        body = json.dumps(done).encode()
        await call_back(hooks[0], body, standard(secret, body))

    api.on(path, predictions)
    end = await ask(here, seed=7)
    assert (end["status"], end["result"]) == ("completed", URL)
    await told[0]
    await hidden(here, "r8_your-token", secret, parse_qs(urlsplit(hooks[0]).query)["token"][0])


async def test_replicate_fails(deploy: Deploy, api: Receiver) -> None:
    here, path = await deployed(deploy, api, "replicate")
    secret = preset("replicate")["WEBHOOK_SECRET_REPLICATE"]

    async def predictions(request: Request) -> Reply:
        body = json.dumps({"id": "x", "status": "failed", "error": "NSFW content detected", "output": None}).encode()
        # It may tell the end before it has answered.
        await call_back(asked(request)["webhook"], body, standard(secret, body))
        return answer(201, {"id": "x", "status": "starting"})

    api.on(path, predictions)
    end = await ask(here)
    assert (end["status"], end["error"]) == ("failed", "NSFW content detected")


async def test_fal(deploy: Deploy, api: Receiver) -> None:
    x = base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).decode().rstrip("=")
    keys = api.on("/.well-known/jwks.json", answer(200, {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}))
    here, path = await deployed(deploy, api, "fal", WEBHOOK_KEYS_FAL=keys)
    request_id = "024ca5b1-45d3-4afd-883e-ad3abe2a1c4d"
    told: list[asyncio.Task[None]] = []

    async def queue(request: Request) -> Reply:
        assert request.headers["authorization"] == "Key your-key-id:your-key-secret"
        assert asked(request) == {"prompt": 'a "red" fox', "image_size": "square_hd"}
        told.append(asyncio.create_task(work(request.query["fal_webhook"])))
        queued = {"request_id": request_id, "gateway_request_id": request_id, "status": "IN_QUEUE", "queue_position": 0}
        return answer(200, queued | {"response_url": f"https://queue.fal.run/fal-ai/flux/requests/{request_id}"})

    async def work(hook: str) -> None:
        await asyncio.sleep(0.3)
        image = {"url": URL, "content_type": "image/png", "file_name": "image.png", "width": 1024, "height": 1024}
        said = {
            "request_id": request_id,
            "gateway_request_id": request_id,
            "status": "OK",
            "payload": {"images": [image]},
        }
        body = json.dumps(said).encode()
        lines = {"request-id": request_id, "user-id": "github|42", "timestamp": str(int(time.time()))}
        signature = KEY.sign("\n".join([*lines.values(), hashlib.sha256(body).hexdigest()]).encode())
        headers = {f"X-Fal-Webhook-{name}": value for name, value in (lines | {"signature": signature.hex()}).items()}
        await call_back(hook, body, headers)

    api.on(path, queue)
    end = await ask(here, image_size="square_hd")
    assert (end["status"], end["result"]) == ("completed", URL)
    await told[0]
    await hidden(here, "your-key-secret")


async def test_automatic1111(deploy: Deploy, api: Receiver) -> None:
    here, path = await deployed(deploy, api, "automatic1111")

    async def txt2img(request: Request) -> Reply:
        assert asked(request) == {"prompt": 'a "red" fox', "steps": 5, "width": 512}
        return answer(200, {"images": [base64.b64encode(PNG).decode()], "parameters": {"steps": 5}, "info": "{}"})

    api.on(path, txt2img)
    assert await picture(here, await ask(here, steps=5, width=512)) == PNG


async def test_comfyui(deploy: Deploy, api: Receiver) -> None:
    here, path = await deployed(deploy, api, "comfyui")

    async def prompt(request: Request) -> Reply:
        nodes = asked(request)["prompt"]
        assert nodes["6"]["inputs"] == {"text": 'a "red" fox', "clip": ["4", 1]}
        assert (nodes["3"]["inputs"]["seed"], nodes["3"]["inputs"]["steps"]) == (11, 20)
        stats = {"comfy_execution": {"total": {"duration": 5000}}}
        images = [base64.b64encode(PNG).decode()]
        return answer(
            200, {"id": "123e4567", "prompt": nodes, "images": images, "filenames": ["a.png"], "stats": stats}
        )

    api.on(path, prompt)
    assert await picture(here, await ask(here, seed=11)) == PNG


@pytest.mark.parametrize("works", [True, False])
async def test_comfyui_with_a_webhook(deploy: Deploy, api: Receiver, works: bool) -> None:
    here, path = await deployed(deploy, api, "comfyui-webhook")
    secret = preset("comfyui-webhook")["WEBHOOK_SECRET_STANDARD"]
    told: list[asyncio.Task[None]] = []

    async def prompt(request: Request) -> Reply:
        body = asked(request)
        told.append(asyncio.create_task(work(body["webhook_v2"], body["prompt"])))
        return answer(202, {"id": "123e4567", "status": "ok", **body})

    async def work(hook: str, nodes: Any) -> None:
        await asyncio.sleep(0.3)
        event: dict[str, Any] = {"timestamp": "2025-01-01T00:00:00Z", "id": "123e4567", "prompt": nodes}
        if works:
            event |= {"type": "prompt.complete", "images": [base64.b64encode(PNG).decode()], "filenames": ["a.png"]}
        else:
            event |= {"type": "prompt.failed", "error": "Value not in list: ckpt_name"}
        body = json.dumps(event).encode()
        await call_back(hook, body, standard(secret, body))

    api.on(path, prompt)
    end = await ask(here)
    await told[0]
    if works:
        assert await picture(here, end) == PNG
    else:
        assert (end["status"], end["error"]) == ("failed", "Value not in list: ckpt_name")


async def test_an_answer_that_is_a_picture(deploy: Deploy, api: Receiver) -> None:
    here = await deploy(generator=False, env={"GENERATOR_URL": api.origin + "/draw"})
    large = PNG + bytes(15 * 1024 * 1024)  # our dispatcher takes answers of 16 MiB
    api.on("/draw", Reply(200, large, {"Content-Type": "image/png"}))
    assert await picture(here, await ask(here)) == large
