"""Who may address a server with sign-in: by the name asked for, the page that asks, and what it brings."""

import pytest
from starlette.datastructures import Headers

from server.admission import admission
from server.errors import ForeignHost, ForeignOrigin
from server.settings import Settings

pytestmark = pytest.mark.pure

HOST, APP = "tasks.example.com", "https://app.example.com"
ENV = {"AUTH_ISSUER": "https://issuer.example.com", "PUBLIC_URL": f"https://{HOST}", "ALLOWED_ORIGINS": APP}
COOKIE = {"cookie": "__Host-taskbeam=a.b.c"}
FRONT = {"host": "localhost:8000", "x-forwarded-host": "front.example.com"}


def admitted(headers: dict[str, str], path: str = "/api/generate", **env: str) -> bool:
    try:
        admission(Settings.from_env({**ENV, **env})).admit(path, Headers({"host": HOST, **COOKIE, **headers}))
    except (ForeignHost, ForeignOrigin):
        return False
    return True


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": f"https://{HOST}"},
        {"origin": f"https://{HOST}", "sec-fetch-site": "same-origin"},
        {"origin": APP, "sec-fetch-site": "cross-site"},
        {**FRONT, "origin": "https://front.example.com", "sec-fetch-site": "same-origin"},
        {"host": "localhost:8000", "origin": "http://localhost:8000"},
        {"origin": "https://evil.test", "authorization": "Bearer x"},
    ],
    ids=str,
)
def test_let_in(headers: dict[str, str]) -> None:
    assert admitted(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.test"},
        {"origin": "null"},
        {"origin": "https://evil.test"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        # The page over http, where anybody on the way may write it.
        {"origin": f"http://{HOST}"},
        {"origin": f"http://{HOST}", "sec-fetch-site": "cross-site"},
        {**FRONT, "origin": "http://front.example.com"},
        {**FRONT, "origin": "https://front.example.com", "sec-fetch-site": "cross-site"},
        {"origin": f"ftp://{HOST}"},
        {"origin": f"https://{HOST}.evil.test"},
    ],
    ids=str,
)
def test_kept_out(headers: dict[str, str]) -> None:
    assert not admitted(headers)


def test_without_tls_its_own_pages_are_over_http() -> None:
    assert admitted({"origin": f"http://{HOST}"}, PUBLIC_URL=f"http://{HOST}")
    assert not admitted({"origin": "http://evil.test"}, PUBLIC_URL=f"http://{HOST}")


def test_probes_and_what_proves_itself() -> None:
    assert admitted({"host": "10.1.2.3:8000"}, "/healthz")
    assert admitted({"origin": "https://evil.test"}, "/api/generate/callback")
    assert not admitted({"host": "evil.test"}, "/api/generate/callback")
