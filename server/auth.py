"""Who is calling, for those who serve him. How that is found out is the business of identity/.

The claims travel as JSON text to Postgres, where row level security reads them; nothing here decides what a
caller may see.
"""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec
from starlette.requests import HTTPConnection

LOCAL_USER_ID = "00000000-0000-4000-8000-000000000001"


class Caller(msgspec.Struct, frozen=True):
    """A known user: `claims` is the JSON text that becomes request.jwt.claims.

    `expires_at` is when his proof ends, in Unix seconds; None for the local user, who needs none. `operator`: he may
    see what concerns all users. `task_ids`: the tasks that his ticket is for; None where he may follow all of his.
    """

    user_id: str
    claims: str
    expires_at: float | None = None
    operator: bool = False
    task_ids: frozenset[str] | None = None


LOCAL = Caller(
    LOCAL_USER_ID,
    msgspec.json.encode({"sub": LOCAL_USER_ID, "role": "authenticated", "aud": "authenticated"}).decode(),
    operator=True,
)

# The caller of a request or WebSocket. Raises Unauthorized, and Unavailable where it cannot be found out now.
Identify: TypeAlias = Callable[[HTTPConnection], Awaitable[Caller]]
# The caller that an access token speaks for. Raises the same.
Verify: TypeAlias = Callable[[str], Awaitable[Caller]]
