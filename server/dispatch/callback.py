"""POST /api/generate/callback: what QStash says of a delivery to the generator, verified before it is read.

QStash calls after every attempt, at least once, in any order, and once more on the failure URL. Only a 2xx or the
last attempt ends a run; everything late, repeated or crossed is answered with 200 and changes nothing, so that
it is not sent again. What could not be committed is answered with 503, so that it is.
"""

import re
import time
from collections.abc import Mapping
from typing import Literal
from urllib.parse import parse_qsl

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from server import errors, failpoints
from server.answer import header, send_json
from server.body import decode_json, receive_body
from server.db import DATABASE_ERRORS
from server.dispatch.news import Delivery
from server.dispatch.settle import Settle
from server.dispatch.signature import BadSignature, check_body, read_claims
from server.dispatch.subject import ATTEMPT
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
_encode = msgspec.json.Encoder().encode


class Taken(msgspec.Struct):
    """What became of a callback or webhook: applied, or what it tells of was so already, or is of the past."""

    ok: Literal[True]
    outcome: Outcome


class Callback:
    """The endpoint, an ASGI application.

    `base_url` is where QStash was told to call: the signature binds the URL, not the Host header.
    """

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = scope["query_string"].decode("latin-1")
        query = dict(parse_qsl(said, keep_blank_values=True))
        try:
            # Whoever has no key does not get to fill our memory with a body.
            signature = header(scope, b"upstash-signature")
            claims = read_claims(signature, f"{self._url}?{said}", self._keys, time.time())
            body = await receive_body(receive, CALLBACK_BYTES_MAX)
            check_body(claims, body)
        except BadSignature as error:
            raise self._refused(query, error.reason) from None
        task_id, attempt = subject_of(query)
        structlog.contextvars.bind_contextvars(task_id=task_id, attempt=attempt)
        generator = self._generators.get(query.get("generator"))
        if generator is None:
            # The name is signed, so it was ours once: a process of another version, or other settings, will know it.
            raise self._unavailable(scope, "unknown_generator")
        delivery = decode_json(body, Delivery)
        try:
            source = Said(kind="callback", jti=claims.jti, delivery=delivery.retried + 1, status=delivery.status)
            outcome = await self._settle.settle(generator, task_id, attempt, delivery, source)
        except NoSuchTask:
            self._metrics.callbacks["unknown_task"].inc()
            raise errors.UnknownTask(headers={"Upstash-NonRetryable-Error": "true"}) from None
        except DATABASE_ERRORS as error:
            raise self._unavailable(scope, type(error).__name__) from error
        self._metrics.callbacks[outcome].inc()
        failpoints.reached("callback.taken")
        log.info("callback", outcome=outcome, status=delivery.status, retried=delivery.retried)
        await send_json(send, _encode(Taken(True, outcome)))

    def _refused(self, query: Mapping[str, str], reason: str) -> errors.BadSignature:
        self._metrics.callbacks["refused"].inc()
        self._metrics.signatures_refused["callback", reason].inc()
        claimed = query.get("task", "")
        log.warning("callback_refused", reason=reason, claimed_task_id=claimed if TASK_ID.fullmatch(claimed) else None)
        return errors.BadSignature()

    def _unavailable(self, scope: Scope, reason: str) -> errors.Unavailable:
        self._metrics.callbacks["unavailable"].inc()
        log.warning("callback_not_taken", reason=reason)
        return errors.Unavailable(headers={"Retry-After": str(_again_seconds(header(scope, b"upstash-retried")))})


def subject_of(query: Mapping[str, str]) -> tuple[str, int]:
    """The task and attempt that the URL of a callback or webhook names. Raises InvalidParameter."""
    task_id, attempt = query.get("task", ""), query.get("attempt", "")
    if not TASK_ID.fullmatch(task_id) or not ATTEMPT.fullmatch(attempt):
        raise errors.InvalidParameter("The callback URL names no task and attempt")
    return task_id, int(attempt)


def _again_seconds(retried: str) -> int:
    """The few retries of a callback must not be used up while Postgres restarts: each waits longer."""
    tries = int(retried) if re.fullmatch(r"[0-9]{1,2}", retried, re.ASCII) else 0
    return int(min(AGAIN_SECONDS_MAX, 2 * 3 ** min(tries, 10)))
