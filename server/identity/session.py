"""/api/session: a page hands in its access token once, and the browser sends it along by itself from then on.

EventSource and WebSocket send no headers of a page's; a cookie they send. It is HttpOnly, so no script can read it, and
holds the token itself: nothing is kept here, and it ends with the token.
"""

import datetime as dt
import time
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Caller
from server.body import read_json
from server.errors import TooLarge
from server.identity.cookies import COOKIE_BYTES_MAX, fits_a_cookie, session_cookie
from server.identity.identity import Identity
from server.identity.token import TOKEN_CHARACTERS_MAX

BODY_BYTES_MAX = TOKEN_CHARACTERS_MAX + 1_024


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    """The user's access token."""

    token: str


class Session(msgspec.Struct, rename="camel"):
    """Who is calling; `expiresAt` is when the proof ends, null where none is needed."""

    user_id: str
    expires_at: dt.datetime | None
    operator: bool


class SignedOut(msgspec.Struct):
    """The browser keeps no access token any more."""

    outcome: Literal["signed_out"] = "signed_out"


class Sessions:
    """GET, POST and DELETE /api/session"""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def show(self, request: Request) -> Response:
        return _answer(_session(await self._identity.caller(request)))

    async def begin(self, request: Request) -> Response:
        """The cookie, for an access token that is good."""
        wanted = await read_json(request, SignIn, BODY_BYTES_MAX)
        caller = await self._identity.verified(wanted.token)
        if caller.expires_at is None:  # the local user, who needs no cookie
            return _answer(_session(caller))
        if not fits_a_cookie(wanted.token):
            raise TooLarge(
                f"A cookie has {COOKIE_BYTES_MAX} bytes at most, and this access token is longer: send it along"
            )
        max_age = max(1, round(caller.expires_at - time.time()))
        return _answer(_session(caller), session_cookie(wanted.token, max_age, secure=self._identity.secure_cookies))

    async def end(self, request: Request) -> Response:
        """Also where the token is not good any more."""
        return _answer(SignedOut(), session_cookie("", 0, secure=self._identity.secure_cookies))


def _session(caller: Caller) -> Session:
    expires_at = dt.datetime.fromtimestamp(caller.expires_at, dt.UTC) if caller.expires_at is not None else None
    return Session(caller.user_id, expires_at, caller.operator)


def _answer(told: Session | SignedOut, cookie: str | None = None) -> Response:
    headers = {"Cache-Control": "no-store"}
    if cookie is not None:
        headers["Set-Cookie"] = cookie
    return Response(msgspec.json.encode(told), media_type="application/json", headers=headers)
