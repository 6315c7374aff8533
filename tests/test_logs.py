"""One task is followed through the logs of all processes by its id, and one request by its."""

import json
import re
from collections.abc import Iterable
from typing import Any

import httpx

from server.tasks.expiry import LOOKUPS_MAX
from tests.conftest import Connection, Deploy
from tests.deployment import TOKEN, Deployment, Server
from tests.playing import Play
from tests.receiver import until
from tests.sse import changes

Line = dict[str, Any]
# What is about the process itself, whatever its tasks do meanwhile.
OF_THE_PROCESS = {"web_started", "dispatcher_started", "redis_connected", "redis_away", "waiting_for_postgres"}


def lines(servers: Iterable[Server]) -> list[Line]:
    found = [json.loads(text) for server in servers for text in server.log.read_text().splitlines()]
    return sorted(found, key=lambda line: line["timestamp"])


def told(found: list[Line], event: str, **fields: Any) -> list[Line]:
    return [line for line in found if line["event"] == event and fields.items() <= line.items()]


async def test_a_task_is_followed_by_its_id(deploy: Deploy) -> None:
    here = await deploy()
    async with here.client() as client:
        created = await client.post("/api/generate", json={"prompt": "x"}, headers={"X-Request-Id": "the-first"})
        task_id = created.json()["taskId"]
        await changes(client, f"taskId={task_id}")
        await client.get(created.json()["statusUrl"])

    async def delivered() -> bool:
        return bool(told(lines(here.servers), "delivery", kind="callback"))

    await until(delivered, "the callback's delivery is in the log")
    found = lines(here.servers)
    mine = [line for line in found if line.get("task_id") == task_id]
    path = [
        told(mine, "request", method="POST", path="/api/generate", status=202, request_id="the-first", process="web"),
        told(mine, "dispatched", attempt=1, process="web"),
        told(mine, "request", method="POST", path="/api/generate/progress", attempt=1, process="web"),
        told(mine, "delivery", kind="message", outcome="delivered", attempt=1, process="dispatcher"),
        told(mine, "callback", outcome="applied", attempt=1, process="web"),
        told(mine, "delivery", kind="callback", outcome="delivered", attempt=1, process="dispatcher"),
        told(mine, "request", method="GET", path="/api/generate/events", status=200, process="web"),
        told(mine, "request", method="GET", path="/api/generate/status", status=200, process="web"),
    ]
    for step in path:
        assert step, (path.index(step), mine)
    assert path[1][0]["message_id"] == path[3][0]["message_id"] != path[5][0]["message_id"]
    # The line of a callback and that of its request are one request's.
    (request,) = told(mine, "request", path="/api/generate/callback")
    assert request["request_id"] == path[4][0]["request_id"]
    # Nothing that was done for the task leaves it out.
    for line in found:
        assert line["event"] in OF_THE_PROCESS or line.get("task_id") == task_id, line
        if line["event"] in ("request", "callback"):
            assert line["request_id"], line


async def test_a_refused_callback_says_for_which_task_it_claims_to_be(deploy: Deploy) -> None:
    here = await deploy(dispatchers=0, generator=False)
    async with here.client() as client:
        for claimed in ("abc", "a b", "x" * 200):
            params = {"task": claimed, "attempt": "1"}
            answer = await client.post("/api/generate/callback", params=params, headers={"X-Request-Id": "c"})
            assert answer.status_code == 401
    refused = told(lines([here.web]), "callback_refused", request_id="c")
    assert [line["claimed_task_id"] for line in refused] == ["abc", None, None]
    assert all("task_id" not in line for line in refused), "nobody has proved that it is about this task"


async def test_the_end_of_a_task_by_report_or_deadline_is_told(deploy: Deploy, owner: Connection) -> None:
    here = await deploy(dispatchers=0, generator=False, env={"QSTASH_URL": "http://127.0.0.1:9"})
    play = await Play.of(here)
    by_report, overdue, unsent = [await play.create() for _ in range(3)]
    await play.report(by_report, status="failed", error="no paint")
    await owner.execute("update taskbeam.dispatches set lookups = $1 where task_id = $2", LOOKUPS_MAX, overdue)
    await owner.execute(
        "update image_generations set began_at = now(), deadline_at = now() where task_id = any ($1)", [overdue, unsent]
    )

    async def expired() -> list[Line]:
        return told(lines([here.web]), "task_expired")

    (line,) = await until(expired, "the deadline")
    assert (line["task_id"], line["attempt"], line["reason"]) == (overdue, 1, "timeout")

    async def looked_up() -> list[Line]:
        return told(lines([here.web]), "reconciled")

    (line,) = await until(looked_up, "the look-up")
    assert (line["task_id"], line["attempt"], line["verdict"], line["reason"]) == (unsent, 1, "end", "not_started")
    (line,) = told(lines([here.web]), "report")
    assert (line["task_id"], line["outcome"], line["status"]) == (by_report, "applied", "failed")
    assert line["request_id"]


async def request_to_dispatcher(here: Deployment, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=here.dispatcher.url, trust_env=False) as client:
        given = {"Authorization": f"Bearer {TOKEN}", **headers}
        return await client.delete("/v2/messages/nothing", headers=given)


async def test_requests_to_the_dispatcher_have_ids(deploy: Deploy, owner: Connection) -> None:
    here = await deploy(webs=0, generator=False)
    answer = await request_to_dispatcher(here, **{"X-Request-Id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (404, "mine")
    answer = await request_to_dispatcher(here, **{"X-Request-Id": "not mine"})
    assert re.fullmatch(r"[\w-]{12}", answer.headers["x-request-id"])
    await owner.execute("alter table dispatcher.messages rename to elsewhere")
    answer = await request_to_dispatcher(here, **{"X-Request-Id": "in-vain"})
    assert answer.status_code == 500
    (line,) = told(lines([here.dispatcher]), "request_not_taken")
    assert line["request_id"] == "in-vain"
    assert line["process"] == "dispatcher"
