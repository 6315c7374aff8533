"""POST /api/generate/callback: what QStash says of a delivery to the generator, verified before it is read.

QStash calls after every attempt, at least once, in any order, and once more on the failure URL. Only a 2xx or the
last attempt ends a run; everything late, repeated or crossed is answered with 200 and changes nothing, so that
it is not sent again. What could not be committed is answered with 503, so that it is.
"""

import asyncio
import base64
import binascii
import re
import time
from typing import Annotated, Literal, TypeAlias

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from server import errors, failpoints
from server.body import decode_json, read_body
from server.db import DATABASE_ERRORS
from server.dispatch.finish import Finish
from server.dispatch.news import Broken, Done, read_answer
from server.dispatch.result import find_reason
from server.dispatch.signature import BadSignature, check_body, read_claims
from server.generators import Generator, Generators
from server.metrics import Metrics
from server.tasks.snapshot import TASK_ID
from server.tasks.state import Fail, Outcome, Report
from server.tasks.store import NoSuchTask, TaskStore

log = structlog.get_logger()

CALLBACK_BYTES_MAX = 32 * 1024 * 1024
CALLBACK_PATH = "/api/generate/callback"
EXCERPT_CHARACTERS = 300
AGAIN_SECONDS_MAX = 30
# A picture takes a while to decode, during which nobody else would be served.
LARGE_BYTES = 262_144


Retries: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Delivery(msgspec.Struct, rename="camel"):
    """The body of a QStash callback, as far as it is needed; `body` is the generator's answer in base64."""

    status: int = 0
    body: str | None = None
    retried: Retries = 0
    max_retries: Retries | None = None
    dlq_id: str | None = None
    source_message_id: str | None = None

    @property
    def is_last(self) -> bool:
        return self.dlq_id is not None or (self.max_retries is not None and self.retried >= self.max_retries)


class Taken(msgspec.Struct):
    """What became of a callback or webhook: applied, or what it tells of was so already, or is of the past."""

    ok: Literal[True]
    outcome: Outcome


class Callback:
    """The endpoint. `base_url` is where QStash was told to call: the signature binds the URL, not the Host header."""

    def __init__(
        self,
        store: TaskStore,
        finish: Finish,
        keys: tuple[str, ...],
        base_url: str,
        generators: Generators,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._finish = finish
        self._keys = keys
        self._url = base_url + CALLBACK_PATH
        self._generators = generators
        self._metrics = metrics

    async def answer(self, request: Request) -> Response:
        token = request.headers.get("upstash-signature", "")
        url = f"{self._url}?{request.scope['query_string'].decode('latin-1')}"
        try:
            # Whoever has no key does not get to fill our memory with a body.
            claims = read_claims(token, url, self._keys, time.time())
            body = await read_body(request, CALLBACK_BYTES_MAX)
            check_body(claims, body)
        except BadSignature as error:
            raise self._refused(request, error.reason) from None
        task_id, attempt = subject_of(request)
        structlog.contextvars.bind_contextvars(task_id=task_id, attempt=attempt)
        generator = self._generators.get(request.query_params.get("generator"))
        if generator is None:
            # The name is signed, so it was ours once: a process of another version, or other settings, will know it.
            raise self._unavailable(request, "unknown_generator")
        delivery = decode_json(body, Delivery)
        try:
            outcome = await self._take(generator, task_id, attempt, delivery, claims.jti)
        except NoSuchTask:
            self._metrics.callbacks["unknown_task"].inc()
            raise errors.UnknownTask(headers={"Upstash-NonRetryable-Error": "true"}) from None
        except DATABASE_ERRORS as error:
            raise self._unavailable(request, type(error).__name__) from error
        self._metrics.callbacks[outcome].inc()
        failpoints.reached("callback.taken")
        log.info("callback", outcome=outcome, status=delivery.status, retried=delivery.retried)
        return Response(msgspec.json.encode(Taken(True, outcome)), media_type="application/json")

    def _refused(self, request: Request, reason: str) -> errors.BadSignature:
        self._metrics.callbacks["refused"].inc()
        claimed = request.query_params.get("task", "")
        log.warning("callback_refused", reason=reason, claimed_task_id=claimed if TASK_ID.fullmatch(claimed) else None)
        return errors.BadSignature()

    def _unavailable(self, request: Request, reason: str) -> errors.Unavailable:
        self._metrics.callbacks["unavailable"].inc()
        log.warning("callback_not_taken", reason=reason)
        return errors.Unavailable(headers={"Retry-After": str(_again_seconds(request))})

    async def _take(self, generator: Generator, task_id: str, attempt: int, delivery: Delivery, jti: str) -> Outcome:
        answer = _answer(delivery)
        if 200 <= delivery.status < 300:
            given = (generator, delivery.status, answer)
            large = len(answer) > LARGE_BYTES
            news = await asyncio.to_thread(read_answer, *given) if large else read_answer(*given)
            if isinstance(news, Done):
                return await self._finish.complete(task_id, attempt, news.result, jti=jti)
            if isinstance(news, Broken):
                broken = Fail(attempt=attempt, error=generator.without_secrets(news.error), error_code=news.code)
                return await self._store.fail(task_id, broken, jti=jti)
            # Accepted, not finished: the generator will report by itself.
            accepted = Report(attempt=attempt, delivery=delivery.retried + 1, progress=news.progress)
            return await self._store.report(task_id, accepted, jti=jti)
        if delivery.is_last:
            reason = generator.without_secrets(_reason(delivery.status, answer))
            change = Fail(attempt=attempt, error=reason, error_code=_code(delivery.status))
            return await self._store.fail(task_id, change, jti=jti)
        # Said of the delivery that failed, not of the next: that one may be well under way when this comes late.
        message = f"{_reason(delivery.status, b'')}; trying again"
        again = Report(attempt=attempt, delivery=delivery.retried + 1, message=message)
        return await self._store.report(task_id, again, jti=jti)


def subject_of(request: Request) -> tuple[str, int]:
    """The task and attempt that the URL of a callback or webhook names. Raises InvalidParameter."""
    task_id, attempt = request.query_params.get("task", ""), request.query_params.get("attempt", "")
    if not TASK_ID.fullmatch(task_id) or not re.fullmatch(r"[1-9][0-9]{0,8}", attempt, re.ASCII):
        raise errors.InvalidParameter("The callback URL names no task and attempt")
    return task_id, int(attempt)


def _again_seconds(request: Request) -> int:
    """The few retries of a callback must not be used up while Postgres restarts: each waits longer."""
    retried = request.headers.get("upstash-retried", "0")
    tries = int(retried) if re.fullmatch(r"[0-9]{1,2}", retried, re.ASCII) else 0
    return int(min(AGAIN_SECONDS_MAX, 2 * 3 ** min(tries, 10)))


def _answer(delivery: Delivery) -> bytes:
    try:
        return base64.b64decode(delivery.body or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.InvalidBody("body is not base64") from error


def _code(status: int) -> str:
    if status in (408, 504):
        return "timeout"
    return "generator_error" if status >= 100 else "unreachable"


def _reason(status: int, answer: bytes) -> str:
    if status < 100:
        return "The generator could not be reached"
    said = "".join(c for c in find_reason(answer)[:EXCERPT_CHARACTERS] if c.isprintable()).strip()
    return f"The generator answered {status}" + (f": {said}" if said else "")
