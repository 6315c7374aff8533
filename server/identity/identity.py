"""Finds out who is calling: the access token from where it is carried, verified, and kept while it is good.

Taken from, in this order: `Authorization: Bearer`, our own cookie (POST /api/session), the cookie of @supabase/ssr.
What is carried in a header is never passed over for a cookie, so a page sees that its token is refused.
"""

import hashlib
import hmac
import time
from collections import OrderedDict

import structlog
from starlette.requests import HTTPConnection

from server.auth import LOCAL, Caller
from server.errors import (
    AccessTokenExpired,
    Forbidden,
    ForeignOrigin,
    InvalidAccessToken,
    Unauthorized,
    Unavailable,
)
from server.identity.cookies import access_token
from server.identity.token import (
    LEEWAY_SECONDS,
    REASONS,
    BadAccessToken,
    KeySet,
    Rules,
    needs_keys,
    read_key_set,
    verify,
)
from server.metrics import Metrics
from server.peer import is_of_this_machine
from server.published_keys import KeysUnavailable, PublishedKeys
from server.settings import Settings

log = structlog.get_logger()

VERIFIED_MAX = 20_000
KEYS_FRESH_SECONDS = 600.0
KEYS_AGAIN_SECONDS = 30


class Identity:
    """`await caller(request)`; without sign-in it is always the local user."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._refused = metrics.sign_ins_refused
        self._operator_key = settings.auth_operator_key
        self._supabase_cookie = settings.auth_cookie
        self.secure_cookies = settings.serves_https
        self._rules = (
            Rules(settings.auth_issuer, settings.auth_audience, settings.auth_secret, settings.auth_operator_role)
            if settings.auth_issuer is not None
            else None
        )
        keys_url = settings.auth_keys_url
        self._keys = (
            PublishedKeys(keys_url, read_key_set, fresh_seconds=KEYS_FRESH_SECONDS, kept_seconds_max=None)
            if keys_url is not None
            else None
        )
        # By hash, so that no token lies about; of the keys that are known now.
        self._verified: OrderedDict[bytes, Caller] = OrderedDict()
        self._verified_with: KeySet | None = None

    async def caller(self, connection: HTTPConnection) -> Caller:
        """Raises Unauthorized, and Unavailable where the issuer's keys cannot be had."""
        if self._rules is None:
            return LOCAL
        token = self.token(connection)
        if token is None:
            raise self._refusal("missing")
        return await self.verified(token)

    async def verified(self, token: str) -> Caller:
        """The caller that a token speaks for. Raises as caller()."""
        if self._rules is None:
            return LOCAL
        now = time.time()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        caller = self._verified.get(digest)
        if caller is not None and caller.expires_at is not None and caller.expires_at > now - LEEWAY_SECONDS:
            await self._look_for_newer_keys()
            if digest in self._verified:
                return caller
        try:
            caller = await self._verify(token, self._rules, now)
        except BadAccessToken as error:
            raise self._refusal(error.reason) from None
        except KeysUnavailable:
            raise Unavailable(
                "The keys of the access tokens' issuer cannot be had now",
                headers={"Retry-After": str(KEYS_AGAIN_SECONDS)},
            ) from None
        self._verified[digest] = caller
        if len(self._verified) > VERIFIED_MAX:
            self._verified.popitem(last=False)
        return caller

    async def require_operator(self, connection: HTTPConnection) -> None:
        """Operators, whoever has their key, and what runs on this machine. Raises Unauthorized and Forbidden."""
        if is_of_this_machine(connection) or self._has_operator_key(connection):
            return
        if not (await self.caller(connection)).operator:
            raise Forbidden("This is for operators")

    def _has_operator_key(self, connection: HTTPConnection) -> bool:
        given, key = _bearer(connection), self._operator_key
        return given is not None and key is not None and hmac.compare_digest(given.encode(), key.encode())

    def token(self, connection: HTTPConnection) -> str | None:
        """The access token that a request carries, not yet verified.

        Raises ForeignOrigin where a cookie would open a WebSocket and no page is named: browsers always name it.
        """
        given = _bearer(connection)
        if given is not None:
            return given
        if "cookie" not in connection.headers:
            return None
        token = access_token(connection.cookies, secure=self.secure_cookies, supabase=self._supabase_cookie)
        if token is not None and connection.scope["type"] == "websocket" and "origin" not in connection.headers:
            raise ForeignOrigin("A cookie opens a WebSocket for a page only, and this request has no Origin")
        return token

    async def _verify(self, token: str, rules: Rules, now: float) -> Caller:
        if not needs_keys(token, rules):
            return verify(token, rules, None, now)
        if self._keys is None:
            raise BadAccessToken("wrong_algorithm")
        keys = await self._current_keys(self._keys)
        try:
            return verify(token, rules, keys, now)
        except BadAccessToken as error:
            if error.reason != "unknown_key":
                raise
        newer = await self._keys.renewed(keys)
        if newer is keys and self._keys.away:
            raise KeysUnavailable
        return verify(token, rules, newer, now)

    async def _current_keys(self, published: PublishedKeys[KeySet]) -> KeySet:
        keys = await published.current()
        if keys is not self._verified_with:
            # A key that was withdrawn speaks for nobody any more.
            self._verified.clear()
            self._verified_with = keys
        return keys

    async def _look_for_newer_keys(self) -> None:
        if self._keys is not None and self._verified_with is not None:
            await self._current_keys(self._keys)

    def _refusal(self, reason: str) -> Unauthorized:
        self._refused[reason].inc()
        headers = {"WWW-Authenticate": "Bearer"}
        if reason == "missing":
            return Unauthorized("Sign in: this request carries no access token", headers=headers)
        log.info("sign_in_refused", reason=reason)
        kind = AccessTokenExpired if reason == "expired" else InvalidAccessToken
        return kind(REASONS[reason], headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def _bearer(connection: HTTPConnection) -> str | None:
    """What an Authorization header carries; an empty text where it is not a bearer's."""
    header = connection.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
