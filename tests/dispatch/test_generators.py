"""Several generators: only those that are named, each with its own request, and a task stays with its own."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.conftest import Connection, Deploy
from tests.deployment import Deployment
from tests.dispatch.runs import Run, delivery
from tests.receiver import Receiver, Reply, Request, until

APIS = "http://127.0.0.1:9/apis/"
GENERATORS = {
    "fast": {
        "url": APIS + "fast",
        "headers": {"Authorization": "Bearer sk-of-the-fast-one"},
        "body": {"text": "{prompt}", "n": "{params.n}", "report_to": "{progressUrl}", "with": "{progressToken}"},
        "result": "/deep/url",
    },
    "slow": {"url": APIS + "slow"},
}
TAKEN = Reply(200, b'{"messageId":"msg_theirs"}')
PICTURE = "https://cdn.test/1.png"


@pytest.fixture
async def provider() -> AsyncIterator[Receiver]:
    async with Receiver() as provider:
        for name in ("usual", *GENERATORS):
            provider.on(f"/v2/publish/{APIS}{name}", TAKEN)
        yield provider
    provider.listener.close()


@pytest.fixture
async def here(deploy: Deploy, provider: Receiver) -> Deployment:
    env = {"QSTASH_URL": provider.origin, "GENERATOR_URL": APIS + "usual", "GENERATORS": json.dumps(GENERATORS)}
    return await deploy(dispatchers=0, generator=False, env=env)


async def generate(here: Deployment, **wish: Any) -> httpx.Response:
    async with here.client() as client:
        return await client.post("/api/generate", json={"prompt": "a fox", **wish})


async def sent(provider: Receiver, name: str, count: int = 1) -> Request:
    return (await provider.wait(f"/v2/publish/{APIS}{name}", count))[-1]


def run_of(here: Deployment, owner: Connection, message: Request) -> Run:
    return Run(
        web=here.web.url,
        task_id=message.headers["upstash-forward-taskbeam-task-id"],
        owner=owner,
        callback_url=message.headers["upstash-callback"],
        progress_url=message.headers["upstash-forward-taskbeam-progress-url"],
        token=message.headers["upstash-forward-taskbeam-progress-token"],
    )


async def test_each_gets_its_own_request(here: Deployment, provider: Receiver, owner: Connection) -> None:
    answers = [
        await generate(here, params={"n": 2, "x": 1}, **w) for w in ({}, {"generator": "slow"}, {"generator": "fast"})
    ]
    assert [answer.status_code for answer in answers] == [202] * 3
    usual, slow, fast = [await sent(provider, name) for name in ("usual", "slow", "fast")]
    assert usual.json() == slow.json() == {"n": 2, "x": 1, "prompt": "a fox"}
    token = fast.headers["upstash-forward-taskbeam-progress-token"]
    assert fast.json() == {"text": "a fox", "n": 2, "report_to": f"{here.web.url}/api/generate/progress", "with": token}
    assert "generator=" not in usual.headers["upstash-callback"]
    assert fast.headers["upstash-callback"].endswith("&attempt=1&generator=fast")
    assert fast.headers["upstash-failure-callback"] == fast.headers["upstash-callback"]
    # The key is sent along, hidden where QStash shows messages; and it stands nowhere else.
    assert fast.headers["upstash-forward-authorization"] == "Bearer sk-of-the-fast-one"
    assert fast.headers["upstash-redact-fields"] == "body,header[Taskbeam-Progress-Token],header[Authorization]"
    for other in (usual, slow):
        assert "upstash-forward-authorization" not in other.headers
        assert other.headers["upstash-redact-fields"] == "header[Taskbeam-Progress-Token]"
    assert "sk-of-the-fast-one" not in here.web.log.read_text()
    assert "sk-of-the-fast-one" not in fast.target + fast.body.decode()

    # Each answer is read as its generator writes it.
    assert await run_of(here, owner, fast).outcome(
        delivery(200, {"deep": {"url": PICTURE}, "url": "https://x.test/"})
    ) == ("applied")
    assert await run_of(here, owner, fast).ended() == ("completed", PICTURE, None)
    assert await run_of(here, owner, slow).outcome(delivery(200, {"deep": {"url": PICTURE}})) == "applied"
    assert (await run_of(here, owner, slow).row())["error_code"] == "bad_response"


async def test_only_those_that_are_named(here: Deployment, provider: Receiver, owner: Connection) -> None:
    for name in ("nobody", "Fast", "fast ", "", "usual", "default"):
        answer = await generate(here, generator=name)
        assert (answer.status_code, answer.json()["code"]) == (400, "unknown_generator"), name
    for wrong in (7, ["fast"], {"url": "https://evil.test/"}):
        answer = await generate(here, generator=wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert await owner.fetchval("select count(*) from public.image_generations") == 0
    assert (await generate(here, generator=None)).status_code == 202
    await sent(provider, "usual")


async def test_what_is_seen_of_a_task_is_the_same(here: Deployment, provider: Receiver) -> None:
    usual, fast = (await generate(here)).json(), (await generate(here, generator="fast")).json()
    async with here.client() as client:
        shown = [(await client.get(accepted["statusUrl"])).json() for accepted in (usual, fast)]
    assert shown[0].keys() == shown[1].keys()
    assert "generator" not in shown[1]
    assert "fast" not in json.dumps(shown[1])


async def test_a_retry_goes_to_the_same_one(here: Deployment, provider: Receiver, owner: Connection) -> None:
    task_id = (await generate(here, generator="fast")).json()["taskId"]
    run = run_of(here, owner, await sent(provider, "fast"))
    await run.outcome(delivery(500, b"", retried=3))
    await owner.execute("update public.image_generations set status = 'pending' where task_id = $1", task_id)
    await owner.execute("insert into taskbeam.dispatches (task_id, attempt) values ($1, 2)", task_id)
    again = await sent(provider, "fast", 2)
    assert again.headers["upstash-deduplication-id"] == f"{task_id}-2"
    assert again.headers["upstash-callback"].endswith("&attempt=2&generator=fast")
    assert await run_of(here, owner, again).outcome(delivery(200, {"deep": {"url": PICTURE}})) == "applied"


async def test_one_that_is_not_known_here(here: Deployment, provider: Receiver, owner: Connection) -> None:
    """While versions change another process may know it: nothing is lost, and it does not go on for ever."""
    await generate(here, generator="fast")
    run = run_of(here, owner, await sent(provider, "fast"))
    here.web.kill()
    here.web.env["GENERATORS"] = json.dumps({"slow": GENERATORS["slow"]})
    await here.web.start()
    answer = await run.call(delivery(200, {"deep": {"url": PICTURE}}))
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1

    user, other = await owner.fetchval("select user_id from public.image_generations"), "waits-for-fast"
    await owner.execute(
        """insert into public.image_generations (task_id, user_id, prompt, generator, began_at)
           values ($1, $2, 'x', 'fast', null)""",
        other,
        user,
    )
    await owner.execute("insert into taskbeam.dispatches (task_id, attempt) values ($1, 1)", other)

    async def tried() -> str | None:
        error: str | None = await owner.fetchval("select last_error from taskbeam.dispatches where task_id = $1", other)
        return error

    assert "no generator 'fast' here" in await until(tried, "it was tried")
    await asyncio.sleep(0)
    await owner.execute("update taskbeam.dispatches set tries = 7, next_at = now() where task_id = $1", other)

    async def failed() -> str | None:
        error: str | None = await owner.fetchval("select error from public.image_generations where task_id = $1", other)
        return error

    assert "no generator 'fast' any more" in await until(failed, "it was given up")
    here.web.kill()
    here.web.env["GENERATORS"] = json.dumps(GENERATORS)
    await here.web.start()
    assert await run.outcome(delivery(200, {"deep": {"url": PICTURE}})) == "applied"


async def test_a_browser_s_own_session_may_name_one(owner: Connection) -> None:
    """As with the other columns that it may insert; it cannot change it."""
    await owner.execute("insert into auth.users (id) values ('00000000-0000-4000-8000-000000000009')")
    async with owner.transaction():
        claims = '{"sub":"00000000-0000-4000-8000-000000000009","role":"authenticated"}'
        await owner.execute("select taskbeam.act_as($1)", claims)
        await owner.execute(
            """insert into public.image_generations (task_id, user_id, prompt, generator)
               values ('mine', '00000000-0000-4000-8000-000000000009', 'x', 'fast')"""
        )
    granted = await owner.fetch(
        """select privilege_type from information_schema.column_privileges
            where table_name = 'image_generations' and column_name = 'generator' and grantee = 'authenticated'"""
    )
    assert {row["privilege_type"] for row in granted} == {"INSERT", "SELECT"}
