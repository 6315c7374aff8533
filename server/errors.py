"""The whole error tree: what a client of the API may be told, each with a stable `code` (RFC 9457).

A Problem is raised where it is found and becomes an answer in one place, problem_response(). Nothing in it
may come from a stack trace, a statement or a connection string.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
from starlette.responses import Response


class Problem(Exception):
    """Base of all answers that are not a success. `detail` is a sentence for a person."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(self, detail: str = "", *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.headers = headers or {}
        self.extra = extra


class BadRequest(Problem):
    status, code, title = 400, "bad_request", "The request cannot be understood"


class InvalidBody(BadRequest):
    code, title = "invalid_body", "The body is not what this route takes"


class InvalidPrompt(BadRequest):
    code, title = "invalid_prompt", "The prompt must have 1 to 32,000 characters"


class InvalidParameter(BadRequest):
    code, title = "invalid_parameter", "A parameter is missing or wrong"


class InvalidCursor(BadRequest):
    code, title = "invalid_cursor", "The cursor is not one of ours"


class UnknownGenerator(BadRequest):
    code, title = "unknown_generator", "This server has no generator of that name"


class Unauthorized(Problem):
    status, code, title = 401, "unauthorized", "The caller is not known"


class InvalidAccessToken(Unauthorized):
    code, title = "invalid_access_token", "The access token is not accepted"


class AccessTokenExpired(Unauthorized):
    code, title = "access_token_expired", "The access token has expired"


class SessionEnded(Unauthorized):
    code, title = "session_ended", "The user has signed out, or is no more"


class InvalidTicket(Unauthorized):
    code, title = "invalid_ticket", "The ticket is spent, expired, or for other tasks: get a new one"


class BadSignature(Unauthorized):
    code, title = "bad_signature", "The signature does not belong to this request"


class BadToken(Unauthorized):
    code, title = "bad_token", "The token does not belong to this task and attempt"


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "Not allowed"


class ForeignOrigin(Forbidden):
    code, title = "foreign_origin", "Pages of another origin may not call this server"


class ForeignHost(Problem):
    status, code, title = 421, "foreign_host", "This server does not answer for that host name"


class NotFound(Problem):
    status, code, title = 404, "not_found", "There is nothing here"


class TaskNotFound(NotFound):
    code, title = "task_not_found", "There is no such task"


class UnknownProvider(NotFound):
    code, title = "unknown_provider", "Webhooks of this provider are not understood"


class WebhookNotConfigured(NotFound):
    code, title = "webhook_not_configured", "No generator of this server is called back by this provider"


class TaskInUse(Problem):
    status, code, title = 409, "task_in_use", "Rows of other tables in the database refer to this task"


class NotFailed(Problem):
    status, code, title = 409, "not_failed", "Only a task that has failed can be retried"


class AttemptsExhausted(Problem):
    status, code, title = 409, "attempts_exhausted", "The task was tried too often to be tried again"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method_not_allowed", "The route exists, but not with this method"


class TooLarge(Problem):
    status, code, title = 413, "too_large", "The body is too large"


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "The body must be application/json"


class HeadTooLarge(Problem):
    status, code, title = 431, "head_too_large", "The head of the request is too large"


class UnknownTask(Problem):
    """To a callback: no retry will help (QStash's non-retryable answer)."""

    status, code, title = 489, "unknown_task", "There is no such task"


class Unavailable(Problem):
    status, code, title = 503, "unavailable", "The database cannot be reached; try again shortly"

    def __init__(self, detail: str = "", *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail, headers={"Retry-After": "1"} | (headers or {}), **extra)


def check_parameters(given: Iterable[str], *known: str) -> None:
    """A slip is not taken for nothing asked. Raises InvalidParameter for a name that is not `known`."""
    unknown = set(given).difference(known)
    if unknown:
        raise InvalidParameter(f"{min(unknown)[:40]!r} is not a parameter of this route; there are {', '.join(known)}")


def problem_body(problem: Problem, request_id: str | None = None) -> dict[str, Any]:
    """The problem as the object that goes out, RFC 9457 members first."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        **problem.extra,
    }
    if request_id:
        body["requestId"] = request_id
    return body


def problem_response(problem: Problem, request_id: str | None = None) -> Response:
    """The answer to a request that failed with `problem`."""
    return Response(
        msgspec.json.encode(problem_body(problem, request_id)),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"Cache-Control": "no-store"} | problem.headers,
    )


def all_problems() -> list[type[Problem]]:
    """Every problem there is, for the API description."""
    found: list[type[Problem]] = []
    todo: list[type[Problem]] = [Problem]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return sorted(set(found), key=lambda k: (k.status, k.code))
