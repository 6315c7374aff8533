"""Holds the check of webhooks to the published schemes: their own examples pass, whatever differs does not."""

import base64
import hashlib
import hmac
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.dispatch.signature import BadSignature
from server.dispatch.webhook_signature import PublicKeys, read_keys, verify_fal, verify_standard

pytestmark = pytest.mark.pure

# The vector that the libraries of Standard Webhooks are tested with.
SECRET = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
BODY = b'{"test": 2432232314}'
NOW = 1_614_265_330
VECTOR = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
OTHER = b"another secret of 24 byte"


def sign(webhook_id: str, timestamp: str, body: bytes, secret: bytes = SECRET, digest: str = "sha256") -> bytes:
    return hmac.new(secret, f"{webhook_id}.{timestamp}.".encode() + body, digest).digest()


def reason(
    headers: dict[str, str], body: bytes = BODY, now: float = NOW, secrets: tuple[bytes, ...] = (SECRET,)
) -> str:
    with pytest.raises(BadSignature) as refusal:
        verify_standard(headers, body, secrets, now)
    return refusal.value.reason


def test_the_published_example() -> None:
    assert verify_standard(VECTOR, BODY, (SECRET,), NOW) == VECTOR["webhook-id"]


def test_several_signatures_and_several_secrets() -> None:
    mine = VECTOR["webhook-signature"]
    asymmetric = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
    for given in (f"v1,AAAA {mine}", f"{mine} v1,AAAA", f"{asymmetric} {mine}", f"v2,x nonsense, {mine}"):
        assert verify_standard(VECTOR | {"webhook-signature": given}, BODY, (SECRET,), NOW)
    assert verify_standard(VECTOR, BODY, (OTHER, SECRET), NOW)
    assert reason(VECTOR, secrets=(OTHER,)) == "wrong_key"
    assert reason(VECTOR, secrets=()) == "wrong_key"
    assert reason(VECTOR | {"webhook-signature": " ".join(["v1,AAAA"] * 50 + [mine])}) == "wrong_key"


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_five_minutes_either_way(seconds: int) -> None:
    assert verify_standard(VECTOR, BODY, (SECRET,), NOW + seconds)


@pytest.mark.parametrize(("seconds", "why"), [(301, "expired"), (-301, "not_yet")])
def test_no_more(seconds: int, why: str) -> None:
    assert reason(VECTOR, now=NOW + seconds) == why


def signed(webhook_id: str = "msg_1", timestamp: str = str(NOW), body: bytes = BODY, **how: Any) -> dict[str, str]:
    mac = base64.b64encode(sign(webhook_id, timestamp, body, **how)).decode()
    return {"webhook-id": webhook_id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{mac}"}


def test_forged() -> None:
    mac = sign("msg_1", str(NOW), BODY)
    good = signed()
    assert verify_standard(good, BODY, (SECRET,), NOW) == "msg_1"
    for name in good:
        assert reason({key: value for key, value in good.items() if key != name}) == "missing"
        assert reason(good | {name: ""}) == "missing"
    for body in (BODY + b" ", BODY[:-1], b"", b'{"test":2432232314}'):
        assert reason(good, body) == "wrong_key"
    assert reason(signed(secret=OTHER)) == "wrong_key"
    assert reason(signed(digest="sha1")) == "wrong_key"
    for given in (
        base64.b64encode(mac).decode(),
        "v1," + mac.hex(),
        "v1," + mac.hex().upper(),
        "v0," + base64.b64encode(mac).decode(),
        "v1a," + base64.b64encode(mac).decode(),
        "v1," + base64.b64encode(mac).decode().rstrip("="),
        "v1,é",
        "v1,",
    ):
        assert reason(good | {"webhook-signature": given}) == "wrong_key", given
    assert reason(good | {"webhook-id": "msg_2"}) == "wrong_key"
    assert reason(good | {"webhook-timestamp": str(NOW + 1)}) == "wrong_key"


@pytest.mark.parametrize("timestamp", ["NaN", "inf", "-1", "1e9", f"{NOW}.0", f" {NOW}", "١٦١٤٢٦٥٣٣٠", "9" * 5000])
def test_no_time(timestamp: str) -> None:
    assert reason(signed(timestamp=timestamp)) == "malformed"


@pytest.mark.parametrize("webhook_id", ["a.b", "a b", "x" * 257, "ä"])
def test_no_id(webhook_id: str) -> None:
    assert reason(signed(webhook_id)) == "malformed"


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "1", "use": "sig"}


def keys(*those: Ed25519PrivateKey) -> PublicKeys:
    return read_keys(msgspec.json.encode({"keys": [jwk(key) for key in those]}))


def of_fal(body: bytes = BODY, key: Ed25519PrivateKey = KEY, **changed: str) -> dict[str, str]:
    said = {"request-id": "123e4567-e89b", "user-id": "github|42.x", "timestamp": str(NOW)}
    said |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [*said.values(), hashlib.sha256(body).hexdigest()]
    said["signature"] = key.sign("\n".join(lines).encode()).hex()
    return {f"x-fal-webhook-{name}": value for name, value in said.items()}


def test_fal() -> None:
    assert verify_fal(of_fal(), BODY, keys(KEY), NOW) == "123e4567-e89b"
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    assert verify_fal(of_fal(key=other), BODY, keys(KEY, other), NOW)
    for seconds in (-300, 300):
        assert verify_fal(of_fal(), BODY, keys(KEY), NOW + seconds)


def test_fal_forged() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    good = of_fal()
    cases: list[tuple[dict[str, str], bytes, float, str]] = [
        (of_fal(key=other), BODY, NOW, "wrong_key"),
        (good, BODY + b" ", NOW, "wrong_key"),
        (good, BODY, NOW + 301, "expired"),
        (good, BODY, NOW - 301, "not_yet"),
        (of_fal(timestamp="NaN"), BODY, NOW, "malformed"),
        (of_fal(user_id="a\nb"), BODY, NOW, "malformed"),
        (of_fal(request_id="a b"), BODY, NOW, "malformed"),
    ]
    for name in good:
        cases.append(({key: value for key, value in good.items() if key != name}, BODY, NOW, "missing"))
        if not name.endswith(("signature", "timestamp")):
            cases.append((good | {name: "another"}, BODY, NOW, "wrong_key"))
    signature = good["x-fal-webhook-signature"]
    for given in (signature.upper(), signature[:-2], signature + "00", "x" * 128, base64.b64encode(bytes(64)).decode()):
        cases.append((good | {"x-fal-webhook-signature": given}, BODY, NOW, "malformed"))
    cases.append((good | {"x-fal-webhook-signature": "0" * 128}, BODY, NOW, "wrong_key"))
    for headers, body, now, why in cases:
        with pytest.raises(BadSignature) as refusal:
            verify_fal(headers, body, keys(KEY), now)
        assert refusal.value.reason == why, headers


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":7}',
        b'{"keys":[]}',
        b'{"keys":[{"kty":"RSA","n":"x","e":"AQAB"}]}',
        b'{"keys":["x"]}',
    ]
    + [msgspec.json.encode({"keys": [jwk(KEY) | {"x": x}]}) for x in ("", "AAAA", "%")]
    + [msgspec.json.encode({"keys": [jwk(KEY) | {"crv": "X25519"}]})],
)
def test_no_keys(document: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        read_keys(document)
