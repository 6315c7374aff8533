"""Which run of which task a message of the dispatcher's is about; None where it does not say. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

from server.tasks.snapshot import TASK_ID

Subject: TypeAlias = tuple[str, int] | None  # task and attempt
ATTEMPT = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def of_job(header: Mapping[str, Sequence[str]]) -> Subject:
    """As job.py writes it."""
    return _read(*(next(iter(header.get(name, ())), "") for name in ("Taskbeam-Task-Id", "Taskbeam-Attempt")))


def of_callback(url: str) -> Subject:
    """As the URL says that the outbox gave to QStash."""
    try:
        query = parse_qs(urlsplit(url).query)
    except ValueError:
        return None
    return _read(*(query.get(name, [""])[0] for name in ("task", "attempt")))


def _read(task_id: str, attempt: str) -> Subject:
    if not TASK_ID.fullmatch(task_id) or not ATTEMPT.fullmatch(attempt):
        return None
    return task_id, int(attempt)
