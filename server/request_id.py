"""The id of a request: what its log lines, its answer and an error's problem have in common. Not a secret."""

import re
import secrets

from starlette.datastructures import Headers

HEADER = "X-Request-Id"
GIVEN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def request_id_of(headers: Headers) -> str:
    """The one that a proxy in front gave it, where it cannot forge a log line; else a new one."""
    given = headers.get(HEADER, "")
    return given if GIVEN.fullmatch(given) else secrets.token_urlsafe(9)
