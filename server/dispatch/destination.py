"""Which addresses a delivery may go to. Our own network is off limits but for the origins that are listed.

Everything else must resolve to public unicast addresses only, and the connection goes to the very address that
was checked, so that a second look-up cannot point elsewhere (DNS rebinding).
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

import msgspec

RESOLVE_SECONDS_MAX = 5.0
# ipaddress.is_global of Python 3.11 lets these pass, though they lead to many hosts or, translated, to private ones.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("224.0.0.0/4", "2001::/23", "2002::/16", "3fff::/20")))
# All that is given out for unicast (RFC 4291): translation, multicast, site-local and unassigned lie outside.
_UNICAST = ipaddress.ip_network("2000::/3")


class Forbidden(Exception):
    """This destination may not be called; the text says why."""


class Route(msgspec.Struct, frozen=True):
    """Where to connect to for a URL: the address that was checked, or None for a listed origin."""

    address: str | None
    host: str


def origin_of(url: str) -> str:
    """scheme://host:port, the default port left out. Raises ValueError."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port not in (None, default) else "")


def is_public(address: str) -> bool:
    """Whether a literal address is public unicast."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    if mapped is not None:
        parsed = mapped
    if parsed.version == 6 and parsed not in _UNICAST:
        return False
    return parsed.is_global and not any(parsed.version == net.version and parsed in net for net in _NOT_PUBLIC)


async def route_to(url: str, private_origins: Collection[str]) -> Route:
    """Check the destination now, at delivery. Raises Forbidden, or OSError when the name does not resolve."""
    try:
        origin, parts = origin_of(url), urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Forbidden("not a URL") from None
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None or not host:
        raise Forbidden("the destination carries credentials or no host")
    if origin in private_origins:
        return Route(None, host)
    async with asyncio.timeout(RESOLVE_SECONDS_MAX):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(info[4][0]) for info in found]
    if not addresses or not all(map(is_public, addresses)):
        raise Forbidden("the destination is not a public address and not among DISPATCHER_PRIVATE_ORIGINS")
    return Route(addresses[0], host)
