"""What a web process makes of callbacks: whose it believes, what each changes, and what none may change."""

import asyncio
import base64
import hashlib
import json
import re
from typing import Any

import jwt
import pytest

from tests.deployment import NEXT_KEY
from tests.dispatch.conftest import Connection, Home
from tests.dispatch.runs import Run, begin, delivery, sign
from tests.exposition import scrape, value
from tests.receiver import Receiver

PICTURE = "https://pictures.test/1.png"
DONE = delivery(200, {"result": PICTURE})
PENDING = ("pending", None, None)


async def again(run: Run) -> Run:
    """The same task's next attempt, after this one has failed."""
    await run.owner.execute("update public.image_generations set status = 'pending' where task_id = $1", run.task_id)
    second = Run(**vars(run))
    second.callback_url = run.callback_url.replace("attempt=1", "attempt=2")
    assert second.callback_url != run.callback_url
    return second


async def test_done(run: Run) -> None:
    assert await run.outcome(DONE) == "applied"
    assert await run.ended() == ("completed", PICTURE, None)
    assert await run.events() == ["pending", "completed"]


async def test_signed_with_the_next_key(run: Run) -> None:
    assert await run.outcome(DONE, signature=sign(run.callback_url, DONE, NEXT_KEY)) == "applied"


@pytest.mark.parametrize("padding", ["", "="])
async def test_the_body_s_hash_with_and_without_padding(run: Run, padding: str) -> None:
    plain = base64.urlsafe_b64encode(hashlib.sha256(DONE).digest()).decode().rstrip("=")
    assert await run.outcome(DONE, signature=sign(run.callback_url, DONE, body=plain + padding)) == "applied"


FORGED: dict[str, dict[str, Any]] = {
    "wrong key": {"key": "sig_wrong"},
    "other issuer": {"iss": "Downstash"},
    "no issuer": {"iss": None},
    "other body": {"body": "AAAA"},
    "no body": {"body": None},
    "expired": {"iat": 1_700_000_000, "nbf": 0, "exp": 1_700_000_300},
    "of the future": {"nbf": 4_000_000_000, "exp": 4_000_000_300},
    "no expiry": {"exp": None},
    "no id": {"jti": None},
    "huge id": {"jti": "x" * 1000},
    "id with NUL": {"jti": "a\0b"},
    "no subject": {"sub": None},
    "other task": {"sub": "{other}"},
    "other attempt": {"sub": "{attempt}"},
    "other host": {"sub": "http://evil.test/api/generate/callback?task={task}&attempt=1"},
}


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
@pytest.mark.parametrize("how", FORGED)
async def test_forged(run: Run, how: str) -> None:
    claims = dict(FORGED[how])
    if isinstance(claims.get("sub"), str):
        claims["sub"] = claims["sub"].format(
            other=run.callback_url.replace(run.task_id, "other"),
            attempt=run.callback_url.replace("attempt=1", "attempt=2"),
            task=run.task_id,
        )
    key = claims.pop("key", None)
    signature = sign(run.callback_url, DONE, **({} if key is None else {"key": key}), **claims)
    await refused(run, DONE, signature)


async def refused(run: Run, body: bytes, signature: str) -> None:
    answer = await run.call(body, signature=signature)
    assert (answer.status_code, answer.json()["code"]) == (401, "bad_signature")
    assert "Upstash-NonRetryable-Error" not in answer.headers
    assert await run.ended() == PENDING
    assert await run.events() == ["pending"]


async def test_no_signature_at_all(run: Run) -> None:
    await refused(run, DONE, "")
    await refused(run, DONE, "a.b.c")
    await refused(run, DONE, "x" * 20_000)
    header, claims, _ = sign(run.callback_url, DONE).split(".")
    await refused(run, DONE, f"{header}.{claims}.")
    none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"  # {"alg":"none","typ":"JWT"}
    await refused(run, DONE, f"{none}.{claims}.")


async def test_one_byte_is_enough(run: Run) -> None:
    signature = sign(run.callback_url, DONE)
    for body in (DONE + b" ", DONE[:-1], DONE.replace(b"192.0.2.1", b"192.0.2.2"), b""):
        await refused(run, body, signature)
    reserialised = json.dumps(json.loads(DONE), separators=(",", ":")).encode()
    await refused(run, reserialised, signature)
    assert await run.outcome(DONE, signature=signature) == "applied"


async def test_replayed(run: Run) -> None:
    """The very same request again: 200, so that it is not sent once more, and nothing changes."""
    progress = delivery(500, b"busy")
    signature = sign(run.callback_url, progress)
    assert await run.outcome(progress, signature=signature) == "applied"
    await run.report(progress=50)
    events = await run.events()
    assert await run.outcome(progress, signature=signature) == "duplicate"
    # The id counts, not the message: nobody may use one that was seen for another body.
    other = sign(run.callback_url, DONE, jti=_jti(signature))
    assert await run.outcome(DONE, signature=other) == "duplicate"
    assert await run.events() == events


def _jti(signature: str) -> str:
    return str(jwt.decode(signature, options={"verify_signature": False})["jti"])


async def test_twenty_at_once(run: Run) -> None:
    same = sign(run.callback_url, DONE)
    outcomes = await asyncio.gather(
        *(run.outcome(DONE, signature=same) for _ in range(10)), *(run.outcome(DONE) for _ in range(10))
    )
    assert sorted(outcomes) == ["applied"] + ["duplicate"] * 19
    assert await run.events() == ["pending", "completed"]


async def test_late(run: Run) -> None:
    await run.outcome(DONE)
    for body, outcome in (
        (DONE, "duplicate"),
        (delivery(200, {"result": PICTURE + "?2"}), "stale"),
        (delivery(500, b"", retried=3), "stale"),
        (delivery(500, b"", retried=0), "stale"),
        (delivery(202), "stale"),
    ):
        assert await run.outcome(body) == outcome
    assert (await run.report(progress=100)).json()["outcome"] == "stale"
    assert await run.ended() == ("completed", PICTURE, None)
    assert await run.events() == ["pending", "completed"]


async def test_a_failure_that_is_not_the_last_then_success(run: Run) -> None:
    await run.report(progress=40, message="half way")
    assert await run.outcome(delivery(500, b"boom", retried=0)) == "applied"
    row = await run.row()
    assert (row["status"], row["message"]) == ("processing", "The generator answered 500; trying again")
    assert (await run.report(progress=5, message="anew", delivery=2)).json()["outcome"] == "applied"
    # It comes once more, late: what the second delivery says of itself stays.
    assert await run.outcome(delivery(500, b"boom", retried=0)) == "stale"
    row = await run.row()
    assert (row["progress"], row["message"], row["delivery"]) == (5, "anew", 2)
    assert await run.outcome(delivery(200, {"result": PICTURE}, retried=1)) == "applied"
    assert await run.ended() == ("completed", PICTURE, None)


@pytest.mark.parametrize(
    ("body", "error", "code"),
    [
        (delivery(500, b"no paint\n\0left", retried=3), "The generator answered 500: no paintleft", "generator_error"),
        (delivery(404, b"", retried=0, maxRetries=0), "The generator answered 404", "generator_error"),
        (delivery(504, b"", retried=3), "The generator answered 504", "timeout"),
        (delivery(0, b"x", retried=3), "The generator could not be reached", "unreachable"),
        (delivery(489, b"no", retried=1, dlqId="1-1"), "The generator answered 489: no", "generator_error"),
        (delivery(302, b"", retried=3), "The generator answered 302", "generator_error"),
    ],
)
async def test_the_last_failure_ends_it_with_its_reason(run: Run, body: bytes, error: str, code: str) -> None:
    assert await run.outcome(body) == "applied"
    row = await run.row()
    assert (row["status"], row["error"], row["error_code"], row["cancelled"]) == ("failed", error, code, False)
    # The failure callback says the same once more.
    twin = json.dumps({**json.loads(body), "dlqId": "1-2"}).encode()
    assert await run.outcome(twin) == "duplicate"
    assert await run.events() == ["pending", "failed"]


async def test_accepted_is_not_finished(run: Run) -> None:
    assert await run.outcome(delivery(202, b"queued")) == "applied"
    assert (await run.row())["status"] == "processing"
    assert (await run.report(status="completed", result=PICTURE)).json()["outcome"] == "applied"
    assert await run.ended() == ("completed", PICTURE, None)


async def test_crossed_attempts(run: Run) -> None:
    await run.outcome(delivery(500, b"", retried=3))
    second = await again(run)
    assert await run.outcome(DONE) == "stale"
    assert await run.outcome(delivery(500, b"", retried=3, dlqId="1-1")) == "stale"
    assert await run.ended() == PENDING
    future = Run(**vars(run))
    future.callback_url = run.callback_url.replace("attempt=1", "attempt=3")
    assert await future.outcome(DONE) == "stale"
    assert await second.outcome(DONE) == "applied"
    assert await run.events() == ["pending", "failed", "pending", "completed"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"null",
        b"[]",
        {"status": "ok"},
        {"result": 5},
        {"result": "javascript:alert(1)"},
        {"result": "/api/generate"},
    ],
)
async def test_no_result_in_the_answer(run: Run, answer: Any) -> None:
    assert await run.outcome(delivery(200, answer)) == "applied"
    row = await run.row()
    assert (row["status"], row["error_code"]) == ("failed", "bad_response")
    assert row["error"].startswith("The generator's ")


async def test_where_the_usual_apis_put_it(office: Home, provider: Receiver, tasks: Connection) -> None:
    for answer in (
        {"data": [{"url": PICTURE}]},
        {"output": [PICTURE]},
        {"output": PICTURE},
        {"images": [{"url": PICTURE}]},
    ):
        run = await begin(office.deployment.web.url, provider, tasks)
        assert await run.outcome(delivery(200, answer)) == "applied"
        assert await run.ended() == ("completed", PICTURE, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}x",
        b"[]",
        b'{"status":"200"}',
        b'{"status":200,"body":"%%%"}',
        b'{"status":200,"body":5}',
        b'{"status":200,"retried":"0"}',
        b'{"status":1e400}',
        b"[" * 100_000,
    ],
)
async def test_a_body_that_is_none(run: Run, body: bytes) -> None:
    answer = await run.call(body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert await run.ended() == PENDING


async def test_missing_fields_are_no_success(run: Run) -> None:
    assert await run.outcome(b"{}") == "applied"
    assert (await run.row())["status"] == "processing"
    assert await run.outcome(b'{"dlqId":"1-1"}') == "applied"
    assert (await run.row())["error_code"] == "unreachable"


async def test_nobody_knows_the_task(run: Run) -> None:
    """No retry will help: QStash is told so."""
    gone = Run(**vars(run))
    gone.callback_url = run.callback_url.replace(run.task_id, "no-such-task")
    for body in (DONE, delivery(500, b"", retried=3), delivery(202)):
        answer = await gone.call(body)
        assert (answer.status_code, answer.json()["code"]) == (489, "unknown_task")
        assert answer.headers["upstash-nonretryable-error"] == "true"


@pytest.mark.parametrize(
    "query", ["", "?task=x", "?attempt=1", "?task=x&attempt=0", "?task=x&attempt=1e3", "?task=%00&attempt=1"]
)
async def test_a_url_that_names_no_run(run: Run, query: str) -> None:
    url = run.callback_url.partition("?")[0] + query
    answer = await run.send(url, DONE, {"Upstash-Signature": sign(url, DONE)})
    assert answer.status_code == (401 if not query else 400)


async def test_a_body_has_a_limit_and_strangers_have_none(run: Run, office: Home) -> None:
    answer = await run.call(delivery(200, b"x" * 24 * 1024 * 1024))
    assert answer.status_code == 413
    # Without a signature the answer comes before the body has.
    reader, writer = await asyncio.open_connection("127.0.0.1", office.deployment.web.port)
    path = "/api/generate/callback?task=x&attempt=1"
    writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
    writer.close()
    assert b" 401 " in head
    # What a generator may answer fits.
    large = json.dumps({"result": PICTURE, "padding": "x" * 16_000_000}).encode()
    assert await run.outcome(delivery(200, large)) == "applied"


async def test_nothing_secret_is_logged(run: Run, office: Home) -> None:
    """Whatever was sent in this module, right or wrong."""
    signature = sign(run.callback_url, DONE)
    await run.call(DONE, signature=signature[:-4] + "AAAA")
    await run.report("wrong." + run.token)
    await run.outcome(DONE, signature=signature)
    shown = await scrape(office.deployment.web.url)
    assert value(shown, "taskbeam_signatures_refused_total", {"kind": "callback", "reason": "wrong_key"}) >= 1
    assert value(shown, "taskbeam_signatures_refused_total", {"kind": "webhook", "reason": "wrong_key"}) == 0
    log = office.deployment.web.log.read_text()
    assert '"callback_refused"' in log
    assert run.task_id in log
    for name in ("QSTASH_TOKEN", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"):
        assert office.deployment.env[name] not in log
    for secret in (signature, signature.split(".")[2], run.token, run.token.split(".")[2]):
        assert secret not in log
    assert not re.search(r"eyJ[\w-]{10,}\.", log), "a token"
    assert "Traceback" not in log
