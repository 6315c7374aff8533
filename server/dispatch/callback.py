"""POST /api/generate/callback: what QStash says of a delivery to the generator, verified before it is read.

QStash calls after every attempt, at least once, in any order, and once more on the failure URL. Only a 2xx or the
last attempt ends a run; everything late, repeated or crossed is answered with 200 and changes nothing, so that
it is not sent again. What could not be committed is answered with 503, so that it is.
"""

import re
import time
from typing import Literal

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from server import errors, failpoints
from server.body import decode_json, read_body
from server.db import DATABASE_ERRORS
from server.dispatch.news import Delivery
from server.dispatch.settle import Settle
from server.dispatch.signature import BadSignature, check_body, read_claims
from server.generators import Generators
from server.metrics import Metrics
from server.tasks.ledger import Said
from server.tasks.snapshot import TASK_ID
from server.tasks.state import Outcome
from server.tasks.store import NoSuchTask

log = structlog.get_logger()

CALLBACK_BYTES_MAX = 32 * 1024 * 1024
CALLBACK_PATH = "/api/generate/callback"
AGAIN_SECONDS_MAX = 30


class Taken(msgspec.Struct):
    """What became of a callback or webhook: applied, or what it tells of was so already, or is of the past."""

    ok: Literal[True]
    outcome: Outcome


class Callback:
    """The endpoint. `base_url` is where QStash was told to call: the signature binds the URL, not the Host header."""

    def __init__(
        self,
        settle: Settle,
        keys: tuple[str, ...],
        base_url: str,
        generators: Generators,
        metrics: Metrics,
    ) -> None:
        self._settle = settle
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
            said = Said(kind="callback", jti=claims.jti, delivery=delivery.retried + 1, status=delivery.status)
            outcome = await self._settle.settle(generator, task_id, attempt, delivery, said)
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
        self._metrics.signatures_refused["callback", reason].inc()
        claimed = request.query_params.get("task", "")
        log.warning("callback_refused", reason=reason, claimed_task_id=claimed if TASK_ID.fullmatch(claimed) else None)
        return errors.BadSignature()

    def _unavailable(self, request: Request, reason: str) -> errors.Unavailable:
        self._metrics.callbacks["unavailable"].inc()
        log.warning("callback_not_taken", reason=reason)
        return errors.Unavailable(headers={"Retry-After": str(_again_seconds(request))})


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
