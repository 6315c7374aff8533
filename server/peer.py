"""Who is at the other end of a request: this machine itself, or somebody a proxy on it asks for."""

import re
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from server.values import is_loopback

# A proxy or tunnel may rewrite Host to ours, but it says for whom it asks.
FORWARDED_ADDRESSES = ("x-forwarded-for", "x-real-ip", "cf-connecting-ip", "forwarded")


# The same few hosts and addresses are asked about with each request, and to parse one costs more than the rest of it.
@lru_cache(maxsize=128)
def is_local_host(host: str) -> bool:
    """Whether a Host header names this machine. No name server can bend a literal address, so every one will do."""
    return is_loopback(re.sub(r":[0-9]{1,5}$", "", host))


@lru_cache(maxsize=128)
def is_local_address(address: str) -> bool:
    return is_loopback(address.strip().removeprefix("::ffff:"))


def is_of_this_machine(request: HTTPConnection) -> bool:
    """Whether a process on this machine asks for itself: not through a proxy, nor a page whose name was bent to us."""
    headers: Headers = request.headers
    if request.client is None or not is_local_address(request.client.host):
        return False
    if any(name in headers for name in (*FORWARDED_ADDRESSES, "x-forwarded-host", "via")):
        return False
    return is_local_host(headers.get("host", ""))
