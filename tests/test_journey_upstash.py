"""The path of a task with Upstash in the place of our dispatcher: nothing is told to the web process but settings."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.conftest import Connection, Deploy
from tests.deployment import CURRENT_KEY, NEXT_KEY, Deployment
from tests.receiver import Receiver, Reply, Request
from tests.sse import Event, changes, check_followed
from tests.upstash import Upstash

TOKEN = "eyJ-a-token-from-the-console"
TUNNEL = "https://our-tunnel.example.com"
DRAWING = "/v1/images"


@pytest.fixture
async def internet() -> AsyncIterator[Receiver]:
    """Where Upstash and a generator live."""
    async with Receiver() as internet:
        yield internet
    internet.listener.close()


@pytest.fixture
def upstash(internet: Receiver) -> Upstash:
    return Upstash(internet, internet.origin + DRAWING, TOKEN, (NEXT_KEY, CURRENT_KEY))


async def join(deploy: Deploy, upstash: Upstash, **env: str) -> Deployment:
    """A web process that is reached through a tunnel, and nothing else of ours."""
    here = await deploy(
        dispatchers=0,
        generator=False,
        env={
            "QSTASH_URL": upstash.receiver.origin,
            "QSTASH_TOKEN": TOKEN,
            "GENERATOR_URL": upstash.receiver.origin + DRAWING,
            "CALLBACK_URL": "",
            "PUBLIC_URL": TUNNEL,
            **env,
        },
    )
    upstash.reach[TUNNEL] = here.web.url
    return here


async def ask(here: Deployment, prompt: str) -> tuple[str, list[Event]]:
    """Ask for a picture and follow it to its end."""
    async with here.client() as browser:
        answer = await browser.post("/api/generate", json={"prompt": prompt, "params": {"size": "1x1"}})
        task_id = answer.json()["taskId"]
        seen = await changes(browser, f"taskId={task_id}")
    check_followed(seen)
    return task_id, seen


async def report(here: Deployment, request: Request, **said: Any) -> Any:
    """What a generator sends on the way, through the tunnel."""
    told = request.headers["taskbeam-progress-url"]
    assert told == f"{TUNNEL}/api/generate/progress"
    headers = {"Authorization": f"Bearer {request.headers['taskbeam-progress-token']}", "Host": TUNNEL.split("//")[1]}
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.post(told.replace(TUNNEL, here.web.url), json=said, headers=headers)).json()


async def test_from_prompt_to_picture(deploy: Deploy, upstash: Upstash, internet: Receiver, owner: Connection) -> None:
    """The generator fails once; the news of its success comes first, twice, and the failure's last."""
    here = await join(deploy, upstash, TASK_DEADLINE_SECONDS="100", GENERATOR_TIMEOUT_SECONDS="45")

    async def draw(request: Request) -> Reply:
        assert request.json() == {"size": "1x1", "prompt": "a lighthouse"}
        if request.retried == 0:
            return Reply(500, b"out of paint")
        said = await report(here, request, progress=50, message="half way", delivery=request.retried + 1)
        assert said == {"ok": True, "outcome": "applied", "cancel": False}
        return Reply(200, b'{"created":1,"data":[{"url":"https://cdn.example.com/1.png"}]}')

    internet.on(DRAWING, draw)
    task_id, seen = await ask(here, "a lighthouse")
    assert [event.data["status"] for event in seen][-1] == "completed"
    assert seen[-1].data["result"] == "https://cdn.example.com/1.png"
    assert any(event.data["progress"] == 50 for event in seen)
    await upstash.done()
    outcomes = [json.loads(body)["outcome"] for _, _, body in upstash.answers]
    assert ([kind for kind, _, _ in upstash.answers], outcomes) == (["callback"] * 3, ["applied", "duplicate", "stale"])
    assert {status for _, status, _ in upstash.answers} == {200}

    (message,) = upstash.published
    callback = f"{TUNNEL}/api/generate/callback?task={task_id}&attempt=1"
    said = {name.removeprefix("upstash-"): value for name, value in message.headers.items() if "upstash" in name}
    assert {name: said[name] for name in ("retries", "retry-delay", "timeout", "callback", "failure-callback")} == {
        "retries": "3",
        "retry-delay": "1000 * pow(2, retried)",
        "timeout": "45s",
        "callback": callback,
        "failure-callback": callback,
    }
    assert said["deduplication-id"] == f"{task_id}-1"
    assert said["redact-fields"] == "header[Taskbeam-Progress-Token]"

    # Nobody tells when such a run begins: its time counts from the publish, with the pauses that were asked for.
    seconds = await owner.fetchval(
        """select extract(epoch from deadline_at - sent_at)::float8 from public.image_generations
             join taskbeam.dispatches using (task_id) where task_id = $1""",
        task_id,
    )
    assert 106 < seconds < 108


async def test_the_failure_path(deploy: Deploy, upstash: Upstash, internet: Receiver) -> None:
    here = await join(deploy, upstash, GENERATOR_RETRIES="2")
    internet.on(DRAWING, Reply(503, b"no capacity"))
    task_id, seen = await ask(here, "too much")
    await upstash.done()
    end = seen[-1].data
    assert (end["status"], end["result"], end["errorCode"]) == ("failed", None, "generator_error")
    assert end["error"] == "The generator answered 503: no capacity"
    outcomes = [(kind, json.loads(body)["outcome"]) for kind, _, body in upstash.answers]
    assert outcomes[0] == ("callback", "applied")
    assert {outcome for _, outcome in outcomes[1:]} <= {"duplicate", "stale"}
    assert [kind for kind, _ in outcomes] == ["callback"] * 4 + ["failure"] * 2
    assert len(internet.at(DRAWING)) == 3
    async with here.client() as browser:
        after = (await browser.get("/api/generate/status", params={"taskId": task_id})).json()
    assert after["version"] == end["version"]


async def test_a_generator_that_answers_202(deploy: Deploy, upstash: Upstash, internet: Receiver) -> None:
    here = await join(deploy, upstash)
    accepted: list[Request] = []

    async def accept(request: Request) -> Reply:
        accepted.append(request)
        return Reply(202)

    internet.on(DRAWING, accept)
    async with here.client() as browser:
        answer = await browser.post("/api/generate", json={"prompt": "later", "params": {"size": "1x1"}})
        task_id = answer.json()["taskId"]
        await internet.wait(DRAWING)
        await upstash.done()
        state = (await browser.get("/api/generate/status", params={"taskId": task_id})).json()
        assert (state["status"], state["result"]) == ("processing", None)
        said = await report(here, accepted[0], status="completed", result="https://cdn.example.com/2.png")
        assert said["outcome"] == "applied"
        seen = await changes(browser, f"taskId={task_id}")
    assert seen[-1].data["result"] == "https://cdn.example.com/2.png"


async def test_a_wrong_token_waits_for_the_operator(deploy: Deploy, upstash: Upstash, internet: Receiver) -> None:
    here = await join(deploy, upstash, QSTASH_TOKEN="a-wrong-one")
    internet.on(DRAWING, Reply(200, b'{"url":"https://cdn.example.com/3.png"}'))
    async with here.client() as browser:
        answer = await browser.post("/api/generate", json={"prompt": "a lighthouse"})
        task_id = answer.json()["taskId"]
        await internet.wait(f"/v2/publish/{internet.origin}{DRAWING}")
        state = (await browser.get("/api/generate/status", params={"taskId": task_id})).json()
        assert state["status"] == "pending"
        here.web.stop()
        here.web.env["QSTASH_TOKEN"] = TOKEN
        await here.web.start()
        seen = await changes(browser, f"taskId={task_id}")
    assert seen[-1].data["status"] == "completed"


async def test_every_callback_is_lost(deploy: Deploy, upstash: Upstash, internet: Receiver, owner: Connection) -> None:
    """What Upstash could not deliver here is found there, once the task is overdue."""
    here = await join(deploy, upstash, GENERATOR_RETRIES="1")
    upstash.loses_callbacks = True
    done = Reply(200, b'{"data":[{"url":"https://cdn.example.com/4.png"}]}')
    internet.script(DRAWING, Reply(500, b"out of paint"), done)
    async with here.client() as browser:
        answer = await browser.post("/api/generate", json={"prompt": "a lighthouse"})
        task_id = answer.json()["taskId"]
        await internet.wait(DRAWING, 2)
        await upstash.done()
        assert (await browser.get("/api/generate/status", params={"taskId": task_id})).json()["status"] == "pending"
        await owner.execute("update image_generations set deadline_at = now() - interval '1 s'")
        end = (await changes(browser, f"taskId={task_id}"))[-1].data
        noted = (await browser.get("/api/generate/deliveries", params={"taskId": task_id})).json()["deliveries"]
    assert (end["status"], end["result"]) == ("completed", "https://cdn.example.com/4.png")
    assert [(row["kind"], row["outcome"], row["status"]) for row in noted] == [("lookup", "applied", 200)]
