"""Holds the pause before a retry to the protocol: its own backoff, what the receiver asks for, the sender's formula."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dispatch.retry import (
    DAY_SECONDS,
    EXPRESSION_CHARACTERS_MAX,
    NESTING_MAX,
    BadDuration,
    BadExpression,
    asked_seconds,
    backoff_seconds,
    duration_seconds,
    parse_delay,
)

pytestmark = pytest.mark.pure

DAY_MS = DAY_SECONDS * 1000
NOW = 1_900_000_000.0  # Sun, 17 Mar 2030 17:46:40 GMT


def test_backoff_is_the_protocols() -> None:
    assert [round(backoff_seconds(n), 1) for n in (1, 2, 3, 4)] == [12.2, 148.4, 1808.0, 22026.5]
    assert {backoff_seconds(n) for n in (5, 20, 1000, 10**9)} == {DAY_SECONDS}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("2m", 120),
        ("1h", 3600),
        ("1d10h30m", 124_200),
        ("6m5s", 365),
        ("1.5s", 1.5),
        ("0s", 0),
        ("7", 7),
        ("000", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "10 s", "10S", "1w", "-1s", "+1s", "1s ", "1s\n", "1e3s", "1,5s", "٣s", "1.s", "9" * 400 + "s"],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadDuration):
        duration_seconds(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("1.5", 1.5),
        (" 7 ", 7),
        ("6m5s", 365),
        ("1d10h", DAY_SECONDS),
        ("99999999", DAY_SECONDS),
        (str(int(NOW) + 90), 90),
        (str(int(NOW) - 90), 0),
        ("Sun, 17 Mar 2030 17:47:40 GMT", 60),
        ("Sun, 17 Mar 2030 17:47:40 -0000", 60),
        ("Sun, 17 Mar 2030 18:47:40 +0100", 60),
        ("Sunday, 17-Mar-30 17:47:40 GMT", 60),
        ("Sun, 17 Mar 2030 17:45:40 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY_SECONDS),
    ],
)
def test_what_a_receiver_asks_for(value: str, seconds: float) -> None:
    assert asked_seconds({"retry-after": value}, NOW) == seconds


@pytest.mark.parametrize("value", ["", " ", "soon", "-5", "nan", "inf", "1e9", "٣", "Sun, 99 Foo", "\0", "1" * 400])
def test_what_cannot_be_read_asks_for_nothing(value: str) -> None:
    assert asked_seconds({"retry-after": value}, NOW) is None


def test_every_header_counts_and_retry_after_first() -> None:
    for name in ("x-ratelimit-reset", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"):
        assert asked_seconds({name: "6m5s"}, NOW) == 365
        assert asked_seconds({name: "6m5s", "retry-after": "1"}, NOW) == 1
        assert asked_seconds({name: "6m5s", "retry-after": "soon"}, NOW) == 365
    assert asked_seconds({"retry-later": "1"}, NOW) is None


FRAGMENTS = [
    "Mon, ",
    "01 Jan 2030 ",
    "00:00:00 ",
    "GMT",
    "+0000",
    "-9999",
    "9" * 20,
    "-",
    ":",
    ",",
    " ",
    "\0",
    "Feb 30",
    "0001",
    ".",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_no_header_breaks_it(value: str) -> None:
    seconds = asked_seconds({"retry-after": value}, NOW)
    assert seconds is None or 0 <= seconds <= DAY_SECONDS


@pytest.mark.parametrize(
    ("expression", "ms"),
    [
        ("1000", [1000, 1000, 1000]),
        ("1000 * pow(2, retried)", [1000, 2000, 4000]),
        ("1000 * (1 + retried)", [1000, 2000, 3000]),
        ("10 - 4 - 3", [3, 3, 3]),
        ("100 / 5 / 2", [10, 10, 10]),
        ("2 + 3 * 4", [14, 14, 14]),
        ("-2 * -3", [6, 6, 6]),
        ("--7 + -+-1", [8, 8, 8]),
        ("7 - -retried", [7, 8, 9]),
        ("-5", [0, 0, 0]),
        ("1000 / retried", [0, 1000, 500]),
        ("sqrt(retried - 1)", [0, 0, 1]),
        ("pow(10, 10000)", [DAY_MS] * 3),
        ("pow(10, 300) * pow(10, 300)", [DAY_MS] * 3),
        ("pow(10,300)*pow(10,300) - pow(10,300)*pow(10,300)", [0, 0, 0]),
        ("floor(1.9) + ceil(1.1) + round(1.6) + abs(-1.5)", [6.5] * 3),
        ("min(3, retried, 2) + max(1, retried)", [1, 2, 4]),
        ("min(5)", [5, 5, 5]),
        ("max(retried)", [0, 1, 2]),
        ("\t1000*exp( 0 ) \n", [1000] * 3),
    ],
)
def test_expressions(expression: str, ms: list[float]) -> None:
    delay = parse_delay(expression)
    assert [delay(retried) for retried in range(3)] == ms


# Random formulas, printed with as few or as many parentheses as chance has it, against Python's own arithmetic.
Formula: TypeAlias = tuple[str, Callable[[float], float]]
NAMES: dict[str, tuple[int, Callable[..., float]]] = {
    "pow": (2, math.pow),
    "sqrt": (1, math.sqrt),
    "abs": (1, abs),
    "exp": (1, math.exp),
    "floor": (1, math.floor),
    "ceil": (1, math.ceil),
    "round": (1, round),
    "min": (3, min),
    "max": (2, max),
}
ATOMS: st.SearchStrategy[Formula] = st.one_of(
    st.just(("retried", float)),
    st.sampled_from(["0", "1", "2.5", "1000", "0.001", "999999999999999"]).map(lambda n: (n, lambda _: float(n))),
)


def _sign(parts: tuple[str, Formula, Formula]) -> Formula:
    sign, (left, a), (right, b) = parts
    compute: dict[str, Callable[[float, float], float]] = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "/": lambda x, y: x / y,
    }
    return f"({left}) {sign}({right})", lambda r: compute[sign](a(r), b(r))


def _call(parts: tuple[str, list[Formula]]) -> Formula:
    name, inner = parts
    count, function = NAMES[name]
    used = inner[:count]
    return f"{name}({', '.join(text for text, _ in used)})", lambda r: float(function(*(f(r) for _, f in used)))


def _negative(formula: Formula) -> Formula:
    text, compute = formula
    return f"-({text})", lambda r: -compute(r)


FORMULAS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+-*/"), inner, inner).map(_sign),
        st.tuples(st.sampled_from(list(NAMES)), st.lists(inner, min_size=3, max_size=3)).map(_call),
        inner.map(_negative),
    ),
    max_leaves=8,
)


def reference(compute: Callable[[float], float], retried: int) -> float:
    try:
        value = compute(retried)
    except OverflowError:
        return DAY_MS
    except (ArithmeticError, ValueError):
        return 0.0
    return 0.0 if math.isnan(value) else min(DAY_MS, max(0.0, value))


@given(FORMULAS, st.integers(0, 5))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_a_formula_means_what_arithmetic_says(formula: Formula, retried: int) -> None:
    text, compute = formula
    if len(text) <= EXPRESSION_CHARACTERS_MAX:
        assert parse_delay(text)(retried) == reference(compute, retried)


FLAT = st.tuples(
    st.sampled_from(["1", "retried", "2.5", "70"]),
    st.lists(st.tuples(st.sampled_from("+-*/"), st.sampled_from(["1", "retried", "2.5", "70"])), max_size=8),
)


@given(FLAT, st.integers(1, 4))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_signs_bind_as_everywhere(parts: tuple[str, list[tuple[str, str]]], retried: int) -> None:
    text = parts[0] + "".join(f" {sign} {atom}" for sign, atom in parts[1])
    expected = eval(text, {"__builtins__": {}}, {"retried": float(retried)})  # noqa: S307  (our own six characters)
    assert parse_delay(text)(retried) == reference(lambda _: expected, retried)


def test_nesting_and_length_are_bounded() -> None:
    deepest = NESTING_MAX - 1
    assert parse_delay("(" * deepest + "7" + ")" * deepest)(0) == 7
    assert parse_delay("abs(" * deepest + "7" + ")" * deepest)(0) == 7
    for text in ("(" * 40 + "7" + ")" * 40, "abs(" * 40 + "7" + ")" * 40, "(" * EXPRESSION_CHARACTERS_MAX):
        with pytest.raises(BadExpression, match="nested"):
            parse_delay(text)
    assert parse_delay("1+" * 255 + "1")(0) == 256
    assert parse_delay("(1)+" * 100 + "1")(0) == 101, "depth, not the number of parentheses"
    with pytest.raises(BadExpression, match="longer"):
        parse_delay("1" + " " * EXPRESSION_CHARACTERS_MAX)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "()",
        "1 +",
        "* 1",
        "1 1",
        "(1",
        "1)",
        "1_000",
        "1e3",
        ".5",
        "0x10",
        "2 ** 3",
        "7 // 2",
        "7 % 2",
        "pow(2)",
        "pow(1, 2, 3)",
        "pow 2",
        "sqrt()",
        "sqrt(1, 2)",
        "min()",
        "retried()",
        "Retried",
        "attempt",
        "__import__('os')",
        "retried.__class__",
        "lambda: 1",
        "[1][0]",
        "pow(2, 3",
        "٣",
        "1\0",
        "1;2",
        "é",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(BadExpression):
        parse_delay(text)


PIECES = [*"()+-*/,.", "retried", "1", "2.5", "9" * 15, " ", "e", "_", "\0", "**", *(f"{name}(" for name in NAMES)]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
def test_no_input_raises_anything_else_or_leaves_the_bounds(text: str) -> None:
    try:
        delay: Callable[[int], Any] = parse_delay(text)
    except BadExpression:
        return
    assert all(0 <= delay(retried) <= DAY_MS for retried in (0, 1, 1000))
