"""The built-in generator's process, called as QStash would: whose jobs it takes, what it draws, when it stops."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployment import CURRENT_KEY, NEXT_KEY, Server, clean_env, listen
from tests.dispatch.runs import sign
from tests.receiver import Receiver, Reply, Request

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Studio:
    server: Server
    folder: Path
    reports: socket.socket

    async def job(self, **job: Any) -> httpx.Response:
        """A job as QStash delivers it, signed for the URL of the generator."""
        body = json.dumps(job).encode()
        headers = {
            "Upstash-Signature": sign(self.url, body),
            "Taskbeam-Progress-Url": f"http://127.0.0.1:{self.reports.getsockname()[1]}/progress",
            "Taskbeam-Progress-Token": "t",
            "Upstash-Retried": "2",
        }
        return await self.post(body, headers)

    async def post(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            return await client.post(self.url, content=body, headers=headers)

    @property
    def url(self) -> str:
        return f"{self.server.url}/"

    def picture(self, answer: httpx.Response) -> bytes:
        """The picture that the answer names."""
        assert answer.status_code == 200, answer.text
        name: str = answer.json()["result"].removeprefix("/results/")
        assert len(name) >= 22 + 4
        return (self.folder / "results" / name).read_bytes()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    listener, reports = listen(), listen()
    env = {
        **clean_env(),
        "GENERATOR_URL": f"http://127.0.0.1:{listener.getsockname()[1]}/",
        "GENERATOR_SECONDS": "1.5",
        "DATA_DIR": str(folder),
        "QSTASH_TOKEN": "unused",
        "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
        "QSTASH_NEXT_SIGNING_KEY": NEXT_KEY,
    }
    server = Server("generator", env, folder / "generator.log", listener)
    try:
        asyncio.run(server.start())
        yield Studio(server, folder, reports)
    finally:
        server.stop()
        listener.close()
        reports.close()


@pytest.fixture
async def reports(studio: Studio) -> AsyncIterator[Receiver]:
    """Where the generator sends its reports."""
    async with Receiver(studio.reports) as reports:
        reports.on("/progress", Reply(200, b'{"ok":true,"outcome":"applied","cancel":false}'))
        yield reports


async def test_a_picture_and_the_way_to_it(studio: Studio, reports: Receiver) -> None:
    began = time.monotonic()
    answer = await studio.job(prompt="a red house", size="large")
    assert 1.5 <= time.monotonic() - began < 8
    assert studio.picture(answer).startswith(PNG)
    sent = reports.at("/progress")
    assert {request.headers["authorization"] for request in sent} == {"Bearer t"}
    said = [request.json() for request in sent]
    assert [report["progress"] for report in said] == sorted({report["progress"] for report in said})
    assert said[0]["progress"] == 0
    assert len(said) >= 3
    assert {report["delivery"] for report in said} == {3}
    assert all(report["message"] for report in said)
    assert said[-1]["preview"].startswith("data:image/jpeg;base64,")
    assert len(said[-1]["preview"]) <= 32_768
    assert all(report["step"] < report["steps"] for report in said[1:])


async def test_the_same_words_make_the_same_picture(studio: Studio, reports: Receiver) -> None:
    jobs = ({"prompt": "sea"}, {"prompt": "sea"}, {"prompt": "sea", "seed": 7}, {"prompt": "forest"})
    first, again, seeded, other = [studio.picture(a) for a in await asyncio.gather(*(studio.job(**j) for j in jobs))]
    assert first == again
    assert len({first, seeded, other}) == 3
    names = [path.name for path in (studio.folder / "results").iterdir()]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.endswith(".part")]


async def test_only_signed_jobs(studio: Studio) -> None:
    body = b'{"prompt":"x"}'
    for headers in (
        {},
        {"Upstash-Signature": "a.b.c"},
        {"Upstash-Signature": sign(studio.url, body, "sig_wrong_key_of_nobody_at_all__")},
        {"Upstash-Signature": sign(studio.url + "x", body)},
        {"Upstash-Signature": sign(studio.url, body + b" ")},
        {"Upstash-Signature": sign(studio.url, body, exp=1)},
    ):
        answer = await studio.post(body, headers)
        assert answer.status_code == 401
        assert "Upstash-NonRetryable-Error" not in answer.headers
    refused = await studio.post(b'{"prompt":5}', {"Upstash-Signature": sign(studio.url, b'{"prompt":5}', NEXT_KEY)})
    assert refused.status_code == 489


async def test_how_failures_look(studio: Studio, reports: Receiver) -> None:
    failed = await studio.job(prompt="x", simulate="error")
    assert (failed.status_code, "error" in failed.json()) == (500, True)
    for job in (
        {"prompt": "x", "simulate": "refuse"},
        {"prompt": "x", "simulate": "dance"},
        {"no": "prompt"},
        {"prompt": "x", "seed": "y"},
    ):
        refused = await studio.job(**job)
        assert refused.status_code == 489
        assert refused.headers["upstash-nonretryable-error"] == "true"
    large = await studio.job(prompt="x" * 200_000)
    assert large.status_code == 489


async def test_it_stops_when_told(studio: Studio, reports: Receiver) -> None:
    before = set((studio.folder / "results").glob("*"))

    async def cancel_later(_: Request) -> Reply:
        cancel = len(reports.at("/progress")) >= 2
        return Reply(200, json.dumps({"ok": True, "outcome": "stale", "cancel": cancel}).encode())

    reports.on("/progress", cancel_later)
    answer = await studio.job(prompt="a long one", simulate="slow")
    assert answer.json() == {"cancelled": True}
    assert len(reports.at("/progress")) == 2
    assert set((studio.folder / "results").glob("*")) == before


async def test_reports_that_go_nowhere_cost_nothing(studio: Studio, reports: Receiver) -> None:
    reports.script("/progress", Reply(500), Reply(200, b"not json"), Reply(200, b"[]"), Reply(302))
    assert studio.picture(await studio.job(prompt="on its own")).startswith(PNG)

    async def job(url: str) -> int:
        body = b'{"prompt":"x"}'
        signature = {"Upstash-Signature": sign(studio.url, body)}
        answer = await studio.post(body, {**signature, "Taskbeam-Progress-Url": url, "Taskbeam-Progress-Token": "t"})
        return answer.status_code

    nowhere = ("", "http://127.0.0.1:9/", "not a url", "http://[", "file:///etc/passwd")
    assert await asyncio.gather(*map(job, nowhere)) == [200] * len(nowhere)
    assert "Traceback" not in studio.server.log.read_text()
