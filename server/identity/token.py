"""Verifies access tokens: JWTs as Supabase issues them (RFC 7519; sub, role, aud, exp, iat as GoTrue sets them). Pure.

Which keys and algorithms count is ours to say, never the token's: what its header names besides `kid` is not followed.
"""

import uuid
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec

from server.auth import Caller

LEEWAY_SECONDS = 30
TOKEN_CHARACTERS_MAX = 16_384
KEYS_MAX = 50
# The last second of the year 9999: what is later is no time.
TIME_MAX = 253_402_300_799
PUBLIC_KEY_ALGORITHMS = ("RS256", "ES256", "EdDSA")
ROLE = "authenticated"
# What is said of a token that is refused, by reason.
REASONS = {
    "malformed": "This is no access token",
    "wrong_algorithm": "The token is signed in a way that is not accepted here",
    "unknown_key": "The token is signed with a key that its issuer does not publish",
    "wrong_key": "The token's signature is wrong",
    "expired": "The token has expired",
    "not_yet": "The token is of the future: a clock is wrong",
    "wrong_issuer": "The token is of another issuer",
    "wrong_audience": "The token is for another audience",
    "incomplete": "The token lacks one of exp, iat, sub, aud, iss",
    "wrong_subject": "The token's sub is not a UUID",
    "wrong_role": "The token's role is not authenticated",
    "anonymous": "The token is of an anonymous user",
}


class BadAccessToken(Exception):
    """`reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeySet(msgspec.Struct, frozen=True):
    """Public keys that tokens may be signed with; equal where the document was the same."""

    document: bytes
    keys: tuple[jwt.PyJWK, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and self.document == other.document

    def __hash__(self) -> int:
        return hash(self.document)


def read_key_set(document: bytes) -> KeySet:
    """The usable keys of a JWKS (RFC 7517), others left out. Raises ValueError where it is none."""
    try:
        listed = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("not a key set") from error
    if not isinstance(listed, list):
        raise ValueError("not a key set")
    found = []
    for described in listed[:KEYS_MAX]:
        try:
            if described.get("use", "sig") == "sig" and described.get("kty") != "oct":
                key = jwt.PyJWK(described)
                if key.algorithm_name in PUBLIC_KEY_ALGORITHMS:
                    found.append(key)
        except Exception:  # noqa: S112  (whatever is odd about one key, it signs nothing for us, and the others do)
            continue
    return KeySet(document, tuple(found))


class Rules(msgspec.Struct, frozen=True):
    """What a token must say. `secret` (HS256) or None; `operator_role` in app_metadata makes an operator."""

    issuer: str
    audience: str
    secret: str | None
    operator_role: str


def needs_keys(token: str, rules: Rules) -> bool:
    """Whether the public keys are needed to verify it. Raises BadAccessToken."""
    algorithm = _header(token).get("alg")
    if algorithm == "HS256" and rules.secret is not None:
        return False
    if algorithm not in PUBLIC_KEY_ALGORITHMS:
        raise BadAccessToken("wrong_algorithm")
    return True


def verify(token: str, rules: Rules, keys: KeySet | None, now: float) -> Caller:
    """The caller that a token speaks for. Raises BadAccessToken; `unknown_key` where newer keys might help."""
    header = _header(token)
    if needs_keys(token, rules):
        fitting = [key for key in keys.keys if _fits(key, header)] if keys is not None else []
        if not fitting:
            raise BadAccessToken("unknown_key")
        claims = _claims(token, fitting[0], (header["alg"],), rules)
    else:
        claims = _claims(token, rules.secret, ("HS256",), rules)
    return _caller(claims, rules, now)


def _header(token: str) -> Mapping[str, Any]:
    if len(token) > TOKEN_CHARACTERS_MAX or token.count(".") != 2 or not token.isascii():
        raise BadAccessToken("malformed")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise BadAccessToken("malformed") from None
    if "crit" in header or not isinstance(header.get("kid", ""), str):
        raise BadAccessToken("malformed")  # extensions that must be understood are not
    return header


def _fits(key: jwt.PyJWK, header: Mapping[str, Any]) -> bool:
    """Without a kid the first key of the algorithm is meant: an issuer with several names them."""
    return key.algorithm_name == header["alg"] and header.get("kid") in (None, key.key_id)


def _claims(token: str, key: Any, algorithms: tuple[str, ...], rules: Rules) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            # Times are looked at below, by the clock that is handed in.
            options={
                "require": ["exp", "iat", "sub", "aud", "iss"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "verify_sub": False,
            },
            audience=rules.audience,
            issuer=rules.issuer,
        )
    except jwt.InvalidSignatureError:
        raise BadAccessToken("wrong_key") from None
    except jwt.MissingRequiredClaimError:
        raise BadAccessToken("incomplete") from None
    except jwt.InvalidIssuerError:
        raise BadAccessToken("wrong_issuer") from None
    except jwt.InvalidAudienceError:
        raise BadAccessToken("wrong_audience") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise BadAccessToken("malformed") from None
    return claims


def _caller(claims: dict[str, Any], rules: Rules, now: float) -> Caller:
    expires_at, issued_at = _time(claims["exp"]), _time(claims["iat"])
    if expires_at <= now - LEEWAY_SECONDS:
        raise BadAccessToken("expired")
    if max(issued_at, _time(claims.get("nbf", 0))) > now + LEEWAY_SECONDS:
        raise BadAccessToken("not_yet")
    if claims.get("role") != ROLE:
        raise BadAccessToken("wrong_role")
    if claims.get("is_anonymous") is True:
        raise BadAccessToken("anonymous")
    try:
        user_id = str(uuid.UUID(claims["sub"]))
    except (ValueError, AttributeError, TypeError):
        raise BadAccessToken("wrong_subject") from None
    # As row level security will compare it, however it was written.
    claims["sub"] = user_id
    try:
        text = msgspec.json.encode(claims).decode()
    except (UnicodeEncodeError, OverflowError, TypeError, RecursionError, msgspec.MsgspecError):
        raise BadAccessToken("malformed") from None
    if "\\u0000" in text:  # which Postgres does not take, and nobody needs
        raise BadAccessToken("malformed")
    return Caller(user_id, text, expires_at, _is_operator(claims, rules.operator_role))


def _time(claim: object) -> float:
    if isinstance(claim, bool) or not isinstance(claim, int | float) or not 0 <= claim <= TIME_MAX:
        raise BadAccessToken("malformed")
    return float(claim)


def _is_operator(claims: Mapping[str, Any], role: str) -> bool:
    """By app_metadata, which a user cannot write; user_metadata is his own."""
    metadata = claims.get("app_metadata")
    if not isinstance(metadata, Mapping):
        return False
    roles = metadata.get("roles")
    return metadata.get("role") == role or (isinstance(roles, list) and role in roles)
