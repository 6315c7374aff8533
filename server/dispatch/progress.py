"""POST /api/generate/progress: what a generator says of its run, with the token it was given for that run.

It may also finish the task here, for generators that answer the job with 202 and work on; the result is a URL, or the
picture itself as a data URL or in base64. Only such an end may be large: what comes many times a run must be small.
"""

import asyncio
from typing import Annotated, Literal

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from server import errors
from server.answer import header, send_json
from server.body import decode_json, receive_body
from server.dispatch.finish import Finish
from server.dispatch.result import BadResult, read_result
from server.dispatch.settle import LARGE_BYTES
from server.dispatch.token import BadToken, read_token
from server.metrics import Metrics
from server.tasks.ledger import Said
from server.tasks.state import Fail, Outcome, Report
from server.tasks.store import NoSuchTask, TaskStore

log = structlog.get_logger()

PROGRESS_BYTES_MAX = 65_536
PREVIEW_BYTES_MAX = 32_768
FINISH_BYTES_MAX = 32 * 1024 * 1024
_encode = msgspec.json.Encoder().encode
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class ProgressReport(msgspec.Struct):
    """Percent done and what is being done; with `status` the end of the run and its result or error.

    `preview` is the URL, or a small data URL, of an unfinished picture. `delivery` counts deliveries of this run
    from 1; a report of an earlier one changes nothing, and one that names none is of the current one. `result` is the
    picture's URL, or the picture as a data URL or in base64.
    """

    progress: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    message: Annotated[str, msgspec.Meta(max_length=500)] | None = None
    preview: (
        Annotated[str, msgspec.Meta(max_length=PREVIEW_BYTES_MAX, pattern="^(https?://|/results/|data:image/)")] | None
    ) = None
    step: Count | None = None
    steps: Count | None = None
    delivery: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    status: Literal["completed", "failed"] | None = None
    result: str | None = None
    error: Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)] | None = None


class Noted(msgspec.Struct):
    """What became of a report; `cancel`: the run need not go on."""

    ok: Literal[True]
    outcome: Outcome
    cancel: bool


class Progress:
    """The endpoint, an ASGI application."""

    def __init__(self, store: TaskStore, finish: Finish, secret: bytes, metrics: Metrics) -> None:
        self._store = store
        self._finish = finish
        self._secret = secret
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, _, token = header(scope, b"authorization").partition(" ")
        try:
            if scheme.lower() != "bearer":
                raise errors.BadToken("The header Authorization has to be Bearer and the token of the run")
            task_id, attempt = read_token(self._secret, token.strip())
        except BadToken:
            raise errors.BadToken from None
        structlog.contextvars.bind_contextvars(task_id=task_id, attempt=attempt)
        report = _read(await receive_body(receive, FINISH_BYTES_MAX))
        if report.preview is not None and len(report.preview.encode()) > PREVIEW_BYTES_MAX:
            raise errors.InvalidBody(f"preview has more than {PREVIEW_BYTES_MAX} bytes")
        try:
            outcome = await self._take(task_id, attempt, report)
            cancel = outcome != "applied" and await self._store.is_cancelled(task_id, attempt)
        except NoSuchTask:
            raise errors.TaskNotFound from None
        self._metrics.reports[outcome].inc()
        say = log.debug if report.status is None else log.info  # how far it is, is told too often
        say("report", outcome=outcome, status=report.status)
        await send_json(send, _encode(Noted(True, outcome, cancel)))

    async def _take(self, task_id: str, attempt: int, report: ProgressReport) -> Outcome:
        said = Said(kind="report", delivery=report.delivery)
        if report.status == "completed":
            try:
                given = report.result or ""
                large = len(given) > LARGE_BYTES
                result = await asyncio.to_thread(read_result, given) if large else read_result(given)
            except BadResult as error:
                raise errors.InvalidBody(str(error)) from None
            return await self._finish.complete(task_id, attempt, result, said)
        if report.status == "failed":
            error_text = report.error or "The generator gave no reason"
            failed = Fail(attempt=attempt, error=error_text, error_code="generator_error")
            return await self._store.fail(task_id, failed, said)
        return await self._store.report(
            task_id,
            Report(
                attempt=attempt,
                delivery=report.delivery,
                progress=None if report.progress is None else int(report.progress),
                message=report.message,
                preview=report.preview,
                step=report.step,
                steps=report.steps,
            ),
        )


def _read(body: bytes) -> ProgressReport:
    if len(body) <= PROGRESS_BYTES_MAX:
        return decode_json(body, ProgressReport)
    try:
        report = decode_json(body, ProgressReport)
    except errors.InvalidBody:
        report = None
    if report is None or report.status != "completed":
        raise errors.TooLarge(
            f"A report may have {PROGRESS_BYTES_MAX} bytes; only an end with its picture may have more"
        )
    return report
