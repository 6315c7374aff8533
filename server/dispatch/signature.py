"""Signs and verifies requests as QStash does: a JWT that binds the destination URL and the hash of the raw body.

Pure: the time comes in as an argument. The check of the SDK is not used, because it takes text for a body and
knows no leeway; what it accepts and what is accepted here is compared in a test.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Any

import jwt
import msgspec

LIFETIME_SECONDS = 300
# Receivers that allow no leeway must not find a signature of the future.
BACKDATE_SECONDS = 5
LEEWAY_SECONDS = 30
TOKEN_CHARACTERS_MAX = 16_384
# {"alg":"HS256","typ":"JWT"}, as everybody writes it
USUAL_HEAD = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
JTI_CHARACTERS_MAX = 128
# Python's own decoder passes over all else.
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


class BadSignature(Exception):
    """`reason` is one of: missing malformed wrong_key wrong_issuer wrong_url wrong_body expired not_yet."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Claims(msgspec.Struct, frozen=True):
    """What a valid signature says of itself; times in Unix seconds; `body` is the hash of the body it is for."""

    jti: str
    issued_at: float
    expires_at: float
    body: str


def body_hash(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()


def sign(key: str, url: str, body: bytes, now: float, jti: str) -> str:
    """The value of Upstash-Signature for this body sent to exactly this URL."""
    issued_at = int(now) - BACKDATE_SECONDS
    claims = {
        "iss": "Upstash",
        "sub": url,
        "iat": issued_at,
        "nbf": 0,
        "exp": issued_at + LIFETIME_SECONDS,
        "jti": jti,
        "body": body_hash(body),
    }
    return jwt.encode(claims, key, algorithm="HS256")


def verify(token: str, body: bytes, url: str, keys: Sequence[str], now: float) -> Claims:
    """The claims of a token signed with one of `keys` for this body and URL. Raises BadSignature."""
    claims = read_claims(token, url, keys, now)
    check_body(claims, body)
    return claims


def check_body(claims: Claims, body: bytes) -> None:
    """Raises BadSignature unless the claims are for exactly this body."""
    if not _same(claims.body.rstrip("="), body_hash(body).rstrip("=")):
        raise BadSignature("wrong_body")


def read_claims(token: str, url: str, keys: Sequence[str], now: float) -> Claims:
    """All of verify() that can be told before the body is there. Raises BadSignature."""
    if not token:
        raise BadSignature("missing")
    if len(token) > TOKEN_CHARACTERS_MAX:
        raise BadSignature("malformed")
    payload = _usual_payload(token, keys) or _payload(token, keys)
    if payload.get("iss") != "Upstash":
        raise BadSignature("wrong_issuer")
    expires_at, not_before, issued_at = (_number(payload, name) for name in ("exp", "nbf", "iat"))
    if now > expires_at + LEEWAY_SECONDS:
        raise BadSignature("expired")
    if max(not_before, issued_at) > now + LEEWAY_SECONDS:
        raise BadSignature("not_yet")
    if not _same(payload.get("sub"), url):
        raise BadSignature("wrong_url")
    said = payload.get("body")
    if not isinstance(said, str):
        raise BadSignature("wrong_body")
    jti = payload.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= JTI_CHARACTERS_MAX or not jti.isprintable():
        raise BadSignature("malformed")
    return Claims(jti, issued_at, expires_at, said)


def _usual_payload(token: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """The payload of a good token in its usual form; all others are the library's to judge, which takes longer."""
    signed, _, signature = token.rpartition(".")
    head, _, said = signed.partition(".")
    if head != USUAL_HEAD or not _BASE64URL.fullmatch(said) or not signature.isascii():
        return None
    for key in keys:
        digest = hmac.digest(key.encode(), signed.encode(), "sha256")
        if hmac.compare_digest(base64.urlsafe_b64encode(digest).rstrip(b"="), signature.encode()):
            try:
                payload = msgspec.json.decode(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
            except (ValueError, RecursionError):
                return None
            return payload if isinstance(payload, dict) else None
    return None


def _payload(token: str, keys: Sequence[str]) -> dict[str, Any]:
    reason = "wrong_key"
    for key in keys:
        try:
            # The algorithm is ours to say, never the token's; times are checked against `now` by the caller.
            payload: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["HS256"],
                options={
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, ValueError, RecursionError):
            reason = "malformed"
            break
        return payload
    raise BadSignature(reason)


def _number(payload: dict[str, Any], name: str) -> float:
    value = payload.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise BadSignature("malformed")
    return float(value)


def _same(value: object, expected: str) -> bool:
    return isinstance(value, str) and hmac.compare_digest(value.encode("utf-8", "replace"), expected.encode())
