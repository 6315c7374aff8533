"""Access tokens in cookies: ours, and those in which @supabase/ssr keeps its session. Pure.

The package cuts what is longer than a cookie may be into `name.0`, `name.1`, …; together they are `base64-` and
base64url, or (older) JSON that was percent-encoded, of an object with `access_token`, or (older still) of an array that
begins with it.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

SECURE_NAME = "__Host-taskbeam"  # the prefix: only this host could have set it, over TLS (RFC 6265bis, 4.1.3.2)
NAME = "taskbeam"
# Browsers take no cookie whose name and value are longer (RFC 6265, 6.1, which asks for as much).
COOKIE_BYTES_MAX = 4_096
CHUNKS_MAX = 10
SESSION_CHARACTERS_MAX = CHUNKS_MAX * COOKIE_BYTES_MAX


def session_cookie(token: str, max_age: int, *, secure: bool) -> str:
    """The Set-Cookie header that keeps a token; with `max_age` 0 the one that takes it away."""
    name, flag = (SECURE_NAME, "; Secure") if secure else (NAME, "")
    return f"{name}={token}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Lax{flag}"


def fits_a_cookie(token: str) -> bool:
    return len(SECURE_NAME) + 1 + len(token) <= COOKIE_BYTES_MAX


def access_token(cookies: Mapping[str, str], *, secure: bool, supabase: str | None) -> str | None:
    """Our own cookie first, then that of the package where its name is known; None where there is neither."""
    own = cookies.get(SECURE_NAME if secure else NAME)
    if own:
        return own
    session = _joined(cookies, supabase) if supabase else None
    return _token_of(session) if session else None


def _joined(cookies: Mapping[str, str], name: str) -> str | None:
    whole = cookies.get(name)
    if whole:
        return whole if len(whole) <= SESSION_CHARACTERS_MAX else None
    chunks = []
    for number in range(CHUNKS_MAX):
        chunk = cookies.get(f"{name}.{number}")
        if not chunk:
            break
        chunks.append(chunk)
    joined = "".join(chunks)
    return joined if len(joined) <= SESSION_CHARACTERS_MAX else None


def _token_of(session: str) -> str | None:
    try:
        if session.startswith("base64-"):
            coded = session.removeprefix("base64-")
            text = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
        else:
            text = unquote(session).encode()
        told: Any = msgspec.json.decode(text)
    except (ValueError, binascii.Error, RecursionError, msgspec.MsgspecError):
        return None
    match told:
        case {"access_token": str(token)} | [str(token), *_]:
            return token
    return None
