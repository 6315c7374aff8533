"""An issuer of access tokens, as Supabase is one: tokens by secret or by key, and its keys at a URL."""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://project.supabase.test/auth/v1"
SECRET = "secret-of-the-tests-0123456789abcdef0123456789"
LIFETIME_SECONDS = 3600


def claims_of(user_id: str, **changes: Any) -> dict[str, Any]:
    """What an access token of Supabase says; a change to None leaves a claim out."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": user_id,
        "aud": "authenticated",
        "exp": now + LIFETIME_SECONDS,
        "iat": now,
        "role": "authenticated",
        "aal": "aal1",
        "session_id": "5b0e8f0e-7e6d-4f4e-9d0a-0d3a3c1e9f11",
        "email": "a@example.com",
        "app_metadata": {"provider": "email"},
        "user_metadata": {},
        "is_anonymous": False,
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def by_secret(claims: dict[str, Any], secret: str = SECRET, **headers: Any) -> str:
    return jwt.encode(claims, secret, algorithm="HS256", headers=headers or None)


@dataclass
class Person:
    """A user and his requests; sign-in by the secret."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def token(self, **changes: Any) -> str:
        return by_secret(claims_of(self.id, **changes))

    def headers(self, **changes: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(**changes)}"}


class Key:
    """A key pair of an issuer, by algorithm."""

    def __init__(self, algorithm: str, kid: str) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self._private: Any
        if algorithm == "RS256":
            self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            described: Any = RSAAlgorithm.to_jwk(self._private.public_key(), as_dict=True)
        elif algorithm == "ES256":
            self._private = ec.generate_private_key(ec.SECP256R1())
            described = ECAlgorithm.to_jwk(self._private.public_key(), as_dict=True)
        else:
            self._private = ed25519.Ed25519PrivateKey.generate()
            described = OKPAlgorithm.to_jwk(self._private.public_key(), as_dict=True)
        self.described = {**described, "kid": kid, "alg": algorithm, "use": "sig"}

    @property
    def public(self) -> Any:
        return self._private.public_key()

    def sign(self, claims: dict[str, Any], **headers: Any) -> str:
        return jwt.encode(claims, self._private, algorithm=self.algorithm, headers={"kid": self.kid, **headers})


def key_set(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.described for key in keys]}).encode()
