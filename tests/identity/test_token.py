"""Access tokens: what is accepted, and every way to be refused, each with its reason."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from server.identity.token import REASONS, BadAccessToken, KeySet, Rules, needs_keys, read_key_set, verify
from server.metrics import REFUSALS
from tests.identity.tokens import ISSUER, SECRET, Key, by_secret, claims_of, key_set

pytestmark = pytest.mark.pure

A = "11111111-1111-4111-8111-111111111111"
RULES = Rules(issuer=ISSUER, audience="authenticated", secret=SECRET, operator_role="operator")
ES, OKP, RSA = Key("ES256", "es"), Key("EdDSA", "okp"), Key("RS256", "rs")
KEYS = read_key_set(key_set(ES, OKP, RSA))


def refusal(token: str, rules: Rules = RULES, keys: KeySet | None = KEYS) -> str:
    with pytest.raises(BadAccessToken) as refused:
        verify(token, rules, keys, time.time())
    return refused.value.reason


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("key", [ES, OKP, RSA], ids=lambda key: key.algorithm)
def test_signed_with_a_published_key(key: Key) -> None:
    token = key.sign(claims_of(A))
    assert needs_keys(token, RULES)
    caller = verify(token, RULES, KEYS, time.time())
    assert caller.user_id == A
    assert not caller.operator
    assert json.loads(caller.claims)["email"] == "a@example.com"
    assert caller.expires_at == pytest.approx(time.time() + 3600, abs=5)


def test_signed_with_the_secret() -> None:
    token = by_secret(claims_of(A))
    assert not needs_keys(token, RULES)
    assert verify(token, RULES, None, time.time()).user_id == A


def test_without_a_kid_the_first_key_of_the_algorithm_is_meant() -> None:
    token = jwt.encode(claims_of(A), ES._private, algorithm="ES256")
    assert verify(token, RULES, KEYS, time.time()).user_id == A


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": None}, "incomplete"),
        ({"iat": None}, "incomplete"),
        ({"sub": None}, "incomplete"),
        ({"aud": None}, "incomplete"),
        ({"iss": None}, "incomplete"),
        ({"exp": int(time.time()) - 31}, "expired"),
        ({"iat": int(time.time()) + 600}, "not_yet"),
        ({"nbf": int(time.time()) + 600}, "not_yet"),
        ({"aud": "anon"}, "wrong_audience"),
        ({"iss": "https://other.supabase.test/auth/v1"}, "wrong_issuer"),
        ({"iss": ISSUER + "/"}, "wrong_issuer"),
        ({"sub": "admin"}, "wrong_subject"),
        ({"sub": f"{A}'; drop table users"}, "wrong_subject"),
        ({"role": "service_role"}, "wrong_role"),
        ({"role": "anon"}, "wrong_role"),
        ({"role": None}, "wrong_role"),
        ({"is_anonymous": True}, "anonymous"),
        ({"exp": "tomorrow"}, "malformed"),
        ({"exp": 10**20}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"iat": -1}, "malformed"),
        ({"email": "a\x00b"}, "malformed"),
        ({"email": "\ud800"}, "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),  # without the time: collected alike by all
)
def test_refused_for_what_it_says(changes: dict[str, Any], reason: str) -> None:
    claims = claims_of(A, **changes)
    assert refusal(by_secret(claims)) == reason
    assert refusal(ES.sign(claims)) == reason


def test_leeway_is_for_clocks_only() -> None:
    now = int(time.time())
    for changes in ({"exp": now - 25}, {"iat": now + 25}, {"nbf": now + 25}):
        assert verify(by_secret(claims_of(A, **changes)), RULES, None, now).user_id == A


def test_an_audience_may_be_one_of_several() -> None:
    token = by_secret(claims_of(A, aud=["other", "authenticated"]))
    assert verify(token, RULES, None, time.time()).user_id == A


def test_algorithms_are_ours_to_choose() -> None:
    claims = claims_of(A)
    public = ES.public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    confused = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'es'})}.{part(claims)}"
    mac = base64.urlsafe_b64encode(hmac.digest(public, confused.encode(), hashlib.sha256)).decode().rstrip("=")
    with_public_key = f"{confused}.{mac}"
    assert refusal(with_public_key) == "wrong_key"
    assert refusal(with_public_key, Rules(ISSUER, "authenticated", None, "operator")) == "wrong_algorithm"
    for alg in ("none", "NoNe", "HS512", "ES384", "", None, 5):
        assert refusal(f"{part({'alg': alg, 'kid': 'es'})}.{part(claims)}.") in ("wrong_algorithm", "malformed")
    # A key of one kind verifies nothing that says to be of another.
    assert refusal(ES.sign(claims, kid="rs")) == "unknown_key"


def test_what_a_header_names_is_not_followed() -> None:
    other = Key("ES256", "other")
    for headers in (
        {"jwk": other.described},
        {"jku": "https://evil.test/jwks.json"},
        {"x5u": "https://evil.test/x5u"},
        {"kid": "../../dev/null"},
        {"kid": "' or 1=1 --"},
    ):
        assert refusal(other.sign(claims_of(A), **headers)) in ("unknown_key", "wrong_key")
    assert refusal(ES.sign(claims_of(A), crit=["exp"])) == "malformed"


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "." * 2, "x" * 20_000, "[].{}.x"])
def test_no_token_at_all(token: str) -> None:
    assert refusal(token) == "malformed"


def test_changed_on_the_way() -> None:
    head, body, signature = ES.sign(claims_of(A)).split(".")
    forged = part(claims_of(str(uuid.uuid4())))
    assert refusal(f"{head}.{forged}.{signature}") == "wrong_key"
    assert refusal(f"{head}.{body}.{signature[:-4]}AAAA") == "wrong_key"
    assert refusal(by_secret(claims_of(A), secret=SECRET + "x")) == "wrong_key"


def test_operators_are_made_by_what_a_user_cannot_write() -> None:
    def operator(**changes: Any) -> bool:
        return verify(by_secret(claims_of(A, **changes)), RULES, None, time.time()).operator

    assert operator(app_metadata={"role": "operator"})
    assert operator(app_metadata={"roles": ["editor", "operator"]})
    assert not operator(user_metadata={"role": "operator", "roles": ["operator"]})
    assert not operator(app_metadata={"role": "operators"})
    assert not operator(app_metadata=["operator"])
    assert not operator(app_metadata={"roles": "operator"})


def test_a_sub_is_compared_as_postgres_writes_it() -> None:
    caller = verify(by_secret(claims_of(A.upper())), RULES, None, time.time())
    assert caller.user_id == A
    assert json.loads(caller.claims)["sub"] == A


def test_of_a_key_set_what_is_usable_is_used() -> None:
    mixed = json.dumps(
        {
            "keys": [
                {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "secret"},
                {**RSA.described, "use": "enc", "kid": "enc"},
                {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
                {"kty": "?"},
                {**OKP.described, "alg": "none", "kid": "none"},
                {**OKP.described, "alg": 5, "kid": "number"},
                "no key",
                ES.described,
            ]
        }
    ).encode()
    assert [key.key_id for key in read_key_set(mixed).keys] == ["es"]
    assert read_key_set(b'{"keys":[]}').keys == ()
    for broken in (b"", b"[]", b'{"keys":5}', b"\xff", b"<html>", b"[" * 100_000):
        with pytest.raises(ValueError, match="key set"):
            read_key_set(broken)


def test_every_reason_is_counted_and_said() -> None:
    assert set(REFUSALS) == {"missing", "ticket", *REASONS}
