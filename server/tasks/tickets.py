"""Tickets: shown in the query of a stream by a browser that can send neither header nor cookie, and spent by it.

32 random bytes, of which Postgres has the SHA-256 only (sql/010_tickets.sql), with the claims of whoever asked and the
tasks that it is for. A ticket opens streams and nothing else.
"""

import datetime as dt
import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from typing import Annotated

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Caller, Identify
from server.body import read_json
from server.db import Pool
from server.errors import InvalidBody, InvalidTicket, TaskNotFound
from server.metrics import Metrics
from server.tasks.snapshot import TASK_ID

LIFETIME_SECONDS = 60.0
TASKS_A_TICKET_MAX = 100
UNSPENT_MAX = 200  # of one user; then the oldest go
BODY_BYTES_MAX = 16_384
TICKET = re.compile(r"[A-Za-z0-9_-]{43}")


class Draft(msgspec.Struct, frozen=True):
    """A ticket that is about to be kept: its text goes to the client, its digest to Postgres."""

    text: str
    caller: Caller
    lifetime_seconds: float

    @property
    def digest(self) -> bytes:
        return _digest(self.text)


def draft(caller: Caller) -> Draft:
    """A ticket for the caller; it does not outlive his access token."""
    left = LIFETIME_SECONDS if caller.expires_at is None else caller.expires_at - time.time()
    return Draft(secrets.token_urlsafe(32), caller, max(1.0, min(LIFETIME_SECONDS, left)))


class Tickets:
    """Issues and spends them. With a new task store.py keeps one; retention.py forgets those that nobody spent."""

    def __init__(self, pool: Pool, metrics: Metrics) -> None:
        self._pool = pool
        self._refused = metrics.sign_ins_refused["ticket"]

    async def issue(self, caller: Caller, task_ids: Sequence[str] | None) -> tuple[str, dt.datetime]:
        """A ticket for these tasks of the caller's, or (None) for all of his, and when it ends. Raises TaskNotFound."""
        made = draft(caller)
        expires_at: dt.datetime | None = await self._pool.fetchval(
            "select taskbeam.issue_ticket($1, $2, $3, $4, $5, $6, $7)",
            made.digest,
            caller.user_id,
            caller.claims,
            caller.expires_at,
            task_ids,
            made.lifetime_seconds,
            UNSPENT_MAX,
        )
        if expires_at is None:
            raise TaskNotFound
        return made.text, expires_at

    async def spend(self, text: str, task_ids: Sequence[str]) -> Caller:
        """Whose ticket it was; it is gone now. `task_ids`: what is asked for. Raises InvalidTicket.

        One that is not for all of these stays as it is.
        """
        if TICKET.fullmatch(text):
            row = await self._pool.fetchrow(
                """delete from taskbeam.tickets
                    where digest = $1 and expires_at > now() and (task_ids is null or task_ids @> $2::text[])
                returning user_id::text, claims, proven_until, task_ids""",
                _digest(text),
                task_ids,
            )
            if row is not None:
                return _caller(row)
        raise self._refusal()

    async def look(self, text: str, task_ids: Sequence[str]) -> Caller:
        """The same, and it is not spent."""
        if TICKET.fullmatch(text):
            row = await self._pool.fetchrow(
                """select user_id::text, claims, proven_until, task_ids from taskbeam.tickets
                    where digest = $1 and expires_at > now() and (task_ids is null or task_ids @> $2::text[])""",
                _digest(text),
                task_ids,
            )
            if row is not None:
                return _caller(row)
        raise self._refusal()

    def _refusal(self) -> InvalidTicket:
        self._refused.inc()
        return InvalidTicket(headers={"WWW-Authenticate": "Bearer"})


class Wanted(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What a ticket is to be for: named tasks, or all of the caller's."""

    task_ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=TASKS_A_TICKET_MAX)] | UnsetType = UNSET
    all: bool | UnsetType = UNSET


class Issued(msgspec.Struct, rename="camel"):
    """A ticket, to be shown once, as `ticket` in the query of a stream."""

    ticket: str
    expires_at: dt.datetime


class TicketDesk:
    """POST /api/generate/ticket"""

    def __init__(self, identify: Identify, tickets: Tickets) -> None:
        self._identify = identify
        self._tickets = tickets

    async def issue(self, request: Request) -> Response:
        """A ticket, if each of the tasks is the caller's."""
        caller = await self._identify(request)
        wanted = await read_json(request, Wanted, BODY_BYTES_MAX)
        ticket, expires_at = await self._tickets.issue(caller, _named(wanted))
        return Response(
            msgspec.json.encode(Issued(ticket, expires_at)),
            status_code=201,
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )


def _named(wanted: Wanted) -> list[str] | None:
    """The tasks that are named; None for all."""
    if wanted.task_ids is UNSET and wanted.all is True:
        return None
    if wanted.task_ids is UNSET or wanted.all is not UNSET:
        raise InvalidBody('Name tasks ("taskIds") or ask for all ("all": true)')
    if not all(TASK_ID.fullmatch(task_id) for task_id in wanted.task_ids):
        raise TaskNotFound
    return list(dict.fromkeys(wanted.task_ids))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _caller(row: asyncpg.Record) -> Caller:
    task_ids = row["task_ids"]
    return Caller(
        row["user_id"],
        row["claims"],
        row["proven_until"],
        task_ids=frozenset(task_ids) if task_ids is not None else None,
    )
