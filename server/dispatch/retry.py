"""When a delivery is tried again: the protocol's backoff, what the receiver asks for, a sender's expression. Pure.

The expression comes from outside, so it is parsed here into nested functions and never evaluated as code.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeAlias

DAY_SECONDS = 86_400.0
EXPRESSION_CHARACTERS_MAX = 512
NESTING_MAX = 32

# From the number of retries so far (0 at the first) to milliseconds.
Delay: TypeAlias = Callable[[int], float]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TOKEN = re.compile(r"\s*(?:(?P<number>\d{1,15}(?:\.\d{1,15})?)|(?P<name>[a-z]+)|(?P<sign>[-+*/(),]))", re.ASCII)
_FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {
    "pow": (math.pow, 2, 2),
    "sqrt": (math.sqrt, 1, 1),
    "abs": (abs, 1, 1),
    "exp": (math.exp, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "round": (round, 1, 1),
    "min": (lambda *values: min(values), 1, 8),
    "max": (lambda *values: max(values), 1, 8),
}


class BadDuration(ValueError):
    """Not a duration such as 10s, 2m or 1d10h30m."""


class BadExpression(ValueError):
    """Not an expression over `retried`; the message says where it goes wrong."""


def backoff_seconds(retry: int) -> float:
    """The protocol's own pause before retry number `retry` (1, 2 …)."""
    return min(DAY_SECONDS, math.exp(min(2.5 * retry, 50)))


def duration_seconds(text: str) -> float:
    """`10s`, `2m`, `1h`, `1d10h30m`; a bare number counts seconds. Raises BadDuration."""
    if re.fullmatch(r"\d{1,12}", text, re.ASCII):
        return float(text)
    if not re.fullmatch(r"(\d{1,9}(\.\d{1,3})?[smhd])+", text, re.ASCII):
        raise BadDuration(f"{text[:40]!r} is not a duration such as 10s, 2m, 1h or 1d10h30m")
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", text))


def asked_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """What a receiver's answer asks for, a day at most: Retry-After, or the reset of a rate limit.

    `headers` has lower-case names; `now` is Unix time. None where it asks for nothing that can be read.
    """
    for name in (
        "retry-after",
        "x-ratelimit-reset",
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
    ):
        value = headers.get(name, "").strip()
        seconds = _asked(value, now) if value else None
        if seconds is not None:
            return min(DAY_SECONDS, max(0.0, seconds))
    return None


def _asked(value: str, now: float) -> float | None:
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value, re.ASCII):
        number = float(value)
        # A reset may be given as the moment itself.
        return number - now if number > now - DAY_SECONDS else number
    try:
        return duration_seconds(value)
    except BadDuration:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return (when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp() - now


def parse_delay(expression: str) -> Delay:
    """A function for an Upstash-Retry-Delay expression, its result held to 0 … one day. Raises BadExpression."""
    if len(expression) > EXPRESSION_CHARACTERS_MAX:
        raise BadExpression(f"longer than {EXPRESSION_CHARACTERS_MAX} characters")
    compute = _Parser(expression).whole()

    def delay_ms(retried: int) -> float:
        try:
            value = float(compute(retried))
        except OverflowError:
            return DAY_SECONDS * 1000
        except (ArithmeticError, ValueError):  # 1000 / retried at the first retry, sqrt(-1)
            return 0.0
        if math.isnan(value):
            return 0.0
        return min(DAY_SECONDS * 1000, max(0.0, value))

    return delay_ms


class _Parser:
    """Recursive descent: sum = product {+|- product}, product = factor {*|/ factor}, factor = [-] atom."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise BadExpression(f"unexpected {text[at : at + 10]!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self._at = 0
        self._depth = 0

    def whole(self) -> Delay:
        compute = self._sum()
        if self._at < len(self._tokens):
            raise BadExpression(f"unexpected {self._tokens[self._at][1]!r}")
        return compute

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self, sign: str) -> bool:
        if self._peek() != sign:
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise BadExpression(f"{sign!r} expected, found {self._peek() or 'the end'!r}")

    def _sum(self) -> Delay:
        self._depth += 1
        if self._depth > NESTING_MAX:
            raise BadExpression(f"nested deeper than {NESTING_MAX}")
        left = self._product()
        while (sign := self._peek()) in ("+", "-"):
            self._at += 1
            left = _combine(sign, left, self._product())
        self._depth -= 1
        return left

    def _product(self) -> Delay:
        left = self._factor()
        while (sign := self._peek()) in ("*", "/"):
            self._at += 1
            left = _combine(sign, left, self._factor())
        return left

    def _factor(self) -> Delay:
        negative = False
        while self._peek() in ("-", "+"):
            negative ^= self._peek() == "-"
            self._at += 1
        value = self._atom()
        return (lambda retried: -value(retried)) if negative else value

    def _atom(self) -> Delay:
        if self._take("("):
            inner = self._sum()
            self._expect(")")
            return inner
        if self._at >= len(self._tokens):
            raise BadExpression("it ends too early")
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "number":
            number = float(text)
            return lambda _: number
        if text == "retried":
            return float
        if kind != "name" or text not in _FUNCTIONS:
            raise BadExpression(f"unknown {text!r}")
        return self._call(text)

    def _call(self, name: str) -> Delay:
        function, low, high = _FUNCTIONS[name]
        self._expect("(")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._expect(")")
        if not low <= len(arguments) <= high:
            raise BadExpression(f"{name} takes {low} to {high} arguments")
        return lambda retried: float(function(*(argument(retried) for argument in arguments)))


def _combine(sign: str, left: Delay, right: Delay) -> Delay:
    match sign:
        case "+":
            return lambda retried: left(retried) + right(retried)
        case "-":
            return lambda retried: left(retried) - right(retried)
        case "*":
            return lambda retried: left(retried) * right(retried)
        case _:
            return lambda retried: left(retried) / right(retried)
