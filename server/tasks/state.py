"""The state machine of a task, pure: a state and a change give the next state, or the reason why not.

    pending -> processing -> completed | failed        failed -> pending (a retry: the next attempt)
    pending -> completed | failed                      completed is final

sql/011_together.sql holds rows to the same rules inside Postgres, where concurrent changes meet; a test
drives both with the same random changes and compares. This is the readable form of what they do.
"""

from typing import Literal, TypeAlias

import msgspec

Status: TypeAlias = Literal["pending", "processing", "completed", "failed"]
STATUSES: tuple[Status, ...] = ("pending", "processing", "completed", "failed")
OPEN: frozenset[str] = frozenset({"pending", "processing"})
TERMINAL: frozenset[str] = frozenset({"completed", "failed"})

# applied: the change is committed. duplicate: it says what is so already. stale: it is of the past.
Outcome: TypeAlias = Literal["applied", "duplicate", "stale"]
Refusal: TypeAlias = Literal["duplicate", "stale"]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine knows of a task; `progress` is percent, `version` rises by one with each change."""

    status: Status = "pending"
    attempt: int = 1
    delivery: int = 1
    progress: int | None = None
    message: str | None = None
    preview: str | None = None
    step: int | None = None
    steps: int | None = None
    result: str | None = None
    error: str | None = None
    error_code: str | None = None
    cancelled: bool = False
    version: int = 1
    status_version: int = 1


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A generator has begun or moved on. A field left None says nothing new; without `delivery` it is the current."""

    attempt: int
    delivery: int | None = None
    progress: int | None = None
    message: str | None = None
    preview: str | None = None
    step: int | None = None
    steps: int | None = None


class Complete(msgspec.Struct, frozen=True, kw_only=True):
    """The run ended with a result, a URL."""

    attempt: int
    result: str


class Fail(msgspec.Struct, frozen=True, kw_only=True):
    """The run ended without one; `error` is for people, `error_code` for programs."""

    attempt: int
    error: str
    error_code: str
    cancelled: bool = False


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asked for another attempt after `attempt`."""

    attempt: int


Change: TypeAlias = Report | Complete | Fail | Retry
DETAILS = ("message", "preview", "step", "steps")


def advance(state: State, change: Change) -> State | Refusal:
    """The state after `change`, or why it changes nothing."""
    if change.attempt != state.attempt:
        return "stale"
    match change:
        case Report():
            return _report(state, change)
        case Complete(result=result):
            if state.status in TERMINAL:
                return "duplicate" if state.result == result else "stale"
            return _status(state, "completed", result=result, progress=100, preview=None)
        case Fail(error=error, error_code=code, cancelled=cancelled):
            if state.status in TERMINAL:
                return "duplicate" if (state.error, state.error_code) == (error, code) else "stale"
            return _status(state, "failed", error=error, error_code=code, cancelled=cancelled, preview=None)
        case Retry():
            if state.status != "failed":
                return "stale"
            version = state.version + 1
            return State(attempt=state.attempt + 1, version=version, status_version=version)


def _report(state: State, report: Report) -> State | Refusal:
    delivery = state.delivery if report.delivery is None else report.delivery
    if state.status in TERMINAL or delivery < state.delivery:
        return "stale"
    again = delivery > state.delivery  # the run starts over: nothing of the last delivery holds
    known = State(attempt=state.attempt) if again else state
    if not again and report.progress is not None and report.progress < (state.progress or 0):
        return "stale"
    told = {name: getattr(report, name) for name in ("progress", *DETAILS)}
    merged = {name: getattr(known, name) if value is None else value for name, value in told.items()}
    if not again and state.status == "processing" and all(getattr(state, n) == v for n, v in merged.items()):
        return "duplicate"
    version = state.version + 1
    return msgspec.structs.replace(
        state,
        status="processing",
        delivery=delivery,
        version=version,
        status_version=version if state.status == "pending" else state.status_version,
        **merged,
    )


def _status(state: State, status: Status, **fields: object) -> State:
    version = state.version + 1
    return msgspec.structs.replace(state, status=status, version=version, status_version=version, **fields)
