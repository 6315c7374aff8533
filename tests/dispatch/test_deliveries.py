"""What was said of a task, as its owner sees it, and a retry, which may take what was said too late."""

from typing import Any

import httpx
import pytest

from tests.dispatch.runs import PUBLISH, Run, delivery
from tests.receiver import Receiver

PICTURE = "https://pictures.test/1.png"


async def get(run: Run, **params: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=run.web, trust_env=False) as client:
        return await client.get("/api/generate/deliveries", params=params)


async def test_what_was_said(run: Run) -> None:
    assert (await get(run, taskId=run.task_id)).json() == {"deliveries": []}
    assert await run.outcome(delivery(503, b"busy", retried=0)) == "applied"
    await run.report(progress=50, delivery=2)
    assert (await run.report(status="failed", error="out of paint")).json()["outcome"] == "applied"
    done = delivery(200, {"url": "https://pictures.test/1.png"}, retried=1)
    assert await run.outcome(done) == "stale"
    answer = await get(run, taskId=run.task_id)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "private, no-store")
    noted = answer.json()["deliveries"]
    times = [row.pop("at") for row in noted]
    assert times == sorted(times)
    assert all(time.endswith("Z") or "+00:00" in time for time in times)
    assert noted == [
        {"kind": "callback", "outcome": "applied", "delivery": 1, "status": 503},
        {"kind": "report", "outcome": "applied", "delivery": 2},
        {"kind": "callback", "outcome": "stale", "delivery": 2, "status": 200},
    ]
    kept = await run.owner.fetchval("select result from public.task_deliveries where result is not null")
    assert kept == "https://pictures.test/1.png"


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"taskId": "absent"}, 404, "task_not_found"),
        ({"taskId": "../x"}, 404, "task_not_found"),
        ({}, 400, "invalid_parameter"),
        ({"taskId": ["a", "b"]}, 400, "invalid_parameter"),
        ({"taskId": "a", "limit": "1"}, 400, "invalid_parameter"),
    ],
)
async def test_what_is_refused(run: Run, params: dict[str, Any], status: int, code: str) -> None:
    answer = await get(run, **params)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def retry(run: Run) -> httpx.Response:
    async with httpx.AsyncClient(base_url=run.web, trust_env=False) as client:
        return await client.post("/api/generate/retry", params={"taskId": run.task_id})


async def test_a_retry_is_sent_as_a_run_of_its_own(run: Run, provider: Receiver) -> None:
    answer = await retry(run)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_failed")
    assert await run.outcome(delivery(500, b"no", retried=3)) == "applied"
    sent = len(provider.at(PUBLISH))
    answer = await retry(run)
    assert (answer.status_code, answer.json()) == (200, {"taskId": run.task_id, "outcome": "retried"})
    message = (await provider.wait(PUBLISH, sent + 1, 5))[-1]
    assert message.headers["upstash-deduplication-id"] == f"{run.task_id}-2"
    assert message.headers["upstash-callback"].endswith(f"task={run.task_id}&attempt=2")
    run.callback_url = message.headers["upstash-callback"]
    assert await run.outcome(delivery(200, {"url": PICTURE})) == "applied"
    assert await run.events() == ["pending", "failed", "pending", "completed"]


async def test_a_retry_takes_the_picture_that_came_too_late(run: Run) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"late" * 500
    assert await run.outcome(delivery(500, b"no", retried=3)) == "applied"
    assert await run.outcome(delivery(200, png)) == "stale"
    assert (await run.ended())[0] == "failed"
    assert (await retry(run)).status_code == 200
    status, result, _ = await run.ended()
    assert status == "completed"
    assert result is not None
    async with httpx.AsyncClient(base_url=run.web, trust_env=False) as client:
        assert (await client.get(result)).content == png
    assert (await retry(run)).json()["code"] == "not_failed"
