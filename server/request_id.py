"""The id of a request: what its log lines, its answer and an error's problem have in common. Not a secret."""

import re
import secrets
from collections.abc import Mapping

HEADER = "x-request-id"
GIVEN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def request_id_of(headers: Mapping[str, str]) -> str:
    """The one that a proxy in front gave it, where it cannot forge a log line; else a new one.

    `headers` by their names in lower case.
    """
    given = headers.get(HEADER)
    return given if given is not None and GIVEN.fullmatch(given) else secrets.token_urlsafe(9)
