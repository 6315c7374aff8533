"""Callbacks where the network is not plain: behind a proxy or tunnel, to other JSON, and while Postgres is away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from server.embedded.postgres import EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from tests.conftest import Connection, Deploy
from tests.deployment import Database, Deployment
from tests.dispatch.runs import GENERATOR, Run, begin, delivery, sign
from tests.receiver import Receiver

PICTURE = "https://pictures.test/1.png"
DONE = delivery(200, {"result": PICTURE})


@pytest.fixture
async def provider() -> AsyncIterator[Receiver]:
    async with Receiver() as provider:
        yield provider
    provider.listener.close()


async def begun(deploy: Deploy, provider: Receiver, owner: Connection, **env: str) -> Run:
    env = {"QSTASH_URL": provider.origin, "GENERATOR_URL": GENERATOR, **env}
    here = await deploy(dispatchers=0, generator=False, env=env)
    return await begin(here.web.url, provider, owner)


@pytest.mark.parametrize("name", ["PUBLIC_URL", "CALLBACK_URL"])
async def test_behind_a_proxy_the_told_url_counts(
    deploy: Deploy, provider: Receiver, owner: Connection, name: str
) -> None:
    told = "https://pictures.example.com" if name == "PUBLIC_URL" else "http://web.internal:8000"
    env = {"CALLBACK_URL": "", name: told}
    run = await begun(deploy, provider, owner, **env)
    assert run.callback_url == f"{told}/api/generate/callback?task={run.task_id}&attempt=1"
    assert run.progress_url == f"{told}/api/generate/progress"

    # Signed for the address that this process has in fact: not what QStash was told.
    here = run.callback_url.replace(told, run.web)
    answer = await run.call(DONE, signature=sign(here, DONE), Host=httpx.URL(run.web).netloc.decode())
    assert answer.status_code == 401
    # The proxy keeps the host name, or puts its own; another's is none of ours.
    run.headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Host": httpx.URL(told).netloc.decode()}
    run.headers["Host"] = "evil.test"
    assert (await run.call(DONE)).status_code == 421
    run.headers["Host"] = httpx.URL(told).netloc.decode()
    assert (await run.report(progress=1)).json()["outcome"] == "applied"
    run.headers["Host"] = "127.0.0.1:9999"
    assert (await run.report(progress=2)).json()["outcome"] == "applied"
    assert await run.outcome(DONE) == "applied"


async def test_the_query_counts_as_it_was_signed(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    run = await begun(deploy, provider, owner)
    path = run.callback_url.partition("?")[0]
    turned = f"{path}?attempt=1&task={run.task_id}"
    refused = await run.send(turned, DONE, {"Upstash-Signature": sign(run.callback_url, DONE)})
    assert refused.status_code == 401
    more = run.callback_url + "&z=%20+%2f&a="
    refused = await run.send(more, DONE, {"Upstash-Signature": sign(run.callback_url, DONE)})
    assert refused.status_code == 401
    taken = await run.send(more, DONE, {"Upstash-Signature": sign(more, DONE)})
    assert taken.json()["outcome"] == "applied"


async def test_a_pointer_to_the_result(deploy: Deploy, provider: Receiver, owner: Connection) -> None:
    run = await begun(deploy, provider, owner, GENERATOR_RESULT="/deep/0/a~1b")
    elsewhere = await begin(run.web, provider, owner)
    assert await run.outcome(delivery(200, {"deep": [{"a/b": PICTURE}], "result": "https://wrong.test/"})) == "applied"
    assert await run.ended() == ("completed", PICTURE, None)
    assert await elsewhere.outcome(DONE) == "applied"
    status, _, error = await elsewhere.ended()
    assert (status, error) == ("failed", "The generator's answer has no result at /deep/0/a~1b")


async def test_postgres_away(
    own_postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, provider: Receiver, folder: Path
) -> None:
    """What cannot be committed is not taken: QStash brings it again, later each time, and then it counts."""
    owner = await asyncpg.connect(own_postgres.url("postgres"))
    database = Database("postgres", own_postgres.url("postgres", "taskbeam"), own_postgres.url("postgres"))
    env = {"QSTASH_URL": provider.origin, "GENERATOR_URL": GENERATOR, "REDIS_PREFIX": "away:"}
    here = Deployment(database, redis_server.url(), folder / "away", dispatchers=0, generator=False, env=env)
    try:
        await here.start()
        run = await begin(here.web.url, provider, owner)
        signature = sign(run.callback_url, DONE)
        await owner.close()
        await asyncio.to_thread(own_postgres.stop)
        for tries, seconds in (("0", 2), ("1", 6), ("2", 18), ("3", 30), ("99", 30), ("x", 2)):
            answer = await run.call(DONE, signature=signature, **{"Upstash-Retried": tries})
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) == seconds
        assert (await run.report(progress=1)).status_code == 503
        # A forgery needs no database to be one.
        assert (await run.call(DONE, signature=signature[:-4] + "AAAA")).status_code == 401

        await asyncio.to_thread(own_postgres.start)
        await own_postgres.ready()
        run.owner = owner = await asyncpg.connect(own_postgres.url("postgres"))
        assert await run.outcome(DONE, signature=signature) == "applied"
        assert await run.outcome(DONE, signature=signature) == "duplicate"
        assert await run.ended() == ("completed", PICTURE, None)
        await owner.close()
    finally:
        here.stop()
