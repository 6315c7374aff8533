"""What is sent to a generator for one run: its URL, its body, its headers, and what nobody may see of them. Pure.

The addresses a generator may call and the tokens that open them are made here, each for this run only.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from server.dispatch.token import make_token
from server.generators import Generator
from server.template import fill, fill_text
from server.values import is_loopback

PROGRESS_PATH = "/api/generate/progress"
WEBHOOK_PATH = "/api/generate/webhook/"
# A body that holds one of these is hidden where messages are shown.
_CONFIDENTIAL = frozenset({"webhookUrl", "progressToken"})


class Addresses(msgspec.Struct, frozen=True):
    """Where reports and webhooks reach this server, and what the tokens for them are made with."""

    base_url: str
    webhook_base: str
    secret: bytes

    def progress_url(self, generator_url: str) -> str:
        """Where this generator reports: a loopback address of ours is no use to one on another machine."""
        ours, theirs = (urlsplit(url).hostname or "" for url in (self.base_url, generator_url))
        near = is_loopback(theirs) or not is_loopback(ours)
        return (self.base_url if near else self.webhook_base) + PROGRESS_PATH


class Job(msgspec.Struct, frozen=True):
    """A request; `hidden_headers` and, if so, the body are redacted at QStash."""

    url: str
    body: bytes
    headers: dict[str, str]
    hidden_headers: list[str]
    hides_body: bool


def compose(
    generator: Generator, task_id: str, attempt: int, prompt: str, params: Mapping[str, Any], here: Addresses
) -> Job:
    """The request for one run."""
    token = make_token(here.secret, task_id, attempt)
    progress_url = here.progress_url(generator.url)
    values: dict[str, Any] = {
        **{f"params.{name}": value for name, value in params.items()},
        "prompt": prompt,
        "taskId": task_id,
        "attempt": attempt,
        "progressUrl": progress_url,
        "progressToken": token,
        "webhookUrl": webhook_url(generator, task_id, attempt, here),
    }
    body = {**params, "prompt": prompt} if generator.body is None else fill(generator.body, values)
    ours = {
        "Taskbeam-Task-Id": task_id,
        "Taskbeam-Attempt": str(attempt),
        "Taskbeam-Progress-Url": progress_url,
        "Taskbeam-Progress-Token": token,
    }
    return Job(
        url=fill_text(generator.url, {"webhookUrl": quote(values["webhookUrl"], safe="")}),
        body=msgspec.json.encode(body),
        headers={**ours, **dict(generator.headers)},
        hidden_headers=["Taskbeam-Progress-Token", *(name for name, _ in generator.headers)],
        hides_body=generator.body is not None and bool(generator.body.names & _CONFIDENTIAL),
    )


def webhook_purpose(generator: Generator) -> str:
    """What the token of its webhooks is for: this provider, on behalf of this generator."""
    return f"webhook {generator.webhook} {generator.name or ''}"


def webhook_url(generator: Generator, task_id: str, attempt: int, here: Addresses) -> str:
    """Where its provider calls back for this run; "" where none does."""
    if generator.webhook is None:
        return ""
    token = make_token(here.secret, task_id, attempt, webhook_purpose(generator))
    query = f"{run_query(generator, task_id, attempt)}&token={token}"
    return f"{here.webhook_base}{WEBHOOK_PATH}{generator.webhook}?{query}"


def run_query(generator: Generator, task_id: str, attempt: int) -> str:
    """The part of a callback's or webhook's URL that says which run it is about."""
    named = "" if generator.name is None else f"&generator={generator.name}"
    return f"task={quote(task_id)}&attempt={attempt}{named}"
