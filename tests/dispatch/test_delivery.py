"""Holds an answer to what it means for the message: delivered, to be tried again, or no use to try again."""

import pytest

from server.dispatch.delivery import STATUS_TIMEOUT, STATUS_UNREACHABLE, Answer

pytestmark = pytest.mark.pure

NO_USE = {"Upstash-Nonretryable-Error": ["true"]}


@pytest.mark.parametrize(
    ("status", "delivered"),
    [
        (200, True),
        (204, True),
        (299, True),
        (199, False),
        (300, False),
        (301, False),
        (404, False),
        (489, False),
        (500, False),
        (STATUS_TIMEOUT, False),
        (STATUS_UNREACHABLE, False),
    ],
)
def test_only_2xx_is_delivered(status: int, delivered: bool) -> None:
    assert Answer(status).delivered == delivered
    assert not Answer(status).refused


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (Answer(489, NO_USE), True),
        (Answer(489, {"Upstash-Nonretryable-Error": ["TRUE"]}), True),
        (Answer(489, {"Upstash-Nonretryable-Error": ["false"]}), False),
        (Answer(489, {"Upstash-Nonretryable-Error": [""]}), False),
        (Answer(500, NO_USE), False),
        (Answer(200, NO_USE), False),
    ],
)
def test_no_retry_helps_only_where_both_say_so(answer: Answer, refused: bool) -> None:
    assert answer.refused == refused


def test_headers_by_lower_case_name_and_first_value() -> None:
    answer = Answer(429, {"Retry-After": ["5", "9"], "X-Empty": [], "Set-Cookie": ["a"]})
    assert answer.low() == {"retry-after": "5", "set-cookie": "a"}
