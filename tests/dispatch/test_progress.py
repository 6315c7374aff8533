"""What a generator may say of its run, with the token of that run: progress, the end, and how it learns to stop."""

import base64
import hashlib
import hmac
import json
from typing import Any

import httpx
import pytest

from tests.dispatch.conftest import Connection, Home
from tests.dispatch.runs import Run, begin, delivery
from tests.receiver import Receiver

PICTURE = "https://pictures.test/1.png"


async def test_progress_is_kept_and_answered(run: Run) -> None:
    answer = await run.report(
        progress=12.7, message="Mixing", preview="data:image/jpeg;base64,AAAA", step=1, steps=8, delivery=1
    )
    assert answer.json() == {"ok": True, "outcome": "applied", "cancel": False}
    row = await run.row()
    said = {name: row[name] for name in ("status", "progress", "message", "preview", "step", "steps")}
    assert said == {
        "status": "processing",
        "progress": 12,
        "message": "Mixing",
        "preview": "data:image/jpeg;base64,AAAA",
        "step": 1,
        "steps": 8,
    }
    # What is not said stays; what goes back is of the past; what says nothing new is none.
    assert (await run.report(message="Painting")).json()["outcome"] == "applied"
    assert (await run.row())["progress"] == 12
    assert (await run.report(progress=11)).json()["outcome"] == "stale"
    assert (await run.report(message="Painting")).json()["outcome"] == "duplicate"
    assert await run.events() == ["pending", "processing", "processing"]


async def test_a_report_of_an_earlier_delivery_changes_nothing(run: Run) -> None:
    await run.report(progress=80, message="old", delivery=1)
    assert (await run.report(progress=10, delivery=2)).json()["outcome"] == "applied"
    row = await run.row()
    assert (row["progress"], row["message"], row["delivery"]) == (10, None, 2)
    assert (await run.report(progress=90, delivery=1)).json() == {"ok": True, "outcome": "stale", "cancel": False}


def forged(task_id: str, attempt: int, key: bytes) -> str:
    """A token in the form of ours, signed with a key of the forger's choice."""
    mac = hmac.new(key, f"progress {task_id} {attempt}".encode(), hashlib.sha256).digest()
    return f"{task_id}.{attempt}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


async def test_only_with_the_token_of_this_run(run: Run, office: Home, provider: Receiver, tasks: Connection) -> None:
    other = await begin(office.deployment.web.url, provider, tasks)
    task_id, attempt, mac = run.token.split(".")
    wrong = [
        "x",
        run.token[:-1],
        run.token + "A",
        f"{task_id}.{int(attempt) + 1}.{mac}",
        f"{other.task_id}.{attempt}.{mac}",
        f"{task_id}.0{attempt}.{mac}",
        f"{task_id}.{attempt}.{'A' * 43}",
        forged(run.task_id, 1, b""),
        forged(run.task_id, 1, b"secret"),
    ]
    for token in wrong:
        answer = await run.report(token, progress=99)
        assert (answer.status_code, answer.json()["code"]) == (401, "bad_token"), token
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": run.token},
        {"Authorization": f"Basic {run.token}"},
    ):
        assert (await run.send(run.progress_url, b'{"progress":99}', headers)).status_code == 401
    assert await run.events() == ["pending"]
    # The token speaks for its own task, whatever else is said.
    assert (await run.report(progress=1, taskId=other.task_id)).status_code == 200
    assert (await run.row())["status"] == "processing"
    assert (await other.row())["status"] == "pending"


async def test_the_token_of_an_attempt_ends_with_it(run: Run) -> None:
    await run.report(status="failed", error="out of paint")
    assert await run.ended() == ("failed", None, "out of paint")
    await run.owner.execute("update public.image_generations set status = 'pending' where task_id = $1", run.task_id)
    answer = await run.report(progress=50)
    assert answer.json() == {"ok": True, "outcome": "stale", "cancel": True}
    assert (await run.report(status="completed", result=PICTURE)).json()["outcome"] == "stale"
    assert (await run.row())["status"] == "pending"


async def test_it_may_finish_here(run: Run) -> None:
    assert await run.outcome(delivery(202)) == "applied"
    await run.report(progress=70)
    assert (await run.report(status="completed", result=PICTURE)).json() == {
        "ok": True,
        "outcome": "applied",
        "cancel": False,
    }
    assert await run.ended() == ("completed", PICTURE, None)
    assert (await run.row())["progress"] == 100
    assert (await run.report(status="completed", result=PICTURE)).json()["outcome"] == "duplicate"
    assert (await run.report(status="failed", error="no")).json()["outcome"] == "stale"
    assert await run.outcome(delivery(500, b"", retried=3)) == "stale"
    assert await run.ended() == ("completed", PICTURE, None)


async def test_or_fail_here(run: Run) -> None:
    assert (await run.report(status="failed")).json()["outcome"] == "applied"
    assert await run.ended() == ("failed", None, "The generator gave no reason")
    assert (await run.row())["error_code"] == "generator_error"


async def test_a_result_must_be_one(run: Run) -> None:
    for result in (None, "", "javascript:alert(1)", "/etc/passwd", "x" * 9_000):
        answer = await run.report(status="completed", result=result)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert (await run.report(status="completed")).status_code == 400
    assert (await run.row())["status"] == "pending"


async def test_it_learns_that_it_need_not_go_on(run: Run) -> None:
    assert (await run.report(progress=10)).json()["cancel"] is False
    await run.owner.execute(
        """update public.image_generations set status = 'failed', error = 'cancelled', cancelled = true
            where task_id = $1""",
        run.task_id,
    )
    for report in ({"progress": 20}, {"progress": 10}, {"status": "completed", "result": PICTURE}):
        assert (await run.report(**report)).json() == {"ok": True, "outcome": "stale", "cancel": True}
    assert (await run.row())["cancelled"] is True
    assert (await run.row())["result"] is None


async def test_a_task_that_is_gone(run: Run) -> None:
    await run.owner.execute("delete from public.image_generations where task_id = $1", run.task_id)
    answer = await run.report(progress=10)
    assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


HOSTILE: list[Any] = [
    b"",
    b"[]",
    b"null",
    b'{"progress":',
    b'{"progress":1e400}',
    b'{"progress":NaN}',
    b'{"message":"\\u0000"}',
    b'{"message":"\\ud800"}',
    b'{"message":"\xff"}',
    {"progress": -1},
    {"progress": 100.5},
    {"progress": "50"},
    {"progress": True},
    {"message": "x" * 501},
    {"message": 5},
    {"preview": "javascript:alert(1)"},
    {"preview": "data:text/html,x"},
    {"preview": " data:image/png,x"},
    {"preview": "https://x/" + "y" * 32_768},
    json.dumps({"preview": "https://x/" + "é" * 20_000}, ensure_ascii=False).encode(),
    {"step": -1},
    {"step": 1.5},
    {"steps": 2**63},
    {"delivery": 0},
    {"delivery": 10**9},
    {"status": "pending"},
    {"status": "cancelled"},
    {"status": "failed", "error": ""},
    {"status": "failed", "error": "x" * 2_001},
]


async def test_hostile_reports(run: Run) -> None:
    for report in HOSTILE:
        body = report if isinstance(report, bytes) else json.dumps(report).encode()
        answer = await run.send(run.progress_url, body, {"Authorization": f"Bearer {run.token}"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body"), report
    large = await run.send(run.progress_url, b" " * 70_000, {"Authorization": f"Bearer {run.token}"})
    assert large.status_code == 413
    assert await run.events() == ["pending"]
    kept = "<b>\N{RIGHT-TO-LEFT OVERRIDE}\\u0000</b>"
    assert (await run.report(message=kept)).json()["outcome"] == "applied"
    assert (await run.row())["message"] == kept


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods(run: Run, method: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.request(method, run.progress_url)).status_code == 405
