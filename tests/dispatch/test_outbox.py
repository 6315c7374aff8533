"""From the commit to the provider: whatever is away, refuses or dies in between, the job is handed on, once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.dispatch.outbox import is_hosted
from tests.conftest import Connection, Deploy
from tests.deployment import TOKEN, Deployment
from tests.dispatch.runs import GENERATOR, PUBLISH
from tests.receiver import Receiver, Reply, Request, until

TAKEN = Reply(200, b'{"messageId":"msg_theirs"}')


@pytest.fixture
async def provider() -> AsyncIterator[Receiver]:
    """The QStash API, as the test wants it to be."""
    async with Receiver() as provider:
        yield provider
    provider.listener.close()


async def webs(deploy: Deploy, provider: Receiver, count: int = 1, **env: str) -> Deployment:
    env = {"QSTASH_URL": provider.origin, "GENERATOR_URL": GENERATOR, **env}
    return await deploy(webs=count, dispatchers=0, generator=False, env=env)


async def generate(here: Deployment, web: int = 0, **wish: Any) -> str:
    async with here.client(web) as client:
        answer = await client.post("/api/generate", json={"prompt": "a test", **wish})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["taskId"])


async def task(owner: Connection, task_id: str) -> dict[str, Any]:
    row = await owner.fetchrow(
        """select t.status::text, t.error, t.error_code, d.tries, d.sent_at, d.message_id, d.last_error,
                  case when t.began_at is not null then extract(epoch from t.deadline_at - d.sent_at)::float8 end
                    as run_seconds
             from public.image_generations t join taskbeam.dispatches d using (task_id) where task_id = $1""",
        task_id,
    )
    assert row is not None
    return dict(row)


async def sent(owner: Connection, task_id: str, seconds: float = 15) -> dict[str, Any]:
    """The task, once its message is noted as sent."""

    async def noted() -> dict[str, Any] | None:
        row = await task(owner, task_id)
        return row if row["sent_at"] else None

    row: dict[str, Any] = await until(noted, "the message is sent", seconds)
    return row


async def test_what_is_said_to_the_provider(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    here = await webs(
        deploy, provider, GENERATOR_RETRIES="2", GENERATOR_TIMEOUT_SECONDS="90", TASK_DEADLINE_SECONDS="60"
    )
    provider.on(PUBLISH, TAKEN)
    task_id = await generate(here, params={"seed": 7, "prompt": "not this one"})
    (message,) = await provider.wait(PUBLISH)
    callback = f"{here.web.url}/api/generate/callback?task={task_id}&attempt=1"
    said = {name: value for name, value in message.headers.items() if name.startswith(("upstash-", "content-type"))}
    token = said.pop("upstash-forward-taskbeam-progress-token")
    assert token.startswith(f"{task_id}.1.")
    assert said == {
        "content-type": "application/json",
        "upstash-forward-taskbeam-task-id": task_id,
        "upstash-forward-taskbeam-attempt": "1",
        "upstash-forward-taskbeam-progress-url": f"{here.web.url}/api/generate/progress",
        "upstash-redact-fields": "header[Taskbeam-Progress-Token]",
        "upstash-retries": "2",
        "upstash-retry-delay": "1000 * pow(2, retried)",
        "upstash-timeout": "90s",
        "upstash-callback": callback,
        "upstash-callback-timeout": "20s",
        "upstash-failure-callback-timeout": "20s",
        "upstash-callback-retries": "60",
        "upstash-callback-retry-delay": "min(10000, 500 * pow(2, retried))",
        "upstash-failure-callback": callback,
        "upstash-failure-callback-retries": "60",
        "upstash-failure-callback-retry-delay": "min(10000, 500 * pow(2, retried))",
        "upstash-deduplication-id": f"{task_id}-1",
    }
    assert message.headers["authorization"] == f"Bearer {TOKEN}"
    assert message.json() == {"seed": 7, "prompt": "a test"}
    row = await sent(owner, task_id)
    assert (row["message_id"], row["tries"], row["last_error"], row["status"]) == ("msg_theirs", 1, None, "pending")

    async def deadline() -> float | None:
        seconds: float | None = (await task(owner, task_id))["run_seconds"]
        return seconds

    # A provider that does not tell when it begins: the run's time, and 1 s + 2 s of retries.
    assert 62.5 < await until(deadline, "the deadline is set") < 64


async def test_the_provider_is_away(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    here = await webs(deploy, provider, QSTASH_URL="http://127.0.0.1:9")
    task_id = await generate(here)

    async def tried() -> bool:
        return bool((await task(owner, task_id))["last_error"])

    await until(tried, "a try has failed")
    assert (await task(owner, task_id))["status"] == "pending"
    here.web.env["QSTASH_URL"] = provider.origin
    here.web.kill()
    provider.on(PUBLISH, TAKEN)
    await here.web.start()
    row = await sent(owner, task_id)
    assert row["last_error"] is None
    assert row["tries"] >= 2
    assert len(provider.at(PUBLISH)) == 1


async def test_killed_before_it_could_be_sent(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    """The provider never answers the first process; the next one sends it when the lease has run out."""
    here = await webs(deploy, provider)
    hung = asyncio.Event()

    async def silent(_: Request) -> Reply:
        await hung.wait()
        return TAKEN

    provider.on(PUBLISH, silent)
    task_id = await generate(here)
    await provider.wait(PUBLISH)
    here.web.kill()
    provider.on(PUBLISH, TAKEN)
    await here.web.start()
    # Nobody takes what another may still be sending.
    leased = await owner.fetchval("select extract(epoch from leased_until - now())::float8 from taskbeam.dispatches")
    assert 0 < leased <= 30
    await owner.execute("update taskbeam.dispatches set leased_until = now() where task_id = $1", task_id)
    assert (await sent(owner, task_id))["tries"] == 2
    first, second = provider.at(PUBLISH)
    assert first.headers["upstash-deduplication-id"] == second.headers["upstash-deduplication-id"]
    hung.set()


async def test_killed_between_sent_and_noted(deploy: Deploy, owner: Connection) -> None:
    """It is sent twice; our dispatcher knows the id and makes one run of it."""
    here = await deploy(env={"GENERATOR_SECONDS": "0.3"})
    here.web.kill()
    here.web.begin(TASKBEAM_FAILPOINTS="dispatch.published")
    await here.web.ready()
    async with here.client() as client:
        answer = await client.post("/api/generate", json={"prompt": "twice?"})
    task_id = answer.json()["taskId"]
    assert await asyncio.to_thread(here.web.wait) == 86
    assert (await task(owner, task_id))["sent_at"] is None
    await owner.execute("update taskbeam.dispatches set leased_until = now()")
    await here.web.start()
    row = await sent(owner, task_id)
    assert row["tries"] == 2

    async def completed() -> bool:
        return bool((await task(owner, task_id))["status"] == "completed")

    await until(completed, "the task is completed")
    messages = await owner.fetch("select id, deliveries, state::text from dispatcher.messages where kind = 'message'")
    assert [tuple(message) for message in messages] == [(row["message_id"], 1, "delivered")]


async def test_refused_for_good(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    here = await webs(deploy, provider)
    provider.on(PUBLISH, Reply(400, b'{"error":"no \x01 such plan"}'))
    task_id = await generate(here)
    row = await sent(owner, task_id)
    assert (row["status"], row["error_code"], row["message_id"]) == ("failed", "dispatch_refused", None)
    assert row["error"].startswith("The job could not be handed on: ")
    assert "such plan" in row["error"]
    assert TOKEN not in row["error"]
    assert len(provider.at(PUBLISH)) == 1


async def test_what_may_pass_is_tried_again(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    """Errors, limits, a wrong token, a proxy's page instead of JSON: none of them ends the task, or the process."""
    here = await webs(deploy, provider)
    strange = [
        Reply(500, b"\0\x1b[31m"),
        Reply(429, b"slow down"),
        Reply(401, b'{"error":"unauthorized"}'),
        Reply(404, b"no such route"),
        Reply(307, b"", {"Location": "http://127.0.0.1:9/"}),
        Reply(200, b"<html>Welcome to nginx!</html>"),
        Reply(200, b"{}"),
        Reply(200, b"7"),
        Reply(204, b""),
    ]
    seen: set[str] = set()

    async def strange_at_first(request: Request) -> Reply:
        prompt = request.json()["prompt"]
        reply = TAKEN if prompt in seen else strange[int(prompt)]
        seen.add(prompt)
        return reply

    provider.on(PUBLISH, strange_at_first)
    ids = [await generate(here, prompt=str(n)) for n in range(len(strange))]
    for n, task_id in enumerate(ids):
        row = await sent(owner, task_id)
        assert (row["message_id"], row["tries"], row["status"]) == ("msg_theirs", 2, "pending"), strange[n]
    log = here.web.log.read_text()
    assert '"loop_died"' not in log
    assert TOKEN not in log


async def test_a_task_that_has_ended_is_not_sent(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    here = await webs(deploy, provider)
    provider.on(PUBLISH, Reply(503))
    task_id = await generate(here)
    await provider.wait(PUBLISH)
    await owner.execute(
        "update public.image_generations set status = 'failed', error = 'x', cancelled = true where task_id = $1",
        task_id,
    )
    provider.on(PUBLISH, TAKEN)
    row = await sent(owner, task_id)
    assert row["message_id"] is None
    assert len(provider.at(PUBLISH)) <= 2


async def test_one_that_hangs_holds_up_no_other(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    here = await webs(deploy, provider)
    hung = asyncio.Event()

    async def first_hangs(request: Request) -> Reply:
        if request.json()["prompt"] == "hang":
            await hung.wait()
        return TAKEN

    provider.on(PUBLISH, first_hangs)
    await generate(here, prompt="hang")
    await provider.wait(PUBLISH)
    for _ in range(20):
        await sent(owner, await generate(here), seconds=5)
    hung.set()


async def test_two_processes_drain_one_outbox(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    """Eighty tasks that nobody could send, then a provider that is back: each is sent once, by either."""
    here = await webs(deploy, provider, 2)
    provider.on(PUBLISH, Reply(503))

    async def some(web: int) -> list[str]:
        return [await generate(here, web) for _ in range(40)]

    ids = [task_id for part in await asyncio.gather(some(0), some(1)) for task_id in part]

    async def quiet() -> bool:
        return not await owner.fetchval(
            "select count(*) from taskbeam.dispatches where tries = 0 or leased_until > now()"
        )

    await until(quiet, "all have been tried")
    provider.seen.clear()

    async def slowly(_: Request) -> Reply:
        await asyncio.sleep(0.3)  # longer than until the other looks by itself
        return TAKEN

    provider.on(PUBLISH, slowly)
    await owner.execute("update taskbeam.dispatches set next_at = now()")
    for task_id in ids:
        await sent(owner, task_id)
    counted = Counter(request.headers["upstash-deduplication-id"] for request in provider.at(PUBLISH))
    assert counted == Counter(f"{task_id}-1" for task_id in ids)
    for server in here.webs:
        assert '"event": "dispatched"' in server.log.read_text(), "one of them did nothing"


async def test_our_own_dispatcher_says_when_a_run_begins(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    """The generator says nothing: the claim makes it `processing` and starts its clock; a job in our queue has none."""
    gate = asyncio.Event()

    async def draw(request: Request) -> Reply:
        if request.retried == 0:
            return Reply(500)
        await gate.wait()
        return Reply(200, b'{"url":"https://pictures.test/1.png"}')

    env = {"DISPATCHER_PARALLELISM": "1", "GENERATOR_URL": provider.on("/draw", draw), "GENERATOR_RETRY_DELAY": "10"}
    here = await deploy(generator=False, env=env)
    first = await generate(here)
    await provider.wait("/draw", 2)
    waiting = await generate(here)
    await sent(owner, waiting)

    async def begun() -> bool:
        delivery = await owner.fetchval("select delivery from public.image_generations where task_id = $1", first)
        return bool(delivery == 2)

    await until(begun, "the second delivery is noted")
    row = await task(owner, first)
    assert row["status"] == "processing"
    assert 890 < row["run_seconds"] < 901
    assert row["message_id"].startswith("msg_")
    row = await task(owner, waiting)
    assert (row["status"], row["run_seconds"]) == ("pending", None)
    gate.set()

    async def completed() -> bool:
        return bool((await task(owner, first))["status"] == "completed")

    await until(completed, "the first one is completed")


@pytest.mark.pure
def test_which_service_has_plans_with_limits() -> None:
    assert is_hosted(None)
    assert is_hosted("https://qstash-us-east-1.upstash.io")
    assert not is_hosted("https://upstash.io.evil.test")
    assert not is_hosted("http://127.0.0.1:8080")
