"""Who is calling. Without sign-in configured there is one local development user, and the server is on loopback.

The claims travel as JSON text to Postgres, where row level security reads them; nothing here decides what a
caller may see.
"""

import msgspec
from starlette.requests import HTTPConnection

LOCAL_USER_ID = "00000000-0000-4000-8000-000000000001"


class Caller(msgspec.Struct, frozen=True):
    """A known user: `claims` is the JSON text that becomes request.jwt.claims."""

    user_id: str
    claims: str


LOCAL = Caller(
    LOCAL_USER_ID,
    msgspec.json.encode({"sub": LOCAL_USER_ID, "role": "authenticated", "aud": "authenticated"}).decode(),
)


def caller_of(connection: HTTPConnection) -> Caller:
    """The caller of this request or WebSocket."""
    return LOCAL
