"""What REDIS_URL may be: any URL that redis-py takes, and one that names Sentinels, which it has none for. Pure.

    redis+sentinel://[user:password@]host:26379,host:26379/[database]?service=mymaster
        [&sentinel_username=…&sentinel_password=…][&option of redis-py…]

User, password, database and options are those of the master; rediss+sentinel:// takes TLS to it and to the Sentinels.
"""

import dataclasses
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

from server.values import url

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
SENTINELS_MAX = 16
OF_SENTINEL = ("service", "sentinel_username", "sentinel_password")

_URL = re.compile(r"(rediss?)\+sentinel://(?:([^/?#]*)@)?([^/?#@]*)(/[0-9]*)?(?:\?([^#]*))?")
_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")


@dataclasses.dataclass(frozen=True)
class Sentinels:
    """Who is to be asked where the master of `service` is: `urls`, for redis-py."""

    service: str
    urls: tuple[str, ...] = dataclasses.field(repr=False)
    _scheme: str
    _user: str = dataclasses.field(repr=False)
    _rest: str = dataclasses.field(repr=False)

    def master(self, host: str, port: int) -> str:
        """The URL of the master, which is at `host` and `port`, for redis-py."""
        place = f"[{host}]" if ":" in host else host
        return f"{self._scheme}://{self._user}{place}:{port}{self._rest}"


def parse(value: str) -> str:
    """The URL if it can be used. Raises ValueError, which never shows it."""
    if sentinels(value) is None:
        url(*SCHEMES)(value)
    return value


def sentinels(value: str) -> Sentinels | None:
    """None for a URL of another kind. Raises ValueError, which never shows it."""
    if not value.startswith(("redis+sentinel:", "rediss+sentinel:")):
        return None
    parts = _URL.fullmatch(value)
    if parts is None:
        raise ValueError("must be like redis+sentinel://user:password@host:26379,host:26379/0?service=mymaster")
    scheme, user, hosts, path, query = parts.groups(default="")
    options = [pair for pair in query.split("&") if pair]
    own = {name: unquote(text) for name, _, text in (pair.partition("=") for pair in options) if name in OF_SENTINEL}
    if not own.get("service"):
        raise ValueError("needs ?service= and the name that the Sentinels know the master by")
    if "sentinel_username" in own and not own.get("sentinel_password"):
        raise ValueError("has sentinel_username without sentinel_password")
    login = ""
    if "sentinel_password" in own:
        login = f"{quote(own.get('sentinel_username', ''), safe='')}:{quote(own['sentinel_password'], safe='')}@"
    theirs = _query(pair for pair in options if pair.startswith(("ssl_", "protocol=")))
    return Sentinels(
        own["service"],
        tuple(f"{scheme}://{login}{host}{theirs}" for host in _places(hosts)),
        scheme,
        f"{user}@" if user else "",
        path + _query(pair for pair in options if pair.partition("=")[0] not in OF_SENTINEL),
    )


def _query(pairs: Iterable[str]) -> str:
    joined = "&".join(pairs)
    return f"?{joined}" if joined else ""


def _places(hosts: str) -> list[str]:
    """host:port of each, with the usual port where none is given."""
    found = []
    for part in hosts.split(","):
        match = _HOST.fullmatch(part)
        if match is None or not 0 < int(match[2] or SENTINEL_PORT) < 65_536:
            raise ValueError("names a Sentinel that is no host:port")
        found.append(f"{match[1]}:{match[2] or SENTINEL_PORT}")
    if len(found) > SENTINELS_MAX:
        raise ValueError(f"names more than {SENTINELS_MAX} Sentinels")
    return found
