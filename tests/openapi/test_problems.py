"""Provokes every problem that the descriptions declare, on every route, and holds each answer to its schema."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import asyncpg
import pytest

from server.embedded.postgres import EmbeddedPostgres
from server.tasks.retries import ATTEMPTS_MAX
from tests.deployment import TOKEN
from tests.dispatch.runs import sign
from tests.openapi.conftest import Connection, Here, webhook_signature
from tests.openapi.description import DISPATCHER, WEB, Operation

Request: TypeAlias = dict[str, Any]  # target and what httpx takes besides
Provoke: TypeAlias = Callable[[Here, str], Request]  # of a task that there is

NOBODY = "nobody"
JSON = {"Content-Type": "application/json"}
LARGE = 32 * 1024 * 1024 + 1
# With a state of the task that takes more than a request.
BELOW = {("deleteTask", "task_in_use"), ("retryTask", "attempts_exhausted")}
# A defect of ours, and what there is only with sign-in (tests/identity/).
NOT_PROVOKED = {
    "internal_error",
    "unauthorized",
    "invalid_access_token",
    "access_token_expired",
    "session_ended",
    "forbidden",
}
WITH_SIGN_IN = {("getSession", "unavailable"), ("beginSession", "unavailable"), ("getMetrics", "unavailable")}


def callback(here: Here, query: str, body: bytes = b"{}") -> Request:
    target = f"/api/generate/callback?{query}"
    signature = sign(here.deployment.web.url + target, body)
    return {"target": target, "content": body, "headers": {"Upstash-Signature": signature}}


def report(here: Here, task_id: str, body: bytes) -> Request:
    return {"target": "/api/generate/progress", "content": body, "headers": here.report_headers(task_id)}


def webhook(here: Here, task_id: str, body: bytes, replace: tuple[str, str] = ("", "")) -> Request:
    target = here.webhook(task_id).replace(*replace)
    return {"target": target, "content": body, "headers": webhook_signature(body)}


def create(body: bytes, media: str = "application/json", path: str = "/api/generate") -> Provoke:
    return lambda *_: {"target": path, "content": body, "headers": {"Content-Type": media}}


def ticket(body: bytes, media: str = "application/json") -> Provoke:
    return lambda _, task_id: {
        "target": "/api/generate/ticket",
        "content": body.replace(b"TASK", task_id.encode()),
        "headers": {"Content-Type": media},
    }


def of(target: str) -> Provoke:
    """A request without a body, with the method of its operation."""
    return lambda _, task_id: {"target": target.replace("TASK", task_id)}


PICTURE = b'{"type":"image.completed","data":{"url":"https://cdn.example.com/a.png"}}'
SPECIAL: dict[tuple[str, str], Provoke] = {
    ("beginSession", "invalid_body"): create(b'{"token":7}', path="/api/session"),
    ("beginSession", "too_large"): create(b'{"token":"%s"}' % (b"x" * 20_000), path="/api/session"),
    ("beginSession", "unsupported_media_type"): create(b'{"token":"x"}', "text/plain", path="/api/session"),
    ("createTask", "invalid_body"): create(b'{"prompt":'),
    ("createTask", "invalid_prompt"): create(b'{"prompt":" "}'),
    ("createTask", "unknown_generator"): create(b'{"prompt":"a","generator":"nobody"}'),
    ("createTask", "too_large"): create(b'{"prompt":"%s"}' % (b"x" * 70_000)),
    ("createTask", "unsupported_media_type"): create(b'{"prompt":"a"}', "text/plain"),
    ("listTasks", "invalid_parameter"): of("/api/generate?limit=0"),
    ("listTasks", "invalid_cursor"): of("/api/generate?cursor=x"),
    ("deleteTask", "invalid_parameter"): of("/api/generate"),
    ("deleteTask", "task_not_found"): of("/api/generate?taskId=nobody"),
    ("retryTask", "invalid_parameter"): of("/api/generate/retry?task=TASK"),
    ("retryTask", "task_not_found"): of("/api/generate/retry?taskId=nobody"),
    ("retryTask", "not_failed"): of("/api/generate/retry?taskId=TASK"),
    ("listDeliveries", "invalid_parameter"): of("/api/generate/deliveries"),
    ("listDeliveries", "task_not_found"): of("/api/generate/deliveries?taskId=nobody"),
    ("getTask", "invalid_parameter"): of("/api/generate/status"),
    ("getTask", "invalid_cursor"): of("/api/generate/status?taskId=TASK&after=x"),
    ("getTask", "task_not_found"): of("/api/generate/status?taskId=nobody"),
    ("followTasks", "invalid_parameter"): of("/api/generate/events?task=TASK"),
    ("followTasks", "invalid_cursor"): of("/api/generate/events?taskId=TASK&after=x"),
    ("followTasks", "invalid_ticket"): of("/api/generate/events?taskId=TASK&ticket=spent"),
    ("createTicket", "invalid_body"): ticket(b'{"taskIds":["a"],"all":true}'),
    ("createTicket", "task_not_found"): ticket(b'{"taskIds":["nobody"]}'),
    ("createTicket", "too_large"): ticket(b'{"taskIds":["%s"]}' % (b"x" * 20_000)),
    ("createTicket", "unsupported_media_type"): ticket(b'{"all":true}', "text/plain"),
    ("followTasks", "task_not_found"): of("/api/generate/events?taskId=nobody"),
    ("openSocket", "not_found"): of("/api/generate/ws"),
    ("takeCallback", "bad_signature"): lambda here, t: {
        **callback(here, f"task={t}&attempt=1"),
        "headers": {"Upstash-Signature": sign("http://evil.test/", b"{}")},
    },
    ("takeCallback", "invalid_parameter"): lambda here, t: callback(here, f"task={t}"),
    ("takeCallback", "invalid_body"): lambda here, t: callback(here, f"task={t}&attempt=1", b"[]"),
    ("takeCallback", "too_large"): lambda here, t: callback(here, f"task={t}&attempt=1", bytes(LARGE)),
    ("takeCallback", "unknown_task"): lambda here, _: callback(here, f"task={NOBODY}&attempt=1"),
    ("reportProgress", "bad_token"): lambda *_: {"target": "/api/generate/progress", "content": b"{}"},
    ("reportProgress", "invalid_body"): lambda here, t: report(here, t, b'{"progress":101}'),
    ("reportProgress", "task_not_found"): lambda here, _: report(here, NOBODY, b'{"progress":1}'),
    ("reportProgress", "too_large"): lambda here, t: report(here, t, b'{"x":"%s"}' % (b"x" * 70_000)),
    ("takeWebhook", "invalid_parameter"): lambda here, t: webhook(here, t, PICTURE, ("&attempt=1", "")),
    ("takeWebhook", "invalid_body"): lambda here, t: webhook(here, t, b"[]"),
    ("takeWebhook", "bad_token"): lambda here, t: webhook(here, t, PICTURE, ("&token=", "&token=x")),
    ("takeWebhook", "bad_signature"): lambda here, t: {**webhook(here, t, PICTURE), "content": PICTURE + b" "},
    ("takeWebhook", "unknown_provider"): lambda here, t: webhook(here, t, PICTURE, ("/standard?", "/stripe?")),
    ("takeWebhook", "webhook_not_configured"): lambda here, t: webhook(here, t, PICTURE, ("/standard?", "/fal?")),
    ("takeWebhook", "task_not_found"): lambda here, _: webhook(here, NOBODY, PICTURE),
    ("takeWebhook", "too_large"): lambda here, t: webhook(here, t, bytes(LARGE)),
    ("getPicture", "not_found"): of("/results/nobody.png"),
}
# What is right, and cannot be done while the tables are locked.
LOCKED: dict[str, Provoke] = {
    "createTask": create(b'{"prompt":"a"}'),
    "createTicket": ticket(b'{"taskIds":["TASK"]}'),
    "listTasks": of("/api/generate"),
    "getTask": of("/api/generate/status?taskId=TASK"),
    "retryTask": of("/api/generate/retry?taskId=TASK"),
    "listDeliveries": of("/api/generate/deliveries?taskId=TASK"),
    "deleteTask": of("/api/generate?taskId=TASK"),
    "takeCallback": lambda here, t: callback(here, f"task={t}&attempt=1", b'{"status":500}'),
    "reportProgress": lambda here, t: report(here, t, b'{"progress":1}'),
    "takeWebhook": lambda here, t: webhook(here, t, PICTURE),
}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOOK = "/v2/publish/https://example.com/"
DISPATCHERS: dict[tuple[str, int], Request] = {
    ("publishMessage", 400): {"target": "/v2/publish/ftp://example.com/", "headers": BEARER},
    ("publishMessage", 401): {"target": HOOK},
    ("publishMessage", 404): {"target": f"{HOOK}%0Ax", "headers": BEARER},
    ("publishMessage", 413): {"target": HOOK, "headers": BEARER, "content": bytes(1024 * 1024 + 1)},
    ("publishMessage", 500): {"target": HOOK, "headers": BEARER},
    ("getMessage", 401): {"target": "/v2/messages/x"},
    ("getMessage", 404): {"target": "/v2/messages/x", "headers": BEARER},
    ("getMessage", 500): {"target": "/v2/messages/x", "headers": BEARER},
    ("cancelMessage", 401): {"target": "/v2/messages/x"},
    ("cancelMessage", 404): {"target": "/v2/messages/x", "headers": BEARER},
    ("cancelMessage", 500): {"target": "/v2/messages/x", "headers": BEARER},
    ("cancelMessages", 400): {"target": "/v2/messages?queue=x", "headers": BEARER},
    ("cancelMessages", 401): {"target": "/v2/messages"},
    ("cancelMessages", 413): {"target": "/v2/messages", "headers": BEARER, "content": bytes(1024 * 1024 + 1)},
    ("cancelMessages", 500): {"target": "/v2/messages?messageIds=x", "headers": BEARER},
    ("listDeadLetters", 400): {"target": "/v2/dlq?count=0", "headers": BEARER},
    ("listDeadLetters", 401): {"target": "/v2/dlq"},
    ("listDeadLetters", 500): {"target": "/v2/dlq", "headers": BEARER},
    ("getDeadLetter", 401): {"target": "/v2/dlq/x"},
    ("getDeadLetter", 404): {"target": "/v2/dlq/x", "headers": BEARER},
    ("getDeadLetter", 500): {"target": "/v2/dlq/x", "headers": BEARER},
    ("listEvents", 400): {"target": "/v2/events", "headers": BEARER},
    ("listEvents", 401): {"target": "/v2/events?messageId=x"},
    ("listEvents", 500): {"target": "/v2/events?messageId=x", "headers": BEARER},
    ("listLogs", 400): {"target": "/v2/logs?messageId=x&state=ACTIVE", "headers": BEARER},
    ("listLogs", 401): {"target": "/v2/logs?messageId=x"},
    ("listLogs", 500): {"target": "/v2/logs?messageId=x", "headers": BEARER},
    ("getMetrics", 401): {"target": "/metrics", "headers": {"X-Forwarded-For": "203.0.113.7"}},
    ("getKeys", 401): {"target": "/v2/keys", "headers": {"Authorization": "Bearer x"}},
}


def everywhere(operation: Operation) -> dict[str, Request]:
    target = operation.path.replace("{provider}", "standard").replace("{name}", "x")
    return {
        "foreign_host": {"target": target, "headers": {"Host": "evil.test"}},
        "foreign_origin": {"target": target, "headers": {"Origin": "https://evil.test"}},
        "head_too_large": {"target": target, "headers": {"X-Long": "x" * 400_000}},
    }


def test_all_that_is_declared_is_provoked() -> None:
    for operation in WEB.operations:
        declared = {code for _, code in operation.problems_declared()}
        special = {code for name, code in SPECIAL if name == operation.id}
        special |= {code for name, code in BELOW if name == operation.id}
        special |= {code for name, code in WITH_SIGN_IN if name == operation.id}
        locked = {"unavailable"} if operation.id in LOCKED else set()
        assert declared - NOT_PROVOKED == special | locked | set(everywhere(operation)) & declared, operation.id
        assert "internal_error" in declared
    declared_there = {
        (operation.id, int(status))
        for operation in DISPATCHER.operations
        for status in operation.responses
        if status >= "400" and operation.id != "getReadiness"
    }
    assert declared_there == set(DISPATCHERS)


async def tasks(rows: Connection) -> int:
    count: int = await rows.fetchval("select count(*) from public.image_generations")
    return count


async def test_what_any_route_refuses(here: Here) -> None:
    before = await tasks(here.rows)
    for operation in here.web.operations:
        declared = {code: status for status, code in operation.problems_declared()}
        for code, request in everywhere(operation).items():
            if code in declared:
                answer = await here.ask(operation, **request)
                assert (answer.status_code, answer.json()["code"]) == (declared[code], code), (operation.id, code)
                assert answer.status_code == 431 or answer.json()["requestId"] == answer.headers["x-request-id"]
    assert await tasks(here.rows) == before


@pytest.mark.parametrize(("name", "code"), SPECIAL, ids=[" ".join(key) for key in SPECIAL])
async def test_what_a_route_refuses(here: Here, name: str, code: str) -> None:
    operation = here.web.operation(name)
    task_id = await here.create()
    before = await tasks(here.rows)
    answer = await here.ask(operation, **SPECIAL[name, code](here, task_id))
    assert answer.json()["code"] == code
    assert (answer.status_code, code) in operation.problems_declared()
    assert await tasks(here.rows) == before, "what is refused leaves nothing"
    version = await here.rows.fetchval("select version from public.image_generations where task_id = $1", task_id)
    assert version == 1, "and changes nothing"


@pytest.mark.parametrize(("name", "status"), [key for key in DISPATCHERS if key[1] != 500], ids=str)
async def test_what_the_dispatcher_refuses(here: Here, name: str, status: int) -> None:
    answer = await here.ask(here.dispatcher.operation(name), **DISPATCHERS[name, status])
    assert answer.status_code == status


async def test_a_task_that_other_rows_need_is_not_deleted(here: Here) -> None:
    task_id = await here.create()
    await here.rows.execute("create table orders (task_id text references public.image_generations (task_id))")
    try:
        await here.rows.execute("insert into orders values ($1)", task_id)
        answer = await here.ask(here.web.operation("deleteTask"), f"/api/generate?taskId={task_id}")
    finally:
        await here.rows.execute("drop table orders")
    assert (answer.status_code, answer.json()["code"]) == (409, "task_in_use")


async def test_a_task_that_was_tried_too_often_is_not_tried_again(here: Here) -> None:
    task_id = await here.create()
    await here.report(task_id, status="failed", error="no paint")

    async def tried(times: int) -> None:
        async with here.rows.transaction():
            await here.rows.execute("set local session_replication_role = replica")  # without the rules of the log
            await here.rows.execute(
                "update public.image_generations set attempt = $1 where task_id = $2", times, task_id
            )

    retry = here.web.operation("retryTask"), f"/api/generate/retry?taskId={task_id}"
    await tried(ATTEMPTS_MAX)
    answer = await here.ask(*retry)
    assert (answer.status_code, answer.json()["code"]) == (409, "attempts_exhausted")
    await tried(ATTEMPTS_MAX - 1)
    assert (await here.ask(*retry)).status_code == 200


async def test_what_cannot_be_done_while_postgres_does_not_answer(here: Here) -> None:
    task_id = await here.create()
    before = await tasks(here.rows)
    locked = [(here.web.operation(name), provoke(here, task_id)) for name, provoke in LOCKED.items()]
    locked += [(here.dispatcher.operation(n), request) for (n, status), request in DISPATCHERS.items() if status == 500]
    async with here.rows.transaction():
        await here.rows.execute("lock table public.image_generations, dispatcher.messages in access exclusive mode")
        answers = await asyncio.gather(*(here.ask(operation, **request) for operation, request in locked))
    for (operation, _), answer in zip(locked, answers, strict=True):
        if operation.description is here.web:
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), operation.id
            assert int(answer.headers["retry-after"]) > 0
        else:
            assert (answer.status_code, answer.json()) == (500, {"error": "the database cannot be reached"})
    assert await tasks(here.rows) == before


async def test_a_method_that_a_path_has_not_is_answered_with_those_it_has(here: Here) -> None:
    by_path: dict[tuple[str, str], set[str]] = {}
    for operation in [*here.web.operations, *here.dispatcher.operations]:
        if operation.id != "openSocket":  # of a WebSocket there are no methods
            path = operation.path.replace("{destination}", "x").replace("{id}", "x").replace("{provider}", "fal")
            methods = by_path.setdefault((here.origin(operation), path.replace("{name}", "x")), set())
            methods |= {operation.method.upper(), *(["HEAD"] if operation.method == "get" else [])}
    for (origin, path), methods in by_path.items():
        answer = await here.client.request("PATCH", origin + path, headers=BEARER)
        assert answer.status_code == 405, path
        assert set(answer.headers["allow"].split(", ")) == methods, path


async def test_a_part_that_is_away_is_named(here: Here, postgres: EmbeddedPostgres) -> None:
    name = here.deployment.database.name
    admin = await asyncpg.connect(postgres.url("postgres"))
    try:
        await admin.execute(f"alter database {name} with allow_connections false")
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        for description in (here.web, here.dispatcher):
            answer = await here.ask(description.operation("getReadiness"), "/readyz")
            assert (answer.status_code, answer.json()["postgres"]) == (503, "down")
    finally:
        await admin.execute(f"alter database {name} with allow_connections true")
        await admin.close()
    for server in (here.deployment.web, here.deployment.dispatcher):
        await server.ready()
