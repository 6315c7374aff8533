"""Holds signing and verifying to the protocol, in both directions against the SDK's own receiver, and to no mercy."""

import base64
import hashlib
import json
import time
from typing import Any

import jwt
import pytest
from qstash import Receiver
from qstash.errors import SignatureError

from server.dispatch.signature import (
    LEEWAY_SECONDS,
    LIFETIME_SECONDS,
    USUAL_HEAD,
    BadSignature,
    body_hash,
    sign,
    verify,
)

pytestmark = pytest.mark.pure

CURRENT, NEXT = "sig_" + "a" * 28, "sig_" + "b" * 28
KEYS = (CURRENT, NEXT)
URL = "https://app.test/api/generate/callback?task=t&attempt=1"
BODY = b'{"status":200,"body":"e30="}'
NOW = 1_900_000_000.0
ABSENT = object()


def claims(**changed: Any) -> dict[str, Any]:
    """What QStash puts into a token; ABSENT leaves a claim out."""
    usual = {
        "iss": "Upstash",
        "sub": URL,
        "exp": int(NOW) + 300,
        "nbf": 0,
        "iat": int(NOW),
        "jti": "jwt_1",
        "body": base64.urlsafe_b64encode(hashlib.sha256(BODY).digest()).decode(),
    }
    return {name: value for name, value in (usual | changed).items() if value is not ABSENT}


def token(key: str = CURRENT, header: dict[str, Any] | None = None, **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm="HS256", headers=header)


def by_hand(header: Any, payload: Any, key: str = CURRENT, digest: str = "sha256") -> str:
    """A token that no library would make."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    head = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(_hmac(key, head, digest)).rstrip(b"=")
    return (head + b"." + signature).decode()


def _hmac(key: str, data: bytes, digest: str) -> bytes:
    import hmac

    return hmac.digest(key.encode(), data, digest)


def reason(
    signature: str, *, body: bytes = BODY, url: str = URL, keys: tuple[str, ...] = KEYS, now: float = NOW
) -> str:
    try:
        verify(signature, body, url, keys, now)
    except BadSignature as error:
        return error.reason
    return "valid"


HS256 = {"alg": "HS256", "typ": "JWT"}


def test_a_token_made_by_hand_would_do() -> None:
    assert reason(by_hand(HS256, claims())) == "valid"


def test_what_is_signed_here_is_valid_here_and_says_what_it_is() -> None:
    found = verify(sign(CURRENT, URL, BODY, NOW, "jwt_7"), BODY, URL, KEYS, NOW)
    assert found.jti == "jwt_7"
    assert found.issued_at <= NOW < found.expires_at
    assert found.expires_at - found.issued_at == LIFETIME_SECONDS


def test_the_claims_are_those_of_the_protocol() -> None:
    said = jwt.decode(sign(CURRENT, URL, BODY, NOW, "jwt_7"), options={"verify_signature": False})
    assert set(said) == set(claims())
    assert (said["iss"], said["sub"], said["nbf"], said["jti"]) == ("Upstash", URL, 0, "jwt_7")
    assert said["body"] == body_hash(BODY) == claims()["body"]


@pytest.mark.parametrize("body", [b"", b"{}", "ü😀\r\n".encode()])
def test_the_receiver_of_the_sdk_accepts_what_is_signed_here(body: bytes) -> None:
    receiver = Receiver(current_signing_key=NEXT, next_signing_key=CURRENT)
    signature = sign(CURRENT, URL, body, time.time(), "jwt_1")
    receiver.verify(signature=signature, body=body.decode(), url=URL)
    with pytest.raises(SignatureError):
        receiver.verify(signature=signature, body=body.decode() + " ", url=URL)


def test_what_qstash_signs_is_accepted_with_either_key() -> None:
    assert reason(token(CURRENT)) == reason(token(NEXT)) == reason(token(CURRENT), keys=(CURRENT,)) == "valid"


def test_a_good_token_costs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [token(CURRENT), token(NEXT), sign(CURRENT, URL, BODY, NOW, "jwt_7")]
    monkeypatch.setattr(jwt, "decode", None)
    assert [reason(one) for one in tokens] == ["valid"] * 3


@pytest.mark.parametrize("header", [{"kid": "1"}, {"typ": "jwt"}])
def test_one_of_another_form_is_as_good(header: dict[str, Any]) -> None:
    assert reason(token(header=header)) == "valid"
    assert reason(token("sig_" + "c" * 28, header=header)) == "wrong_key"


def test_the_hash_may_come_padded_or_not() -> None:
    assert body_hash(BODY).endswith("=")
    assert reason(token(body=body_hash(BODY).rstrip("="))) == reason(token(body=body_hash(BODY))) == "valid"


def test_after_a_rotation_the_old_key_is_no_good() -> None:
    assert reason(token(CURRENT), keys=(NEXT, "sig_" + "c" * 28)) == "wrong_key"
    assert reason(token(CURRENT), keys=()) == "wrong_key"


@pytest.mark.parametrize("url", [URL + "&x=1", URL[:-1] + "2", URL.replace("https", "http"), URL.upper(), ""])
def test_another_url(url: str) -> None:
    assert reason(token(), url=url) == "wrong_url"


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"\n", BODY.replace(b"2", b"3"), b"", b"\xff" + BODY])
def test_a_body_changed_by_one_byte(body: bytes) -> None:
    assert reason(token(), body=body) == "wrong_body"


def test_times() -> None:
    lasts = 300 + LEEWAY_SECONDS
    assert [reason(token(), now=NOW + late) for late in (lasts, lasts + 1)] == ["valid", "expired"]
    for claim in ("nbf", "iat"):
        moved: list[dict[str, Any]] = [{claim: NOW + LEEWAY_SECONDS + more} for more in (0, 1)]
        early = [reason(token(**changed)) for changed in moved]
        assert early == ["valid", "not_yet"], claim


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value", [ABSENT, None, True, "1900000000", [], {}, float("nan"), float("inf"), float("-inf"), 10**400, -(10**400)]
)
def test_times_that_are_none(claim: str, value: Any) -> None:
    assert reason(by_hand(HS256, claims(**{claim: value}))) == "malformed"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"iss": ABSENT}, "wrong_issuer"),
        ({"iss": "upstash"}, "wrong_issuer"),
        ({"iss": ["Upstash"]}, "wrong_issuer"),
        ({"sub": ABSENT}, "wrong_url"),
        ({"sub": [URL]}, "wrong_url"),
        ({"sub": None}, "wrong_url"),
        ({"sub": "\ud800"}, "wrong_url"),
        ({"body": ABSENT}, "wrong_body"),
        ({"body": None}, "wrong_body"),
        ({"body": ""}, "wrong_body"),
        ({"body": 1}, "wrong_body"),
        ({"body": hashlib.sha256(BODY).hexdigest()}, "wrong_body"),
        ({"jti": ABSENT}, "malformed"),
        ({"jti": ""}, "malformed"),
        ({"jti": 7}, "malformed"),
        ({"jti": "x" * 129}, "malformed"),
        ({"jti": "a\nb"}, "malformed"),
        ({"jti": "\0"}, "malformed"),
        ({"jti": "\ud800"}, "malformed"),
    ],
)
def test_claims_that_are_missing_or_wrong(changed: dict[str, Any], expected: str) -> None:
    assert reason(by_hand(HS256, claims(**changed))) == expected


@pytest.mark.parametrize("odd", [".", "=", "+", "/", "!", " ", "\n", "\0", "é"])
@pytest.mark.parametrize("at", [0, 4, 51])
def test_what_is_no_base64url_is_no_token_though_it_is_signed(odd: str, at: int) -> None:
    head, said, _ = token().split(".")
    assert head == USUAL_HEAD
    signed = f"{head}.{said[:at]}{odd * 4}{said[at:]}"  # four: the padding stays right
    signature = base64.urlsafe_b64encode(_hmac(CURRENT, signed.encode(), "sha256")).decode().rstrip("=")
    assert reason(f"{signed}.{signature}") == "malformed"


@pytest.mark.parametrize(
    "signature",
    [
        by_hand({"alg": "none", "typ": "JWT"}, claims()),
        by_hand({"alg": "none"}, claims()).rpartition(".")[0] + ".",
        by_hand({"alg": "NoNe"}, claims()).rpartition(".")[0] + ".",
        by_hand({"alg": "HS512"}, claims(), digest="sha512"),
        by_hand({"alg": "HS384"}, claims(), digest="sha384"),
        by_hand({"alg": "RS256"}, claims()),
        by_hand({"alg": ["HS256"]}, claims()),
        by_hand({"typ": "JWT"}, claims()),
        by_hand({"alg": "HS256", "crit": ["exp"], "exp": 1}, claims()),
        by_hand([], claims()),
        by_hand(b"{", claims()),
        by_hand(HS256, []),
        by_hand(HS256, "text"),
        by_hand(HS256, b"{"),
        by_hand(HS256, b"\xff"),
        by_hand(HS256, b"[" * 5_000),
        by_hand(HS256, b'{"exp":' + b"9" * 5_000 + b"}"),
        "a.b",
        "a.b.c.d",
        "..",
        "é.é.é",
        "\ud800",
        "x" * 16_385,
        token()[:-1] + "\n.",
    ],
)
def test_what_is_no_token_of_this_kind(signature: str) -> None:
    assert reason(signature) in ("malformed", "wrong_key")


def test_no_token() -> None:
    assert reason("") == "missing"


def test_the_token_does_not_choose_its_key() -> None:
    header = {**HS256, "kid": "../../dev/null", "jku": "https://evil.test/", "jwk": {"k": "eA"}}
    assert reason(by_hand(header, claims(), key="x")) == "wrong_key"


@pytest.mark.parametrize("at", [0, 10, 50, -1, -20])
def test_a_token_changed_by_one_character(at: int) -> None:
    good = token()
    at %= len(good)
    bad = good[:at] + ("A" if good[at] != "A" else "Q") + good[at + 1 :]
    assert reason(bad) != "valid"
