"""Who may address this server at all, before anybody asks who is calling.

Any web site can make a visitor's browser send requests, with his cookies. Without sign-in only this machine counts: our
own host names and our own origin (any page can reach a loopback port), and behind a tunnel only the routes that bring
their own proof. With sign-in the names that this server was told count, and of pages those of its own origin and of the
origins that it was told.
"""

from collections.abc import Collection, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from server import errors
from server.peer import FORWARDED_ADDRESSES, is_local_address, is_local_host
from server.settings import Settings

# They carry a signature or a token of their own, so they may be called from anywhere.
SELF_PROVING = ("/api/generate/callback", "/api/generate/progress", "/api/generate/webhook/")
# Their names cannot be guessed, and PUBLIC_URL is said to show them.
PICTURES = "/results/"
# A platform asks by the address of a machine.
PROBES = ("/healthz", "/readyz")


class Admission(Protocol):
    def admit(self, path: str, headers: Mapping[str, str]) -> None:
        """`headers` by their names in lower case. Raises ForeignHost and ForeignOrigin."""


class OfThisMachine:
    """Without sign-in. `told_hosts` are in the addresses that QStash and generators were told, such as a tunnel's."""

    def __init__(self, told_hosts: Collection[str]) -> None:
        self._told_hosts = frozenset(told_hosts)

    def admit(self, path: str, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "").lower()
        if path.startswith(SELF_PROVING):
            if host in self._told_hosts or is_local_host(host):
                return
            raise errors.ForeignHost
        if path.startswith(PICTURES) and host in self._told_hosts and not is_local_host(host):
            return
        # The development server of an app on this machine may stand in front; no page can set this header for us.
        front = headers.get("x-forwarded-host", host).lower()
        if not is_local_host(host) or not is_local_host(front) or not _comes_from_here(headers):
            raise errors.ForeignHost("Without sign-in this server answers on its own machine, to localhost only")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"http://{front}"):
            raise errors.ForeignOrigin
        if path.startswith("/api/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise errors.ForeignOrigin


class SignedIn:
    """With sign-in. `origins` are those of pages that may call; a proxy on this machine may stand in front."""

    def __init__(self, hosts: Collection[str], origins: Collection[str], *, https: bool) -> None:
        self._hosts = frozenset(hosts)
        self._origins = frozenset(origins)
        self._schemes = ("https",) if https else ("http", "https")

    def admit(self, path: str, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "").lower()
        if path in PROBES:
            return
        if host not in self._hosts and not is_local_host(host):
            raise errors.ForeignHost("PUBLIC_URL and ALLOWED_HOSTS say to which names this server answers")
        if not path.startswith("/api/") or path.startswith(SELF_PROVING):
            return
        # No browser adds this to what a page of another origin sends without having been asked (CORS), and where it is
        # there no cookie is looked at.
        if "authorization" in headers:
            return
        origin = headers.get("origin", "").lower()
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if not origin:
            if elsewhere:
                raise errors.ForeignOrigin
        elif origin not in self._origins and (elsewhere or not self._is_own(origin, host, headers)):
            raise errors.ForeignOrigin("ALLOWED_ORIGINS says which pages elsewhere may call this server")

    def _is_own(self, origin: str, host: str, headers: Mapping[str, str]) -> bool:
        """Whether a page is of the host it asks, or of that of a proxy of the app in front, which no page can name.

        Where browsers come over TLS the page has to have come so too: anybody on the way could have written another.
        """
        scheme, _, name = origin.partition("://")
        if name not in (host, headers.get("x-forwarded-host", host).lower()):
            return False
        return scheme in self._schemes or (scheme == "http" and is_local_host(name))


def admission(settings: Settings) -> Admission:
    """By whether sign-in is configured."""
    told = {urlsplit(url).netloc.lower() for url in (settings.public_url, settings.callback_url) if url}
    if settings.auth_issuer is None:
        return OfThisMachine(told)
    own = {
        f"{parts.scheme}://{parts.netloc}".lower() for parts in [urlsplit(settings.public_url or "")] if parts.netloc
    }
    return SignedIn(
        told | set(settings.allowed_hosts), own | set(settings.allowed_origins), https=settings.serves_https
    )


def _comes_from_here(headers: Mapping[str, str]) -> bool:
    """Whether every address that a proxy says it asks for is of this machine."""
    given = [headers[name] for name in FORWARDED_ADDRESSES if name in headers]
    return all(is_local_address(address) for said in given for address in said.split(",") if address.strip())
