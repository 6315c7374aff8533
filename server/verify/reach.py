"""Whether there is a Taskbeam at an address, and if not, what is: one line for a person."""

import socket
import ssl

import msgspec

from server.clients.origin import Origin
from server.clients.streaming import Answer, BrokenAnswer, fetch

ASK_SECONDS_MAX = 15.0
SHOWN_CHARACTERS_MAX = 200


class NotReached(Exception):
    """There is nothing to be verified there, or not for us; says why."""


class _Info(msgspec.Struct):
    title: str
    version: str


class _Description(msgspec.Struct):
    info: _Info


class _Page(msgspec.Struct):
    tasks: list[msgspec.Raw]


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


async def reach(origin: Origin) -> str:
    """The version of the server, "unknown" where its description is not passed on. Raises NotReached."""
    page = await ask(origin, "GET", "/api/generate?limit=1")
    if page.status != 200:
        raise NotReached(told(origin, page))
    try:
        msgspec.json.decode(page.body, type=_Page)
    except msgspec.MsgspecError:
        raise NotReached(_not_ours(origin, "/api/generate", page)) from None
    described = await ask(origin, "GET", "/openapi.json")
    try:
        return msgspec.json.decode(described.body, type=_Description).info.version
    except msgspec.MsgspecError:
        return "unknown"


async def ask(origin: Origin, method: str, target: str, body: bytes = b"") -> Answer:
    """As fetch(), with what goes wrong said in one line. Raises NotReached."""
    headers = {"Content-Type": "application/json"} if body else {}
    host, port = origin.address
    try:
        return await fetch(origin, method, target, headers=headers, body=body, seconds=ASK_SECONDS_MAX)
    except socket.gaierror as error:
        raise NotReached(f"the name {host} cannot be looked up: {error.strerror}") from None
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message
        raise NotReached(
            f"the certificate of {origin.host} is not trusted: {why} (SSL_CERT_FILE names further authorities)"
        ) from None
    except ssl.SSLError as error:
        raise NotReached(
            f"no TLS with {origin.host}: {error.reason or error} (does it speak plain http://, or has another name?)"
        ) from None
    except ConnectionRefusedError:
        raise NotReached(f"nothing listens at {host} port {port} (connection refused)") from None
    except TimeoutError:
        raise NotReached(f"no connection to {host} port {port} in time") from None
    except OSError as error:
        raise NotReached(f"no connection to {host} port {port}: {error.strerror or error}") from None
    except BrokenAnswer as error:
        raise NotReached(f"what listens at {host} port {port} does not answer in HTTP: {error}") from None


def told(origin: Origin, answer: Answer) -> str:
    """What an answer that is no success means for who asked."""
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem()
    said = f"HTTP {answer.status}" + (
        f" {problem.code}: {problem.detail}"[:SHOWN_CHARACTERS_MAX] if problem.code else ""
    )
    match answer.status:
        case 301 | 302 | 303 | 307 | 308:
            where = answer.headers.get("location", "elsewhere")[:SHOWN_CHARACTERS_MAX]
            return f"{origin.url} sends on to {where}: give the address that answers itself"
        case 401 if problem.code in ("access_token_expired", "invalid_access_token"):
            return f"refused, {said}: --token has to be a user's access token that is good for a while"
        case 401:
            return f"refused, {said}: who asks must be known (--token, or --user where a proxy asks for a password)"
        case 403:
            return f"refused, {said}: not for this caller"
        case 421:
            return f"refused, {said}: ask it by a name of its own machine, or through the proxy that knows the caller"
        case 404 if problem.code == "not_found":
            return f"refused, {said}: a Taskbeam, but not below {origin.url} (the path is a prefix, mostly none)"
        case _ if problem.code:
            return f"refused, {said}"
        case _:
            return _not_ours(origin, "/api/generate", answer)


def _not_ours(origin: Origin, path: str, answer: Answer) -> str:
    kind = answer.headers.get("content-type", "no type")[:SHOWN_CHARACTERS_MAX]
    return f"not a Taskbeam: {origin.url}{path} is answered with HTTP {answer.status}, {kind}"
