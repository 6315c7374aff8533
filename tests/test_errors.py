"""Holds what clients are told to one form, and the codes that programs rely on to staying as they are."""

import msgspec
import pytest

from server.errors import InvalidParameter, Problem, TooLarge, Unavailable, all_problems, problem_body, problem_response

pytestmark = pytest.mark.pure

# Clients compare these: a code is added, never changed or given another status.
CODES = {
    "bad_request": 400,
    "invalid_body": 400,
    "invalid_cursor": 400,
    "invalid_parameter": 400,
    "invalid_prompt": 400,
    "bad_signature": 401,
    "bad_token": 401,
    "unauthorized": 401,
    "forbidden": 403,
    "foreign_origin": 403,
    "not_found": 404,
    "task_not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "unsupported_media_type": 415,
    "foreign_host": 421,
    "unknown_task": 489,
    "internal_error": 500,
    "unavailable": 503,
}


def test_codes_stay_what_they_are() -> None:
    assert {problem.code: problem.status for problem in all_problems()}.items() >= CODES.items()


def test_codes_are_unique_and_made_for_programs() -> None:
    codes = [problem.code for problem in all_problems()]
    assert len(codes) == len(set(codes))
    for problem in all_problems():
        assert problem.code.replace("_", "a").isalpha()
        assert problem.code == problem.code.lower()
        assert 400 <= problem.status < 600
        assert problem.title[:1].isupper()
        assert not problem.title.endswith(".")


@pytest.mark.parametrize("kind", all_problems(), ids=lambda kind: kind.code)
def test_the_body_has_the_members_of_rfc_9457_and_a_code(kind: type[Problem]) -> None:
    assert problem_body(kind()) == {
        "type": "about:blank",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.title,
        "code": kind.code,
    }


def test_what_is_special_to_a_case_comes_with_it() -> None:
    problem = TooLarge("31 is too much", headers={"Connection": "close"}, limit=30)
    body = problem_body(problem, "r-1")
    assert (body["detail"], body["code"]) == ("31 is too much", "too_large")
    assert (body["limit"], body["requestId"]) == (30, "r-1")
    assert str(problem) == "31 is too much"
    assert "requestId" not in problem_body(problem)


def test_the_response() -> None:
    response = problem_response(InvalidParameter("limit is a number\r\n"), "r-1")
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert msgspec.json.decode(response.body)["detail"] == "limit is a number\r\n"


def test_headers_of_a_problem_go_out() -> None:
    assert problem_response(Unavailable()).headers["retry-after"] == "1"
    assert problem_response(Unavailable(headers={"Retry-After": "9"})).headers["retry-after"] == "9"
    assert problem_response(TooLarge(headers={"Connection": "close"})).headers["connection"] == "close"


def test_problems_share_no_state() -> None:
    one, other = TooLarge(), TooLarge()
    one.headers["X"] = "y"
    one.extra["x"] = 1
    assert (other.headers, other.extra) == ({}, {})
