"""What becomes of a task that was looked up at the provider: from what was found there to what is done. Pure.

The table is in docs/reliability.md. What an answer means for its task is not decided here, but where callbacks are.
"""

from typing import TypeAlias

import msgspec

from server.dispatch.news import Delivery

# How long a callback may be under way: its retries, as outbox.py asks for them, and some.
CALLBACK_SECONDS_MAX = 660.0
RESENDS_MAX = 4


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider knows of a message.

    `is_there`: the message itself, done or not. `state`: the one that ended it, else the latest in the log, at `at`
    (seconds since 1970). `dead`: the last answer, from its dead letter. `told`: the callback that could not be
    delivered.
    """

    is_there: bool = False
    state: str | None = None
    at: float = 0.0
    dead: Delivery | None = None
    told: Delivery | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What we know of it. `was_accepted`: the callback with the generator's 202, say, has come. `now`: as Found.at."""

    is_overdue: bool
    was_accepted: bool
    resends: int
    now: float


class Apply(msgspec.Struct, frozen=True):
    """The generator's answer was found: it counts as if its callback had come."""

    delivery: Delivery


class End(msgspec.Struct, frozen=True):
    """The task fails: `error` for people, `code` for programs."""

    error: str
    code: str


class Resend(msgspec.Struct, frozen=True):
    """The message is sent again."""


class Wait(msgspec.Struct, frozen=True):
    """Nothing is decided yet."""


Verdict: TypeAlias = Apply | End | Resend | Wait

LATE = End("The generator did not finish in time", "timeout")
ACCEPTED = End("The generator accepted the job and did not finish in time", "timeout")
UNREACHABLE = End("The generator did not finish in time, and the provider could not be asked about it", "timeout")
NOT_SENT = End("The job could not be handed on in time", "not_started")
NOT_BEGUN = End("Nobody began with it in time", "not_started")
CANCELLED = End("The message to the generator was cancelled at the provider", "message_cancelled")
FAILED = End("The generator failed, and what it said cannot be had any more", "generator_error")
CALLBACK_LOST = End("The generator answered, but its answer did not arrive here", "callback_lost")
MESSAGE_LOST = End("The message to the generator is lost: the provider does not know it any more", "message_lost")


def judge(found: Found, asked: Asked) -> Verdict:
    """What to do. Only what is overdue ends for want of news; what has ended at the provider may end here at once."""
    answer = found.told or found.dead
    if answer is not None:
        return Apply(answer)
    if found.state in ("CANCELED", "CANCEL_REQUESTED"):
        return CANCELLED
    if not found.is_there and found.state is None:
        lost_for_good = asked.is_overdue or asked.resends >= RESENDS_MAX
        return (ACCEPTED if asked.was_accepted else MESSAGE_LOST) if lost_for_good else Resend()
    return _overdue(found, asked) if asked.is_overdue else Wait()


def _overdue(found: Found, asked: Asked) -> Verdict:
    if asked.was_accepted:
        return ACCEPTED
    if found.state == "DELIVERED":
        return Wait() if asked.now - found.at < CALLBACK_SECONDS_MAX else CALLBACK_LOST
    return FAILED if found.state == "FAILED" else LATE
