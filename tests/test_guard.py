"""Who may address a server without sign-in at all, and what every answer carries."""

import asyncio
import json
import re

import pytest

from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.exposition import scrape
from tests.playing import Play
from tests.receiver import until


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    return await deploy(dispatchers=0, generator=False, env={"PUBLIC_URL": "https://tunnel.example.com"})


async def test_who_may_address_us(here: Deployment) -> None:
    port = here.web.port
    own = f"http://127.0.0.1:{port}"
    allowed: list[dict[str, str]] = [
        {},
        {"Host": f"localhost:{port}"},
        {"Host": f"[::1]:{port}"},
        {"Origin": own},
        {"Sec-Fetch-Site": "same-origin"},
        # The development server of an app on this machine passes it on.
        {"Origin": "http://localhost:3000", "X-Forwarded-Host": "localhost:3000", "X-Forwarded-For": "::1"},
        {"X-Forwarded-For": "::ffff:127.0.0.1, 127.0.0.1"},
    ]
    refused: list[tuple[dict[str, str], str]] = [
        ({"Host": "evil.test"}, "foreign_host"),
        ({"Host": "tunnel.example.com"}, "foreign_host"),
        ({"Host": "localhost.evil.test"}, "foreign_host"),
        ({"Host": "127.0.0.1.evil.test"}, "foreign_host"),
        ({"X-Forwarded-Host": "tunnel.example.com"}, "foreign_host"),
        ({"X-Forwarded-For": "203.0.113.9"}, "foreign_host"),
        ({"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}, "foreign_host"),
        ({"CF-Connecting-IP": "203.0.113.9"}, "foreign_host"),
        ({"Origin": "https://evil.test"}, "foreign_origin"),
        ({"Origin": "null"}, "foreign_origin"),
        ({"Origin": own.replace("http", "https")}, "foreign_origin"),
        ({"Origin": f"{own}.evil.test"}, "foreign_origin"),
        ({"Origin": "http://localhost:3000"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "foreign_origin"),
    ]
    async with here.client() as client:
        for headers in allowed:
            answer = await client.post("/api/generate", json={"prompt": "mine"}, headers=headers)
            assert answer.status_code == 202, headers
            assert "access-control-allow-origin" not in answer.headers
        for headers, code in refused:
            for method, path in (("POST", "/api/generate"), ("GET", "/api/generate/events")):
                answer = await client.request(method, path, json={"prompt": "theirs"}, headers=headers)
                assert answer.json()["code"] == code, (headers, path)
        tasks = (await client.get("/api/generate?limit=100")).json()["tasks"]
    assert {task["prompt"] for task in tasks} == {"mine"}


async def test_behind_a_tunnel_only_what_proves_itself_answers(here: Deployment) -> None:
    headers = {"Host": "tunnel.example.com", "X-Forwarded-For": "203.0.113.9"}
    async with here.client() as client:
        for path, code in (
            ("/api/generate/callback?task=x&attempt=1", "bad_signature"),
            ("/api/generate/progress", "bad_token"),
        ):
            answer = await client.post(path, json={}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, code)
        # What PUBLIC_URL says of a picture must be so. (Its name has 256 bits.)
        name = "k" * 43 + ".png"
        (here.folder / "results").mkdir(exist_ok=True)
        (here.folder / "results" / name).write_bytes(b"picture")
        assert (await client.get(f"/results/{name}", headers=headers)).content == b"picture"
        assert (await client.get("/results/guess.png", headers=headers)).status_code == 404
        for path in ("/", "/docs", "/metrics", "/api/generate", "/api/generate/status?taskId=x", "/readyz", "/nothing"):
            assert (await client.get(path, headers=headers)).status_code == 421, path


async def test_what_every_answer_carries(here: Deployment) -> None:
    async with here.client() as client:
        for path in ("/", "/docs", "/static/client.js", "/healthz", "/openapi.json", "/nothing", "/api/generate"):
            answer = await client.get(path, headers={"X-Request-Id": "req-1"})
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["x-request-id"] == "req-1"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self'" in policy
            assert "unsafe" not in policy
            assert "server" not in answer.headers
        # An id that could forge a log line is replaced.
        answer = await client.get("/healthz", headers={"X-Request-Id": "a b;c"})
        assert re.fullmatch(r"[A-Za-z0-9_-]{12}", answer.headers["x-request-id"])


async def test_errors_are_problems(here: Deployment) -> None:
    big = json.dumps({"prompt": "x" * 70_000})
    digits = b'{"prompt":"x","params":{"n":' + b"9" * 50_000 + b"}}"
    cases: list[tuple[str, str, dict[str, object], int, str]] = [
        ("GET", "/nothing", {}, 404, "not_found"),
        ("GET", "/results/short.png", {}, 404, "not_found"),
        ("GET", "/results/..%2f..%2fsecrets.json", {}, 404, "not_found"),
        ("GET", "/static/nothing.js", {}, 404, "not_found"),
        ("GET", "/static/..%2fpyproject.toml", {}, 404, "not_found"),
        ("DELETE", "/api/generate/status", {}, 405, "method_not_allowed"),
        ("POST", "/api/generate", {"json": {"prompt": ""}}, 400, "invalid_prompt"),
        ("POST", "/api/generate", {"json": {"prompt": " \n "}}, 400, "invalid_prompt"),
        ("POST", "/api/generate", {"json": {"prompt": "x" * 32_001}}, 400, "invalid_prompt"),
        ("POST", "/api/generate", {"json": {}}, 400, "invalid_body"),
        ("POST", "/api/generate", {"json": {"prompt": 7}}, 400, "invalid_body"),
        ("POST", "/api/generate", {"json": {"prompt": "x", "extra": 1}}, 400, "invalid_body"),
        ("POST", "/api/generate", {"json": {"prompt": "x", "params": []}}, 400, "invalid_body"),
        ("POST", "/api/generate", {"json": {"prompt": "a\x00b"}}, 400, "invalid_body"),
        ("POST", "/api/generate", {"json": {"prompt": "x", "params": {"a\x00": 1}}}, 400, "invalid_body"),
        ("POST", "/api/generate", {"content": b'{"prompt":"\\ud800"}'}, 400, "invalid_body"),
        ("POST", "/api/generate", {"content": b'{"prompt":"\xff"}'}, 400, "invalid_body"),
        ("POST", "/api/generate", {"content": b"{" * 10_000}, 400, "invalid_body"),
        ("POST", "/api/generate", {"content": digits}, 400, "invalid_body"),
        ("POST", "/api/generate", {"content": b'{"prompt":"x","params":{"n":1e999}}'}, 400, "invalid_body"),
        ("POST", "/api/generate", {"content": big.encode()}, 413, "too_large"),
        ("GET", "/api/generate?limit=0", {}, 400, "invalid_parameter"),
        ("GET", "/api/generate?limit=1e3", {}, 400, "invalid_parameter"),
        ("GET", "/api/generate?status=done", {}, 400, "invalid_parameter"),
        ("GET", "/api/generate?cursor=abc", {}, 400, "invalid_cursor"),
        ("GET", "/api/generate?cursor=WyIyMDI2IiwgMV0", {}, 400, "invalid_cursor"),
        ("GET", "/api/generate?page=2", {}, 400, "invalid_parameter"),
    ]  # fmt: skip
    async with here.client() as client:
        for method, path, options, status, code in cases:
            headers = {"Content-Type": "application/json"} if "content" in options else {}
            answer = await client.request(method, path, headers=headers, **options)  # type: ignore[arg-type]
            shown = (method, path, str(options)[:80], answer.text[:200])
            assert answer.status_code == status, shown
            assert answer.headers["content-type"] == "application/problem+json", shown
            assert answer.json()["code"] == code, shown
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            answer = await client.post("/api/generate", content=b'{"prompt":"x"}', headers={"Content-Type": kind})
            assert answer.json()["code"] == "unsupported_media_type"

        async def endless() -> object:
            for _ in range(100):  # without a Content-Length
                yield b" " * 10_000

        answer = await client.post(
            "/api/generate",
            content=endless(),  # type: ignore[arg-type]
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 413
        assert (await client.get("/api/generate")).json() == {"tasks": []}


async def test_limits_are_inclusive(here: Deployment) -> None:
    async with here.client() as client:
        for prompt in ("x" * 32_000, "ü" * 20_000, "🦊" * 8_000, "a\\u0000b", "\u2028x"):
            answer = await client.post("/api/generate", json={"prompt": prompt})
            assert answer.status_code == 202, prompt[:10]
            status = await client.get(answer.json()["statusUrl"])
            assert status.json()["prompt"] == prompt


async def test_pages_of_tasks(here: Deployment) -> None:
    play = await Play.of(here)
    ids = [await play.create(f"picture {n}") for n in range(7)]
    await play.finish(ids[3])
    async with here.client() as client:
        seen, cursor, pages = [], None, 0
        while pages == 0 or cursor:
            answer = (
                await client.get("/api/generate", params={"limit": 3, **({"cursor": cursor} if cursor else {})})
            ).json()
            seen += [task["taskId"] for task in answer["tasks"]]
            cursor, pages = answer.get("cursor"), pages + 1
        assert seen == ids[::-1]
        assert pages == 3
        done = (await client.get("/api/generate?status=completed")).json()
        assert [task["taskId"] for task in done["tasks"]] == [ids[3]]


async def test_logs_and_metrics_hold_no_ids_and_no_secrets(here: Deployment) -> None:
    play = await Play.of(here)
    task_id = await play.create("nobody logs this prompt")
    await play.report(task_id, 10)
    await play.finish(task_id)
    async with here.client() as client:
        for n in range(50):
            await client.get(f"/nothing-{n}/%1b[2J%0a")
        await client.get("/healthz", headers={"User-Agent": "x\x1b[31m" + "y" * 5_000})
        metrics = (await client.get("/metrics")).text
    assert task_id not in metrics
    assert len({line.split("{")[0] for line in metrics.splitlines()}) < 150
    assert 'route="/api/generate/status"' in metrics or 'route="/api/generate"' in metrics
    assert metrics.count("nothing-") == 0
    log = here.web.log.read_text()
    assert "nobody logs" not in log
    for secret in (here.env["QSTASH_TOKEN"], here.env["QSTASH_CURRENT_SIGNING_KEY"]):
        assert secret not in log
    assert not re.search(r"eyJ[\w-]+\.[\w-]+\.", log)  # a signature
    assert "\x1b" not in log
    for line in log.splitlines():
        entry = json.loads(line)
        assert {"event", "level", "timestamp", "process"} <= set(entry)
    requests = [json.loads(line) for line in log.splitlines() if '"callback"' in line]
    assert requests
    assert requests[0]["task_id"] == task_id
    assert requests[0]["request_id"]


async def test_who_hangs_up_in_the_middle_is_no_defect(here: Deployment) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", here.web.port)
    writer.write(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    labels = {"route": "/api/generate", "method": "POST", "status": "499"}

    async def counted() -> bool:
        return ("taskbeam_requests_total", frozenset(labels.items())) in await scrape(here.web.url)

    await until(counted, "the request is counted")
    assert "request_failed" not in here.web.log.read_text()
