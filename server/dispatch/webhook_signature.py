"""Verifies the webhooks of generators over their raw bytes, as their senders publish it. Pure.

Standard Webhooks, which Replicate follows (standardwebhooks.com, spec 1.0.0): HMAC-SHA256 over `id.timestamp.body`, in
base64, one or several of them. fal (docs.fal.ai, "Verifying Your Webhook"): Ed25519 over request id, user id, timestamp
and the body's SHA-256, a line each; in hex, the keys as a JWKS.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
import msgspec
from jwt.algorithms import OKPAlgorithm

from server.dispatch.signature import BadSignature

TOLERANCE_SECONDS = 300
SIGNATURES_MAX = 20

# A dot in it would let one signed text be read as another.
_ID = re.compile(r"[!-\-/-~]{1,256}", re.ASCII)
_PRINTABLE = re.compile(r"[!-~]{1,256}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{128}", re.ASCII)


class PublicKeys(msgspec.Struct, frozen=True):
    """Ed25519 keys of a sender."""

    keys: tuple[Any, ...]


def verify_standard(headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: float) -> str:
    """The id of a webhook signed with one of the secrets. Raises BadSignature."""
    webhook_id, timestamp, given = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not webhook_id or not timestamp or not given:
        raise BadSignature("missing")
    _check_time(timestamp, now)
    if not _ID.fullmatch(webhook_id):
        raise BadSignature("malformed")
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    expected = [base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)) for secret in secrets]
    matches = [
        hmac.compare_digest(signature.encode("utf-8", "replace"), mine)
        for version, _, signature in (part.partition(",") for part in given.split(" ")[:SIGNATURES_MAX])
        if version == "v1"
        for mine in expected
    ]
    if not any(matches):
        raise BadSignature("wrong_key")
    return webhook_id


def verify_fal(headers: Mapping[str, str], body: bytes, keys: PublicKeys, now: float) -> str:
    """The request id of a webhook of fal. Raises BadSignature."""
    names = ("request-id", "user-id", "timestamp", "signature")
    request_id, user_id, timestamp, given = (headers.get(f"x-fal-webhook-{name}", "") for name in names)
    if not request_id or not user_id or not timestamp or not given:
        raise BadSignature("missing")
    _check_time(timestamp, now)
    if not _HEX.fullmatch(given) or not _PRINTABLE.fullmatch(request_id) or not _PRINTABLE.fullmatch(user_id):
        raise BadSignature("malformed")
    signed = "\n".join((request_id, user_id, timestamp, hashlib.sha256(body).hexdigest())).encode()
    signature = binascii.unhexlify(given)
    algorithm = OKPAlgorithm()
    if not any(algorithm.verify(signed, key, signature) for key in keys.keys):
        raise BadSignature("wrong_key")
    return request_id


def read_keys(document: bytes) -> PublicKeys:
    """The Ed25519 keys of a JWKS, others left out. Raises ValueError where there are none."""
    try:
        listed = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
        found = [
            OKPAlgorithm.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": key["x"]})
            for key in (listed if isinstance(listed, list) else [])
            if isinstance(key, dict) and key.get("crv") == "Ed25519" and isinstance(key.get("x"), str)
        ]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, jwt.PyJWTError, binascii.Error) as error:
        raise ValueError("not a key set") from error
    if not found:
        raise ValueError("no Ed25519 key in it")
    return PublicKeys(tuple(found))


def _check_time(timestamp: str, now: float) -> None:
    if not _TIMESTAMP.fullmatch(timestamp):
        raise BadSignature("malformed")
    if int(timestamp) < now - TOLERANCE_SECONDS:
        raise BadSignature("expired")
    if int(timestamp) > now + TOLERANCE_SECONDS:
        raise BadSignature("not_yet")
