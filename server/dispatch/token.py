"""The token with which a generator reports on one attempt of one task, and on nothing else. Pure.

It names its task and attempt and is signed (HMAC-SHA256), so nothing has to be stored for it. One for a webhook's URL
is made for another purpose: neither is good for the other.
"""

import base64
import hashlib
import hmac
import re

PROGRESS = "progress"

_FORM = re.compile(r"([A-Za-z0-9_-]{1,128})\.([1-9][0-9]{0,8})\.([A-Za-z0-9_-]{43})", re.ASCII)


class BadToken(ValueError):
    """Not a token of ours."""


def make_token(secret: bytes, task_id: str, attempt: int, purpose: str = PROGRESS) -> str:
    return f"{task_id}.{attempt}.{_signature(secret, purpose, task_id, attempt)}"


def read_token(secret: bytes, token: str, purpose: str = PROGRESS) -> tuple[str, int]:
    """The task id and attempt that the token is for. Raises BadToken."""
    match = _FORM.fullmatch(token)
    if match is None:
        raise BadToken
    task_id, attempt = match[1], int(match[2])
    if not hmac.compare_digest(match[3], _signature(secret, purpose, task_id, attempt)):
        raise BadToken
    return task_id, attempt


def _signature(secret: bytes, purpose: str, task_id: str, attempt: int) -> str:
    digest = hmac.digest(secret, f"{purpose} {task_id} {attempt}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
