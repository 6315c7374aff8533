"""The table of what is found and what is done, and how a rate limit is read."""

import pytest

from server.dispatch import verdict
from server.dispatch.lookup import limited_seconds
from server.dispatch.news import Delivery
from server.dispatch.verdict import Apply, Asked, Found, Resend, Verdict, Wait, judge

pytestmark = pytest.mark.pure

NOW = 1_000_000.0
GOOD, BAD = Delivery(status=200), Delivery(status=503, dlq_id="1-1")
NOTHING = Found()


def found(state: str | None, ago: float = 0.0, **more: object) -> Found:
    return Found(is_there=True, state=state, at=NOW - ago, **more)  # type: ignore[arg-type]


# what is found, what becomes of an overdue task, and of one that nobody has begun with
TABLE: list[tuple[Found, Verdict, Verdict]] = [
    (found(None), verdict.LATE, Wait()),
    (found("CREATED"), verdict.LATE, Wait()),
    (found("ACTIVE"), verdict.LATE, Wait()),
    (found("RETRY"), verdict.LATE, Wait()),
    (found("DELIVERED", 5), Wait(), Wait()),
    (found("DELIVERED", 700), verdict.CALLBACK_LOST, Wait()),
    (found("DELIVERED", 5, told=GOOD), Apply(GOOD), Apply(GOOD)),
    (found("FAILED", dead=BAD), Apply(BAD), Apply(BAD)),
    (found("FAILED", dead=BAD, told=GOOD), Apply(GOOD), Apply(GOOD)),
    (found("FAILED"), verdict.FAILED, Wait()),
    (found("CANCELED"), verdict.CANCELLED, verdict.CANCELLED),
    (Found(state="RETRY", at=NOW), verdict.LATE, Wait()),  # the message's own 404 decides nothing
    (Found(state="DELIVERED", at=NOW - 700), verdict.CALLBACK_LOST, Wait()),
    (Found(dead=BAD), Apply(BAD), Apply(BAD)),
    (NOTHING, verdict.MESSAGE_LOST, Resend()),
]


@pytest.mark.parametrize(("what", "overdue", "silent"), TABLE)
def test_the_table(what: Found, overdue: Verdict, silent: Verdict) -> None:
    asked = {"was_accepted": False, "resends": 0, "now": NOW}
    assert judge(what, Asked(is_overdue=True, **asked)) == overdue  # type: ignore[arg-type]
    assert judge(what, Asked(is_overdue=False, **asked)) == silent  # type: ignore[arg-type]


@pytest.mark.parametrize("what", [found("DELIVERED", 5), found("DELIVERED", 700), NOTHING])
def test_a_job_that_was_accepted_has_no_callback_to_come(what: Found) -> None:
    assert judge(what, Asked(is_overdue=True, was_accepted=True, resends=0, now=NOW)) == verdict.ACCEPTED


def test_it_is_not_sent_again_for_ever() -> None:
    last = [judge(NOTHING, Asked(is_overdue=False, was_accepted=False, resends=n, now=NOW)) for n in range(6)]
    assert last == [Resend()] * 4 + [verdict.MESSAGE_LOST] * 2


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        (None, 10),
        ("", 10),
        ("soon", 10),
        ("7", 7),
        ("0", 1),
        ("86400", 60),
        ("1700000012", 12),
        ("1700000012000", 12),
        ("1699999999", 1),
    ],
)
def test_when_a_rate_limit_ends(reset: str | None, seconds: float) -> None:
    assert limited_seconds(reset, 1_700_000_000.0) == pytest.approx(seconds)
