"""GET /api/generate/deliveries: who said what of a task, as its owner sees it."""

from typing import Any

import httpx
import pytest

from tests.dispatch.runs import Run, delivery


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
