"""Delivers one message over HTTP, once: signed afresh, bounded in time and size, no redirects followed."""

import asyncio
import secrets
import time
from collections.abc import Collection
from urllib.parse import urlsplit, urlunsplit

import httpx
import msgspec

from server.dispatch.destination import Forbidden, origin_of, route_to
from server.dispatch.message import canonical
from server.dispatch.signature import sign

RESPONSE_BYTES_MAX = 16 * 1024 * 1024
CONNECT_SECONDS_MAX = 10.0
KEPT_CONNECTIONS_MAX = 100
# No status code tells these: the protocol's sources leave it open, so they are chosen here.
STATUS_UNREACHABLE = 0
STATUS_TIMEOUT = 504
# Of one connection only, or said by the dispatcher itself.
NOT_FORWARDED = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)


class Parcel(msgspec.Struct, frozen=True):
    """One delivery of a message; `retried` counts those before it."""

    id: str
    url: str
    method: str
    header: dict[str, list[str]]
    body: bytes
    timeout_seconds: float
    retried: int
    caller_ip: str


class Answer(msgspec.Struct, frozen=True):
    """What came back; headers as {"Name": ["value", …]}. `ours`: nobody answered, and the body says why."""

    status: int
    header: dict[str, list[str]] = {}
    body: bytes = b""
    ours: bool = False

    @property
    def delivered(self) -> bool:
        return 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """The receiver says that no retry will help."""
        return self.status == 489 and self.header.get("Upstash-Nonretryable-Error", [""])[0].lower() == "true"

    def low(self) -> dict[str, str]:
        """The headers by lower-case name, the first value of each."""
        return {name.lower(): values[0] for name, values in self.header.items() if values}


class Sender:
    """Keeps connections to the listed origins; to all others each delivery opens its own, to a checked address."""

    def __init__(self, signing_key: str, private_origins: Collection[str]) -> None:
        self._key = signing_key
        self._private = frozenset(map(origin_of, private_origins))
        # How many there are at once is the engine's business; waiting here would count as the receiver's time.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS_MAX)
        single = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS_MAX)
        self._near = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)
        self._far = httpx.AsyncClient(timeout=timeout, limits=single, trust_env=False)

    async def close(self) -> None:
        await self._near.aclose()
        await self._far.aclose()

    async def send(self, parcel: Parcel) -> Answer:
        """Deliver; what goes wrong on the way is an answer too."""
        try:
            async with asyncio.timeout(parcel.timeout_seconds):
                return await self._send(parcel)
        except Forbidden as error:
            header = {"Upstash-Nonretryable-Error": ["true"]}
            return Answer(489, header, f"{error}".encode(), ours=True)
        except (TimeoutError, httpx.TimeoutException):
            return Answer(STATUS_TIMEOUT, body=f"no answer in {parcel.timeout_seconds:g} seconds".encode(), ours=True)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            return Answer(STATUS_UNREACHABLE, body=f"{type(error).__name__}: {error}"[:500].encode(), ours=True)

    async def _send(self, parcel: Parcel) -> Answer:
        route = await route_to(parcel.url, self._private)
        parts = urlsplit(parcel.url)
        headers = self._headers(parcel)
        url, client, extensions = parcel.url, self._near, {}
        if route.address is not None:
            host = f"[{route.address}]" if ":" in route.address else route.address
            url = urlunsplit(parts._replace(netloc=host + (f":{parts.port}" if parts.port else "")))
            client, extensions = self._far, {"sni_hostname": route.host}
            headers.append((b"Host", parts.netloc.encode()))
        request = client.build_request(parcel.method, url, headers=headers, content=parcel.body, extensions=extensions)
        response = await client.send(request, stream=True)
        try:
            return await _read(response)
        finally:
            await response.aclose()

    def _headers(self, parcel: Parcel) -> list[tuple[bytes, bytes]]:
        own = {
            "User-Agent": "Upstash-QStash",
            "Upstash-Message-Id": parcel.id,
            "Upstash-Retried": str(parcel.retried),
            "Upstash-Caller-Ip": parcel.caller_ip,
            "Upstash-Signature": sign(self._key, parcel.url, parcel.body, time.time(), f"jwt_{secrets.token_hex(16)}"),
        }
        if "Accept-Encoding" not in parcel.header:
            own["Accept-Encoding"] = "identity"  # a compressed answer has no bound until it is unpacked
        forwarded = [
            (name, value)
            for name, values in parcel.header.items()
            if name.lower() not in NOT_FORWARDED
            for value in values
        ]
        return [(name.encode(), value.encode("latin-1")) for name, value in (*forwarded, *own.items())]


async def _read(response: httpx.Response) -> Answer:
    header: dict[str, list[str]] = {}
    for name, value in response.headers.multi_items():
        header.setdefault(canonical(name), []).append(value)
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > RESPONSE_BYTES_MAX:
            reason = f"the answer has more than {RESPONSE_BYTES_MAX} bytes"
            return Answer(STATUS_UNREACHABLE, header, reason.encode(), ours=True)
        chunks.append(chunk)
    return Answer(response.status_code, header, b"".join(chunks))
