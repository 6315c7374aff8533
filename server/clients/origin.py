"""Where a deployment is reached: directly, or behind TLS, a path prefix and what asks for a password or a token."""

import base64
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, urlsplit

# A Unix socket's path, or host and port.
Address: TypeAlias = Path | tuple[str, int]


class BadUrl(ValueError):
    """Not the address of a deployment, or not what goes with one; says why."""


@dataclass(frozen=True)
class Origin:
    """`host` is for the header of that name; `prefix` stands before every path and ends without a slash.

    `headers` go with every request; they may hold a secret, so they are not shown.
    """

    address: tuple[str, int]
    host: str
    prefix: str = ""
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def plain(cls, address: Address) -> "Origin":
        """A web process on this machine."""
        assert isinstance(address, tuple)  # noqa: S101  (web processes are reached over TCP)
        return cls(address, f"{address[0]}:{address[1]}")

    @classmethod
    def parse(cls, url: str, headers: Mapping[str, str]) -> "Origin":
        """From what a person types; Host and SNI are those of the URL. Raises BadUrl."""
        try:
            parts = urlsplit(url)
            port, name = parts.port, parts.hostname
        except ValueError as error:
            raise BadUrl(f"not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not name:
            raise BadUrl("the URL must begin with http:// or https:// and name a host")
        if parts.username is not None:
            raise BadUrl("a password does not belong in a URL: give it with --user")
        if parts.query or parts.fragment:
            raise BadUrl("the URL ends with its path: give neither a query nor a fragment")
        try:
            name = name.encode("ascii" if ":" in name else "idna").decode()
        except UnicodeError:
            raise BadUrl("the name of the host is none") from None
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        shown = f"[{name}]" if ":" in name else name
        host = shown if port is None else f"{shown}:{port}"
        prefix = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        return cls((name, port or (443 if tls else 80)), host, prefix, tls, headers)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}{self.prefix}"

    def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """An HTTP/1.1 request as it goes out."""
        length = {"Content-Length": str(len(body))} if body else {}
        told = {"Host": self.host, **self.headers, **length, **headers}
        lines = [f"{method} {self.prefix}{target} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


def authorization(token: str | None, user: str | None) -> dict[str, str]:
    """The header for a bearer's token, or for `name:password`. Raises BadUrl, which shows neither."""
    if token and user:
        raise BadUrl("there is one Authorization: give a token or a user, not both")
    if token:
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise BadUrl("a token has no spaces, and nothing that is not ASCII")
        return {"Authorization": f"Bearer {token}"}
    if user:
        if ":" not in user:
            raise BadUrl("--user is NAME:PASSWORD")
        return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    return {}
