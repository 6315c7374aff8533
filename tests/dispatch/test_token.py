"""Holds a generator's token to the one attempt of the one task it was made for."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dispatch.token import BadToken, make_token, read_token

pytestmark = pytest.mark.pure

SECRET = b"k" * 32
IDS = st.text(st.sampled_from("abzABZ019_-"), min_size=1, max_size=40)


@given(IDS, st.integers(1, 10**9 - 1))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_it_names_its_task_and_attempt(task_id: str, attempt: int) -> None:
    assert read_token(SECRET, make_token(SECRET, task_id, attempt)) == (task_id, attempt)


def test_a_header_can_carry_it() -> None:
    assert make_token(SECRET, "x" * 128, 7).isascii()
    assert make_token(SECRET, "t", 1) == make_token(SECRET, "t", 1)


GOOD = make_token(SECRET, "task", 12)
BODY, _, SIGNATURE = GOOD.rpartition(".")


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        BODY,
        BODY + ".",
        f"task.1.{SIGNATURE}",
        f"task.13.{SIGNATURE}",
        f"tasj.12.{SIGNATURE}",
        f"task1.2.{SIGNATURE}",
        f"TASK.12.{SIGNATURE}",
        f"task.012.{SIGNATURE}",
        f"task.+12.{SIGNATURE}",
        f"task.1२.{SIGNATURE}",
        f"task.{'9' * 5000}.{SIGNATURE}",
        GOOD + "=",
        GOOD + "\n",
        " " + GOOD,
        GOOD[:-1],
        BODY + "." + SIGNATURE.swapcase(),
        BODY + "." + "A" * 43,
        make_token(b"other" * 8, "task", 12),
        f"{'x' * 129}.1.{SIGNATURE}",
        "*.1." + SIGNATURE,
        "é.1." + SIGNATURE,
        "\ud800.1." + SIGNATURE,
        "t" * 100_000,
    ],
)
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(BadToken):
        read_token(SECRET, token)


@pytest.mark.parametrize("at", range(0, 43, 6))
def test_so_is_a_signature_changed_by_one_bit(at: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(SIGNATURE + "="))
    raw[at * 31 // 42] ^= 1
    with pytest.raises(BadToken):
        read_token(SECRET, f"{BODY}.{base64.urlsafe_b64encode(raw).decode().rstrip('=')}")
