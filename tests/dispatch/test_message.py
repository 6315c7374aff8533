"""Holds the headers of a publish request to their rules: every option, every wrong value, who gets which."""

from typing import Any

import msgspec
import pytest

from server.dispatch.message import (
    METHODS,
    RETRIES_DEFAULT,
    TIMEOUT_SECONDS_DEFAULT,
    URL_CHARACTERS_MAX,
    BadMessage,
    Draft,
    checked_url,
    read_draft,
)

pytestmark = pytest.mark.pure

URL = "https://host.test/p?x=1"


def read(*headers: tuple[str, str], body: bytes = b"") -> Draft:
    return read_draft(URL, headers, body)


def test_nothing_said() -> None:
    draft = read(body=b"\0\xff")
    assert draft == Draft(url=URL, body=b"\0\xff")
    assert (draft.method, draft.max_retries, draft.timeout_seconds) == (
        "POST",
        RETRIES_DEFAULT,
        TIMEOUT_SECONDS_DEFAULT,
    )
    assert (RETRIES_DEFAULT, draft.delay_seconds, draft.not_before) == (3, 0, None)


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [
        ("Upstash-Method", "get", {"method": "GET"}),
        ("upstash-retries", "0", {"max_retries": 0}),
        ("UPSTASH-RETRIES", "1000", {"max_retries": 1000}),
        ("Upstash-Retry-Delay", "1000 * retried", {"retry_delay": "1000 * retried"}),
        ("Upstash-Timeout", "2m", {"timeout_seconds": 120.0}),
        ("Upstash-Timeout", "90", {"timeout_seconds": 90.0}),
        ("Upstash-Delay", "1d10h30m", {"delay_seconds": 124_200.0}),
        ("Upstash-Not-Before", "1900000000", {"not_before": 1_900_000_000.0}),
        ("Upstash-Deduplication-Id", "t-1", {"deduplication_id": "t-1"}),
        ("Upstash-Content-Based-Deduplication", "True", {"content_deduplication": True}),
        ("Upstash-Content-Based-Deduplication", "false", {"content_deduplication": False}),
        ("Upstash-Callback", "http://cb.test/x", {"callback": "http://cb.test/x"}),
        ("Upstash-Failure-Callback", "http://cb.test/x", {"failure_callback": "http://cb.test/x"}),
        ("Upstash-Label", "a, b,,", {"labels": ["a", "b"]}),
        ("Upstash-Redact-Fields", "body, header[Authorization]", {"redact": ["body", "header[Authorization]"]}),
        ("Content-Type", "text/plain", {"header": {"Content-Type": ["text/plain"]}}),
        ("Upstash-Forward-X-my-KEY", "v", {"header": {"X-My-Key": ["v"]}}),
        ("Upstash-Telemetry-Sdk", "py", {}),
        ("Authorization", "Bearer secret", {}),
        ("X-Other", "v", {}),
        ("Upstash-Retries", "", {}),
        ("Upstash-Deduplication-Id", "", {}),
    ],
)
def test_one_header(name: str, value: str, changed: dict[str, Any]) -> None:
    assert read((name, value)) == msgspec.structs.replace(Draft(url=URL), **changed)


def test_every_method_of_the_protocol() -> None:
    assert [read(("Upstash-Method", method)).method for method in METHODS] == ["GET", "POST", "PUT", "PATCH", "DELETE"]


def test_forwarded_headers_keep_all_their_values() -> None:
    draft = read(("Upstash-Forward-A", "1"), ("upstash-forward-a", "2"), ("Upstash-Forward-B", "3"))
    assert draft.header == {"A": ["1", "2"], "B": ["3"]}


@pytest.mark.parametrize("name", ["Upstash-Label", "Upstash-Deduplication-Id", "Upstash-Forward-X", "Content-Type"])
@pytest.mark.parametrize("value", ["a\0b", "a\r\nX: y", "a\nb", "\x1b[2J", "\x7f"])
def test_query_options_cannot_carry_what_headers_cannot(name: str, value: str) -> None:
    with pytest.raises(BadMessage, match="control characters"):
        read((name, value))


def test_what_no_header_can_carry_is_not_forwarded() -> None:
    with pytest.raises(BadMessage, match="X-Name"):
        read(("Upstash-Forward-X-Name", "\u20ac"))
    assert read(("Upstash-Forward-X-Name", "\xe9")).header == {"X-Name": ["\xe9"]}


@pytest.mark.parametrize("prefix", ["Upstash-Forward-", "Upstash-Callback-Forward-"])
@pytest.mark.parametrize("name", ["", "A B", "A\r\nB", "\0", "A:", "Upstash-Signature", "upstash-message-id"])
def test_forwarded_names_are_names_and_not_those_of_the_dispatcher(prefix: str, name: str) -> None:
    draft = read(("Upstash-Callback", "http://cb.test/"), (prefix + name, "v"))
    assert draft == Draft(url=URL, callback="http://cb.test/")


def test_callbacks_have_options_of_their_own() -> None:
    draft = read(
        ("Upstash-Retries", "5"),
        ("Upstash-Callback", "http://cb.test/"),
        ("Upstash-Callback-Method", "put"),
        ("Upstash-Callback-Retries", "2"),
        ("Upstash-Callback-Delay", "10s"),
        ("Upstash-Callback-Timeout", "5s"),
        ("Upstash-Callback-Retry-Delay", "1"),
        ("Upstash-Callback-Forward-x-Key", "v"),
        ("Upstash-Failure-Callback", "http://failed.test/"),
        ("Upstash-Failure-Callback-Retries", "7"),
    )
    assert (draft.max_retries, draft.method, draft.delay_seconds) == (5, "POST", 0)
    assert draft.callback_options == {
        "method": "PUT",
        "max_retries": 2,
        "delay_seconds": 10.0,
        "timeout_seconds": 5.0,
        "retry_delay": "1",
        "header": {"X-Key": ["v"]},
    }
    assert draft.failure_callback_options == {"max_retries": 7}
    assert draft.header == {}


def test_options_of_a_callback_that_there_is_not_say_nothing() -> None:
    assert read(("Upstash-Callback-Retries", "2")) == Draft(url=URL)


WRONG = [
    ("Method", "HEAD"),
    ("Method", "GET, POST"),
    ("Retries", "-1"),
    ("Retries", "1001"),
    ("Retries", "1.5"),
    ("Retries", "٣"),
    ("Retry-Delay", "__import__('os')"),
    ("Retry-Delay", "1 +"),
    ("Timeout", "soon"),
    ("Timeout", "0"),
    ("Timeout", "2d"),
    ("Delay", "-1s"),
    ("Delay", "91d"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
@pytest.mark.parametrize("prefix", ["Upstash-", "Upstash-Callback-", "Upstash-Failure-Callback-"])
def test_wrong_values_are_refused_by_name(prefix: str, name: str, value: str) -> None:
    callbacks = [("Upstash-Callback", "http://cb.test/"), ("Upstash-Failure-Callback", "http://cb.test/")]
    with pytest.raises(BadMessage, match=f"Upstash-{name}"):
        read(*callbacks, (prefix + name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upstash-Not-Before", "tomorrow"),
        ("Upstash-Not-Before", "1.5"),
        ("Upstash-Not-Before", "9" * 30),
        ("Upstash-Deduplication-Id", "x" * 257),
        ("Upstash-Callback", "not a url"),
        ("Upstash-Failure-Callback", "ftp://cb.test/"),
    ],
)
def test_so_are_these(name: str, value: str) -> None:
    with pytest.raises(BadMessage):
        read((name, value))


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "HTTPS://H/",
        "https://h?x",
        "https://h:8443//a//b?u=http://x/",
        "http://[::1]:80/",
        "http://h/%00%0a",
    ],
)
def test_destinations_come_back_as_they_are(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "/p",
        "//h/",
        "http:/h",
        "http://",
        "http:///p",
        "http://?x",
        "ftp://h",
        "file:///etc/passwd",
        "gopher://h",
        "javascript:alert(1)",
        "http://user:secret@h/",
        "http://h@evil.test/",
        "http://h\\@evil.test/",
        "http://h/#f",
        "http://h/ p",
        "http://h /",
        "http://h/\n",
        "http://h/\r\nX: y",
        "http://h/\0",
        "http://h\0.test/",
        "http://h/\x1b[2J",
        "http://h/\x7f",
        "http://h/\ud800",
        " http://h/",
        "http://h/" + "x" * URL_CHARACTERS_MAX,
    ],
)
def test_what_is_no_destination(url: str) -> None:
    with pytest.raises(BadMessage):
        checked_url(url)
    with pytest.raises(BadMessage):
        read_draft(url, [], b"")
