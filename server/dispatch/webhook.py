"""POST /api/generate/webhook/{provider}: for generators that call back themselves, at the URL given to them for a run.

Two proofs are asked for: the token of this very run in the URL, and the provider's signature over the raw bytes. Only
then is the body read for what it means, and it means what a callback means: late, repeated and crossed webhooks are
answered with 200 and change nothing; what could not be committed is answered with 503, and comes again.
"""

import hashlib
import time

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.body import read_body
from server.db import DATABASE_ERRORS
from server.dispatch.callback import Taken, subject_of
from server.dispatch.finish import Finish
from server.dispatch.job import webhook_purpose
from server.dispatch.news import BadNews, Broken, Done, News, read_webhook
from server.dispatch.signature import BadSignature
from server.dispatch.token import BadToken, read_token
from server.dispatch.webhook_signature import read_keys, verify_fal, verify_standard
from server.generators import PROVIDERS, Generator
from server.metrics import Metrics
from server.published_keys import KeysUnavailable, PublishedKeys
from server.settings import Settings
from server.tasks.ledger import Said
from server.tasks.state import Fail, Outcome, Report
from server.tasks.store import NoSuchTask, TaskStore

log = structlog.get_logger()

WEBHOOK_BYTES_MAX = 32 * 1024 * 1024
AGAIN_SECONDS = 5
FAL_KEYS_SECONDS = 86_400.0  # as fal asks


class Webhook:
    """The endpoint. `secret` is what the tokens were made with."""

    def __init__(self, store: TaskStore, finish: Finish, settings: Settings, secret: bytes, metrics: Metrics) -> None:
        self._store = store
        self._finish = finish
        self._generators = settings.generator_by_name
        self._secrets = {
            "standard": settings.webhook_secret_standard,
            "replicate": settings.webhook_secret_replicate,
        }
        self._fal_keys = PublishedKeys(
            settings.webhook_keys_fal, read_keys, fresh_seconds=FAL_KEYS_SECONDS, kept_seconds_max=FAL_KEYS_SECONDS
        )
        self._secret = secret
        self._metrics = metrics

    async def answer(self, request: Request) -> Response:
        provider: str = request.path_params["provider"]
        if provider not in PROVIDERS:
            raise errors.UnknownProvider
        generator = self._generators.get(request.query_params.get("generator"))
        if generator is None or generator.webhook != provider:
            raise errors.WebhookNotConfigured
        task_id, attempt = subject_of(request.query_params)
        self._check_token(request, generator, (task_id, attempt))
        structlog.contextvars.bind_contextvars(task_id=task_id, attempt=attempt)
        body = await read_body(request, WEBHOOK_BYTES_MAX)
        try:
            webhook_id = await self._verify(provider, request, body)
        except BadSignature as error:
            self._metrics.webhooks[provider, "refused"].inc()
            self._metrics.signatures_refused["webhook", error.reason].inc()
            log.warning("webhook_refused", provider=provider, reason=error.reason)
            raise errors.BadSignature from None
        except KeysUnavailable:
            self._metrics.webhooks[provider, "unavailable"].inc()
            raise errors.Unavailable(
                "The provider's keys cannot be had now", headers={"Retry-After": str(AGAIN_SECONDS)}
            ) from None
        try:
            news = read_webhook(generator, body)
        except BadNews as error:
            raise errors.InvalidBody(f"Not a webhook of this provider: {error}") from None
        outcome = await self._committed(provider, task_id, attempt, _hidden(generator, news), webhook_id)
        self._metrics.webhooks[provider, outcome].inc()
        log.info("webhook", provider=provider, outcome=outcome)
        return Response(msgspec.json.encode(Taken(True, outcome)), media_type="application/json")

    def _check_token(self, request: Request, generator: Generator, subject: tuple[str, int]) -> None:
        try:
            token = request.query_params.get("token", "")
            if read_token(self._secret, token, webhook_purpose(generator)) != subject:
                raise BadToken
        except BadToken:
            raise errors.BadToken from None

    async def _verify(self, provider: str, request: Request, body: bytes) -> str:
        now = time.time()
        if provider != "fal":
            return verify_standard(request.headers, body, self._secrets[provider], now)
        keys = await self._fal_keys.current()
        try:
            return verify_fal(request.headers, body, keys, now)
        except BadSignature as error:
            if error.reason != "wrong_key":
                raise
        return verify_fal(request.headers, body, await self._fal_keys.renewed(keys), now)

    async def _committed(self, provider: str, task_id: str, attempt: int, news: News, webhook_id: str) -> Outcome:
        # Of this run only: nobody uses up another's id.
        jti = f"{provider} {hashlib.sha256(f'{task_id} {attempt} {webhook_id}'.encode()).hexdigest()}"
        said = Said(kind="webhook", jti=jti)
        try:
            if isinstance(news, Done):
                return await self._finish.complete(task_id, attempt, news.result, said)
            if isinstance(news, Broken):
                change = Fail(attempt=attempt, error=news.error, error_code=news.code)
                return await self._store.fail(task_id, change, said)
            report = Report(attempt=attempt, progress=news.progress, message=news.message)
            return await self._store.report(task_id, report, said)
        except NoSuchTask:
            self._metrics.webhooks[provider, "unknown_task"].inc()
            raise errors.TaskNotFound from None
        except DATABASE_ERRORS as error:
            self._metrics.webhooks[provider, "unavailable"].inc()
            log.warning("webhook_not_taken", reason=type(error).__name__)
            raise errors.Unavailable(headers={"Retry-After": str(AGAIN_SECONDS)}) from error


def _hidden(generator: Generator, news: News) -> News:
    if not isinstance(news, Broken):
        return news
    return Broken(generator.without_secrets(news.error), news.code)
