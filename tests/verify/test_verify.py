"""`taskbeam verify` on a real deployment: where all is sound it finds nothing; what is spoilt on the way, it finds."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import httpx
import pytest

from server.clients.origin import Origin
from server.verify import final, outside, run
from server.verify.report import Report, text
from server.verify.run import Plan, Verify
from tests.conftest import Deploy
from tests.deploy.proxies import certificate
from tests.deployment import COMMAND, Deployment, clean_env
from tests.verify import front
from tests.verify.front import Front

PROMPT = "a check of the whole"
EVERYWHERE = {"sse", "sse_after", "websocket", "longpoll", "poll", "sse (all tasks)", "websocket (all tasks)"}

# What is spoilt, and of which kind the defect is, over which transport.
SPOILT = [
    (front.Buffering, {("late", "sse"), ("late", "sse_after"), ("lost", "sse")}),
    (front.Repeating, {("repeated", "sse"), ("repeated", "sse_after")}),
    (front.Reordering, {("reordered", "sse"), ("reordered", "sse_after")}),
    (front.Skipping, {("lost", "sse")}),
    (front.Endless, {("unended", "sse"), ("unended", "sse_after")}),
    (front.Forgetful, {("untrue", "sse"), ("untrue", "sse_after")}),  # it should have been 204, and a replay
    (front.Untagged, {("untrue", "poll")}),
    (front.Differing, {("untrue", "sse"), ("untrue", "sse_after")}),
    (front.Halting, {("lost", "sse"), ("lost", "sse_after")}),
    (front.WithoutSockets, {("refused", "websocket"), ("untrue", "websocket")}),
]


async def verify(url: str, *, tasks: int = 1, seconds: float = 12, headers: dict[str, str] | None = None) -> Report:
    said: list[str] = []
    plan = Plan(tasks, seconds, PROMPT, seed=1, keep=False)
    report = await Verify(plan, Origin.parse(url, headers or {}), said.append).run()
    assert any(PROMPT in line and "price" in line for line in said)
    return report


async def through(spoilt: Front) -> Report:
    await spoilt.start()
    try:
        return await verify(spoilt.url)
    finally:
        await spoilt.stop()


async def left_over(here: Deployment) -> list[str]:
    async with here.client() as client:
        return [task["prompt"] for task in (await client.get("/api/generate")).json()["tasks"]]


async def test_what_is_sound_and_what_is_spoilt(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await deploy(env={"GENERATOR_SECONDS": "1.5"})
    with monkeypatch.context() as patient:
        patient.setattr(outside, "FIRST_BYTES_SECONDS_MAX", 3.0)  # a machine under load is no proxy that buffers
        patient.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
        await _nothing_to_say_behind_tls_and_a_prefix(here, tmp_path)
    monkeypatch.setattr(run, "SETTLE_SECONDS_MAX", 2.0)
    monkeypatch.setattr(final, "ASK_SECONDS_MAX", 1.0)
    reports = await asyncio.gather(*(through(kind(here.web.port)) for kind, _ in SPOILT))
    for (kind, expected), report in zip(SPOILT, reports, strict=True):
        found = {(defect.kind, defect.transport) for defect in report.defects}
        assert expected <= found, (kind.__name__, found, text(report))
        assert report.tasks == {"completed": 1, "failed": 0, "open": 0}, kind.__name__
    buffering = text(reports[0])
    assert "buffers the stream" in buffering
    assert "defects: " in buffering
    await _a_task_that_does_not_end(here)
    assert await left_over(here) == []


async def _nothing_to_say_behind_tls_and_a_prefix(here: Deployment, tmp_path: Path) -> None:
    tls = certificate(tmp_path, "localhost")
    sound = Front(here.web.port, "/pictures%20of%20mine", tls)
    await sound.start()
    try:
        report = await verify(f"{sound.url}/", tasks=2, headers={"Authorization": "Bearer a-token-of-mine"})
    finally:
        await sound.stop()
    assert report.defects == [], text(report)
    assert report.tasks == {"completed": 2, "failed": 0, "open": 0}
    assert {headers.get("authorization") for headers in sound.seen_headers} == {"Bearer a-token-of-mine"}
    assert any("upgrade" in headers for headers in sound.seen_headers)
    # It shows something only where it has looked.
    assert report.late_ms.keys() == EVERYWHERE
    assert all(times.count >= 1 for times in report.late_ms.values()), report.late_ms
    for check, least in (("changes", 50), ("connections", 18), ("agreed", 12), ("204", 4), ("304", 2), ("joins", 20)):
        assert report.checks[check] >= least, (check, report.checks)
    assert report.checks["deleted"] == 2
    assert "no defect" in text(report)
    assert "a-token-of-mine" not in repr(report)


async def _a_task_that_does_not_end(here: Deployment) -> None:
    assert here.generator is not None
    here.generator.stop()  # its socket is still there, and nobody answers
    report = await verify(here.web.url, seconds=1)
    assert {defect.kind for defect in report.defects} == {"open"}, text(report)
    assert report.tasks["open"] == 1


async def begin(*options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(COMMAND),
        "verify",
        *options,
        env=clean_env(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_command(deploy: Deploy) -> None:
    here = await deploy()
    process = await begin(here.web.url, "--tasks", "1", "--seconds", "10", "--seed", "7", "--keep", "--json")
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    report = json.loads(out)
    assert (report["seed"], report["tasks"]["completed"], report["defects"]) == (7, 1, [])
    async with here.client() as client:
        assert report["version"] == (await client.get("/openapi.json")).json()["info"]["version"]
    assert await left_over(here) == ["a red fox under the moon"]
    await _ctrl_c_deletes_what_was_begun(here)
    process = await begin(f"{here.web.url}/nowhere")
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out) == (2, b"")
    assert b"refused, HTTP 404 not_found" in err


async def _ctrl_c_deletes_what_was_begun(here: Deployment) -> None:
    process = await begin(here.web.url, "--tasks", "3", "--prompt", "not for long")
    async with here.client() as client, asyncio.timeout(30):
        while not await _is_begun(client):  # noqa: ASYNC110  (another process's doing)
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b""), err.decode()
    assert b"Traceback" not in err
    assert b"deleting 3 tasks" in err
    assert await left_over(here) == ["a red fox under the moon"]


async def _is_begun(client: httpx.AsyncClient) -> bool:
    tasks = (await client.get("/api/generate")).json()["tasks"]
    return any(task["prompt"] == "not for long" for task in tasks)
