"""Accepting tasks and listing them. How they are followed is in push/, how they are carried out in dispatch/."""

import math
import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Identify
from server.body import read_json
from server.errors import (
    AttemptsExhausted,
    InvalidCursor,
    InvalidParameter,
    InvalidPrompt,
    NotFailed,
    TaskInUse,
    TaskNotFound,
    TooLarge,
    Unauthorized,
    UnknownGenerator,
    check_parameters,
)
from server.metrics import Metrics
from server.tasks import retries
from server.tasks.ledger import Deliveries
from server.tasks.pace import Pace
from server.tasks.reading import BadPageCursor, TaskReader
from server.tasks.retries import Retries
from server.tasks.snapshot import TASK_ID
from server.tasks.state import STATUSES
from server.tasks.store import Deleted, NoSuchTask, NoSuchUser, ParamsTooLarge, Referenced, TaskStore
from server.tasks.tickets import draft

ClearAway: TypeAlias = Callable[[Deleted], Awaitable[None]]

log = structlog.get_logger()

GENERATE_BYTES_MAX = 65_536
PROMPT_CHARACTERS_MAX = 32_000
PAGE_DEFAULT = 20
PAGE_MAX = 100


class Generate(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be generated; `params` go to the generator as they are, to the usual one unless it is named.

    `ticket`: whether the answer is to bring one for the stream of the task.
    """

    prompt: str
    params: dict[str, Any] = {}
    generator: str | None = None
    ticket: bool = False


class Accepted(msgspec.Struct, rename="camel", omit_defaults=True):
    """A task was accepted: it will reach a terminal state, and the URLs say where that can be seen."""

    task_id: str
    status: str
    version: int
    status_url: str
    events_url: str
    poll_after_ms: int
    ticket: str | None = None


class DeleteOutcome(msgspec.Struct, rename="camel"):
    """The task is gone, with its log and its picture."""

    task_id: str
    outcome: Literal["deleted"] = "deleted"


class RetryOutcome(msgspec.Struct, rename="camel"):
    """The task has a new attempt."""

    task_id: str
    outcome: Literal["retried"] = "retried"


class Page(msgspec.Struct, omit_defaults=True):
    """Tasks, newest first; `cursor` asks for the next page and is left out on the last."""

    tasks: list[msgspec.Raw]
    cursor: str | None = None


class TaskEndpoints:
    """POST, GET and DELETE /api/generate, and what is asked of one task.

    `clear_away` removes what a deleted task leaves outside the database.
    """

    def __init__(
        self,
        identify: Identify,
        store: TaskStore,
        retries: Retries,
        reader: TaskReader,
        pace: Pace,
        metrics: Metrics,
        clear_away: ClearAway,
        generators: Collection[str | None] = (None,),
    ) -> None:
        self._identify = identify
        self._store = store
        self._retries = retries
        self._generators = generators
        self._reader = reader
        self._pace = pace
        self._metrics = metrics
        self._clear_away = clear_away

    async def create(self, request: Request) -> Response:
        """Accept a task and answer at once."""
        caller = await self._identify(request)
        wanted = await read_json(request, Generate, GENERATE_BYTES_MAX)
        if not 1 <= len(wanted.prompt) <= PROMPT_CHARACTERS_MAX or not wanted.prompt.strip():
            raise InvalidPrompt
        if wanted.generator not in self._generators:
            raise UnknownGenerator
        params = msgspec.json.encode(wanted.params)
        ticket = draft(caller) if wanted.ticket else None
        try:
            change = await self._store.create(
                caller.claims, caller.user_id, wanted.prompt, params, wanted.generator, ticket
            )
        except NoSuchUser:
            raise Unauthorized("This user does not exist in the database (auth.users)") from None
        except ParamsTooLarge:
            raise TooLarge("params are larger than the database takes, once its numbers are written out") from None
        structlog.contextvars.bind_contextvars(task_id=change.task_id)  # for the line of this request
        self._metrics.tasks_created.inc()
        status_url = f"/api/generate/status?taskId={quote(change.task_id)}"
        poll_after_ms = self._pace.poll_after_ms(0)
        accepted = Accepted(
            task_id=change.task_id,
            status=change.status,
            version=change.version,
            status_url=status_url,
            events_url=f"/api/generate/events?taskId={quote(change.task_id)}",
            poll_after_ms=poll_after_ms,
            ticket=ticket.text if ticket else None,
        )
        return Response(
            msgspec.json.encode(accepted),
            status_code=202,
            media_type="application/json",
            headers={
                "Location": status_url,
                "Retry-After": str(math.ceil(poll_after_ms / 1000)),
                "Cache-Control": "no-store",
            },
        )

    async def page(self, request: Request) -> Response:
        """The caller's tasks, newest first."""
        caller = await self._identify(request)
        query = request.query_params
        check_parameters(query, "limit", "cursor", "status")
        limit = query.get("limit", str(PAGE_DEFAULT))
        if not re.fullmatch(r"[0-9]{1,3}", limit, re.ASCII) or not 1 <= int(limit) <= PAGE_MAX:
            raise InvalidParameter(f"limit is a number from 1 to {PAGE_MAX}")
        status = query.get("status")
        if status is not None and status not in STATUSES:
            raise InvalidParameter(f"status is one of {', '.join(STATUSES)}")
        try:
            tasks, cursor = await self._reader.page(
                caller.claims, caller.user_id, limit=int(limit), cursor=query.get("cursor"), status=status
            )
        except BadPageCursor:
            raise InvalidCursor from None
        page = Page([msgspec.Raw(task.body) for task in tasks], cursor)
        return Response(
            msgspec.json.encode(page), media_type="application/json", headers={"Cache-Control": "private, no-store"}
        )

    async def deliveries(self, request: Request) -> Response:
        """The ledger of a task: what was said of it, by whom, and what became of that."""
        caller = await self._identify(request)
        noted = await self._reader.deliveries(caller.claims, _one_task(request))
        if noted is None:
            raise TaskNotFound
        return Response(
            msgspec.json.encode(Deliveries(noted)),
            media_type="application/json",
            headers={"Cache-Control": "private, no-store"},
        )

    async def retry(self, request: Request) -> Response:
        """Open a new attempt of a task that has failed; a result that came too late completes it at once."""
        caller = await self._identify(request)
        task_id = _one_task(request)
        try:
            await self._retries.retry(caller.claims, task_id)
        except NoSuchTask:
            raise TaskNotFound from None
        except retries.NotFailed:
            raise NotFailed from None
        except retries.Exhausted:
            raise AttemptsExhausted from None
        log.info("task_retried")
        return Response(
            msgspec.json.encode(RetryOutcome(task_id)),
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def delete(self, request: Request) -> Response:
        """Take a task away with its log and its picture; a running one is cancelled first."""
        caller = await self._identify(request)
        task_id = _one_task(request)
        try:
            deleted = await self._store.delete(caller.claims, task_id)
        except NoSuchTask:
            raise TaskNotFound from None
        except Referenced:
            raise TaskInUse from None
        self._metrics.deleted["request"].inc()
        log.info("task_deleted")
        await self._clear_away(deleted)
        return Response(
            msgspec.json.encode(DeleteOutcome(task_id)),
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )


def _one_task(request: Request) -> str:
    """The task that the query names, and nothing else. Raises InvalidParameter and TaskNotFound."""
    query = request.query_params
    check_parameters(query, "taskId")
    if len(query.getlist("taskId")) != 1:
        raise InvalidParameter(f"name one task: {request.method} {request.url.path}?taskId=…")
    task_id = query["taskId"]
    if not TASK_ID.fullmatch(task_id):
        raise TaskNotFound
    structlog.contextvars.bind_contextvars(task_id=task_id)  # for the line of this request
    return task_id
