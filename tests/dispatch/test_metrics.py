"""What a dispatcher counts, what waits in all of them, and who may know."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from server.dispatch import subject
from server.dispatch.metrics import OUTCOMES
from server.peer import is_of_this_machine
from tests.conftest import Deploy
from tests.deployment import TOKEN
from tests.dispatch.conftest import Connection, publish, sdk
from tests.exposition import Series, scrape, value
from tests.receiver import Receiver, Reply, Request, until

MESSAGES, CALLBACKS = {"lane": "messages"}, {"lane": "callbacks"}
DELIVERIES = "taskbeam_deliveries_total"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver
    receiver.listener.close()


async def shows(url: str, name: str, labels: dict[str, str], wanted: float) -> Series:
    """A scrape, once it has that value."""

    async def there() -> Series | None:
        shown = await scrape(url)
        return shown if value(shown, name, labels) == wanted else None

    found: Series = await until(there, f"{name} {labels} is {wanted}")
    return found


async def test_deliveries_by_lane_and_outcome(deploy: Deploy, receiver: Receiver) -> None:
    env = {"DISPATCHER_PRIVATE_ORIGINS": receiver.origin, "DISPATCHER_PARALLELISM": "2"}
    here = await deploy(webs=0, generator=False, env=env)
    url = here.dispatcher.url
    gate = asyncio.Event()

    async def hangs(_: Request) -> Reply:
        await gate.wait()
        return Reply()

    callback = receiver.on("/callback", Reply())
    ok, fails = receiver.on("/ok", Reply()), receiver.on("/fails", Reply(500))
    no_use = receiver.on("/no-use", Reply(489, headers={"Upstash-NonRetryable-Error": "true"}))
    slow = receiver.on("/slow", hangs)
    async with sdk(url) as client:
        held = [await publish(client, url=slow) for _ in range(4)]
        await publish(client, url=ok, delay="1h")
        await receiver.wait("/slow", 2)
        shown = await scrape(url)
        for outcome in OUTCOMES:
            assert value(shown, DELIVERIES, {**MESSAGES, "outcome": outcome}) == 0, "there before anything happens"
        assert value(shown, "taskbeam_deliveries_under_way", MESSAGES) == 2
        assert value(shown, "taskbeam_deliveries_under_way", CALLBACKS) == 0
        assert value(shown, "taskbeam_delivery_parallelism") == 2
        assert value(shown, "taskbeam_deployment_messages", {**MESSAGES, "state": "leased"}) == 2
        assert value(shown, "taskbeam_deployment_messages", {**MESSAGES, "state": "waiting"}) == 2
        assert value(shown, "taskbeam_deployment_messages", {**MESSAGES, "state": "delayed"}) == 1
        assert value(shown, "taskbeam_deployment_messages", {**CALLBACKS, "state": "waiting"}) == 0
        assert 0 < value(shown, "taskbeam_deployment_message_oldest_seconds", MESSAGES) < 20
        assert value(shown, "taskbeam_deployment_message_oldest_seconds", CALLBACKS) == 0
        assert value(shown, "taskbeam_database_up") == 1
        assert value(shown, "taskbeam_pool_wait_seconds_count") > 5
        assert value(shown, "process_open_fds") > 5

        await client.message.cancel(held[0])
        await shows(url, DELIVERIES, {**MESSAGES, "outcome": "dropped"}, 1)
        gate.set()
        await shows(url, DELIVERIES, {**MESSAGES, "outcome": "delivered"}, 3)
        await publish(client, url=ok, callback=callback)
        await publish(client, url=fails, retries=1, retry_delay="10")
        await publish(client, url=no_use, retries=3)
        await shows(url, DELIVERIES, {**MESSAGES, "outcome": "failed"}, 1)
        await shows(url, DELIVERIES, {**MESSAGES, "outcome": "refused"}, 1)
        shown = await shows(url, DELIVERIES, {**CALLBACKS, "outcome": "delivered"}, 1)
    assert value(shown, DELIVERIES, {**MESSAGES, "outcome": "retried"}) == 1
    assert value(shown, DELIVERIES, {**MESSAGES, "outcome": "delivered"}) == 3 + 1
    assert value(shown, "taskbeam_delivery_seconds_count", MESSAGES) == 3 + 1 + 2 + 1  # not the one that was dropped
    assert value(shown, "taskbeam_delivery_seconds_count", CALLBACKS) == 1
    assert value(shown, "taskbeam_deliveries_under_way", MESSAGES) == 0

    async def loop_is_watched() -> bool:
        return value(await scrape(url), "taskbeam_event_loop_lag_seconds_count") >= 2

    await until(loop_is_watched, "the loop's lag is measured")


async def test_a_message_of_a_dispatcher_that_died_is_counted_by_who_took_it(
    deploy: Deploy, receiver: Receiver, owner: Connection
) -> None:
    here = await deploy(webs=0, generator=False, env={"DISPATCHER_PRIVATE_ORIGINS": receiver.origin})
    await owner.execute(
        """insert into dispatcher.messages (id, state, url, max_retries, timeout_ms, deliveries, leased_until)
           select 'msg_' || n, 'active', $1, n, 1000, 1, now() - interval '1 s' from generate_series(0, 1) n""",
        receiver.on("/lost", Reply()),
    )
    for outcome in ("failed", "retried", "delivered"):
        shown = await shows(here.dispatcher.url, DELIVERIES, {**MESSAGES, "outcome": outcome}, 1)
    assert value(shown, "taskbeam_leases_taken_over_total") == 2


async def test_who_may_read_it(deploy: Deploy) -> None:
    here = await deploy(webs=0, generator=False)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    near: list[dict[str, str]] = [{}, {"Host": "localhost:8080"}, {"Host": "[::1]:8080"}]
    far: list[dict[str, str]] = [
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "127.0.0.1"},  # whoever is asked for, somebody is
        {"X-Real-IP": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"CF-Connecting-IP": "203.0.113.9"},
        {"X-Forwarded-Host": "tasks.example.com"},
        {"Via": "1.1 proxy"},
        {"Host": "tasks.example.com"},  # a proxy that keeps the name, or a page whose name was bent to us
    ]
    async with httpx.AsyncClient(base_url=here.dispatcher.url, trust_env=False) as client:
        for headers in near:
            assert (await client.get("/metrics", headers=headers)).status_code == 200, headers
        for headers in far:
            answer = await client.get("/metrics", headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"}), headers
            wrong = {**headers, "Authorization": f"Bearer {TOKEN}x"}
            assert (await client.get("/metrics", headers=wrong)).status_code == 401, headers
            assert (await client.get("/metrics", headers={**headers, "Authorization": "Bearer x"})).status_code == 401
            right = await client.get("/metrics", headers={**headers, **bearer})
            assert right.status_code == 200, headers
        # In an URL it would end up in somebody's log.
        assert (await client.get("/metrics", headers=far[0], params={"qstash_token": TOKEN})).status_code == 401
        before = (await scrape(here.dispatcher.url)).keys()
        for n in range(100):
            await client.request(("GET", "POST", f"X{n}")[n % 3], f"/v2/nothing-{n}", headers=bearer)
            await client.get("/metrics", headers={"Host": f"n{n}.test"})
        assert (await scrape(here.dispatcher.url)).keys() == before


@pytest.mark.pure
@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("127.0.0.1", 5000), True),
        (("127.8.8.8", 5000), True),
        (("::1", 5000), True),
        (("::ffff:127.0.0.1", 5000), True),
        (("::ffff:203.0.113.9", 5000), False),
        (("10.0.0.7", 5000), False),
        (("localhost.evil.test", 5000), False),
        (None, False),
    ],
)
def test_whose_address_is_this_machine_s(client: Any, expected: bool) -> None:
    scope = {"type": "http", "client": client, "headers": [(b"host", b"127.0.0.1:8080")]}
    assert is_of_this_machine(HTTPConnection(scope)) is expected


@pytest.mark.pure
def test_which_task_a_message_is_about() -> None:
    job = {"Taskbeam-Task-Id": ["abc_-1"], "Taskbeam-Attempt": ["2"]}
    assert subject.of_job(job) == ("abc_-1", 2)
    assert subject.of_callback("https://x.test/api/generate/callback?task=abc_-1&attempt=2") == ("abc_-1", 2)
    for header in (
        {},
        {**job, "Taskbeam-Task-Id": ["a b"]},
        {**job, "Taskbeam-Attempt": ["0"]},
        {**job, "Taskbeam-Attempt": []},
    ):
        assert subject.of_job(header) is None
    for url in (
        "https://x.test/",
        "https://x.test/?task=a%0ab&attempt=1",
        "https://x.test/?task=a&attempt=1e3",
        "https://[x/?task=a&attempt=1",
    ):
        assert subject.of_callback(url) is None
