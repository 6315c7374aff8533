"""Access tokens in cookies, ours and those of @supabase/ssr."""

import base64
import json
from urllib.parse import quote

import pytest

from server.identity.cookies import CHUNKS_MAX, access_token, fits_a_cookie, session_cookie

pytestmark = pytest.mark.pure

NAME = "sb-abc-auth-token"
SESSION = {"access_token": "a.b.c", "refresh_token": "secret", "user": {"email": "é@example.com"}}
CODED = "base64-" + base64.urlsafe_b64encode(json.dumps(SESSION).encode()).decode().rstrip("=")


def found(cookies: dict[str, str]) -> str | None:
    return access_token(cookies, secure=False, supabase=NAME)


def test_what_the_package_writes() -> None:
    assert found({NAME: CODED}) == "a.b.c"
    assert found({NAME: quote(json.dumps(SESSION))}) == "a.b.c"
    assert found({NAME: quote(json.dumps(["a.b.c", "secret", None]))}) == "a.b.c"
    chunks = {f"{NAME}.{i}": CODED[start : start + 20] for i, start in enumerate(range(0, len(CODED), 20))}
    assert len(chunks) <= CHUNKS_MAX
    assert found(chunks) == "a.b.c"
    # What was left over of a longer session is not read on beyond a gap.
    assert found({f"{NAME}.0": CODED, f"{NAME}.2": "x"}) == "a.b.c"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "base64-",
        "base64-!!!",
        "base64-" + "A" * 5,
        "base64-bnVsbA",
        "%ff",
        "[]",
        "{}",
        "[5]",
        '{"access_token":5}',
        "[" * 3000,
        "base64-" + base64.b64encode(b"\xff\xfe").decode(),
    ],
)
def test_what_is_none(value: str) -> None:
    assert found({NAME: value}) is None


def test_only_where_it_is_switched_on() -> None:
    assert access_token({NAME: CODED}, secure=False, supabase=None) is None
    assert found({"sb-other-auth-token": CODED}) is None


def test_our_own_comes_first_and_bears_its_prefix_where_it_is_secure() -> None:
    assert found({NAME: CODED, "taskbeam": "mine"}) == "mine"
    # Over TLS only the one that no other host can have set counts.
    assert access_token({"taskbeam": "planted"}, secure=True, supabase=None) is None
    assert access_token({"__Host-taskbeam": "mine"}, secure=True, supabase=None) == "mine"


def test_how_it_is_set() -> None:
    assert session_cookie("a.b.c", 60, secure=True) == (
        "__Host-taskbeam=a.b.c; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
    )
    assert session_cookie("", 0, secure=False) == "taskbeam=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"
    assert fits_a_cookie("x" * 4000)
    assert not fits_a_cookie("x" * 4090)


def test_too_many_pieces_are_not_put_together() -> None:
    assert found({NAME: "base64-" + "A" * 50_000}) is None
