"""The forms that a setting's value may have: each takes the text and gives the value, or says what is wrong. Pure.

What is raised is a ValueError that reads on after the setting's name and never shows the value.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from server.dispatch.retry import BadExpression, parse_delay

WEBHOOK_SECRET_BYTES_MIN = 16


def text(value: str) -> str:
    return value


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value) or not low <= float(value) <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def days(value: str) -> float | None:
    """A number of days, None for `forever`. Not 0: it might be meant as either end."""
    if value == "forever":
        return None
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,6})?", value) or not 0.001 <= float(value) <= 36_500:
        raise ValueError("must be a number of days from 0.001 to 36500, or forever")
    return float(value)


def url(*schemes: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:
            raise ValueError("is not a URL") from None
        if parts.scheme not in schemes:
            raise ValueError(f"must begin with {' or '.join(s + '://' for s in schemes)}")
        if parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise ValueError("names no host")
            if parts.username is not None or parts.password is not None:
                raise ValueError("must not carry a user name or password")
        return value

    return parse


def base_url(value: str) -> str:
    parsed = url("http", "https")(value)
    if urlsplit(parsed).query or urlsplit(parsed).fragment:
        raise ValueError("must not have a query or fragment")
    return parsed.rstrip("/")


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value

    return parse


def pointer(value: str) -> str:
    if not re.fullmatch(r"(/([^~/]|~[01])*)+", value):
        raise ValueError("must be a JSON pointer such as /data/0/url")
    return value


def secrets(value: str) -> tuple[bytes, ...]:
    """Standard Webhooks secrets: base64 after whsec_, padded or not; several while they are exchanged."""
    found = []
    for secret in value.split():
        try:
            bare = secret.removeprefix("whsec_")
            found.append(base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True))
        except binascii.Error:
            found.append(b"")
    if not found or min(map(len, found)) < WEBHOOK_SECRET_BYTES_MIN:
        raise ValueError(f"must be whsec_ and at least {WEBHOOK_SECRET_BYTES_MIN} bytes in base64")
    return tuple(found)


def key_set(value: str) -> str:
    parsed = url("http", "https")(value)
    if not parsed.startswith("https:") and not is_loopback(urlsplit(parsed).hostname or ""):
        raise ValueError("must begin with https://, or anybody on the way could forge what is signed")
    return parsed


def expression(value: str) -> str:
    try:
        parse_delay(value)
    except BadExpression as error:
        raise ValueError(f"is not an expression over `retried`: {error}") from None
    return value


def prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{0,64}", value):
        raise ValueError("may hold at most 64 letters, digits and _ . : -")
    return value


def origins(value: str) -> tuple[str, ...]:
    return tuple(base_url(part.strip()) for part in value.split(",") if part.strip())


def page_origins(value: str) -> tuple[str, ...]:
    """Origins as browsers send them (RFC 6454, 6.2): nothing after host and port, and the usual port left out."""
    found = []
    for part in value.split(","):
        given = part.strip()
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname or given != f"{parts.scheme}://{parts.netloc}":
            raise ValueError("must be origins such as https://app.example.com, without a path and without *")
        if "@" in parts.netloc or "*" in parts.netloc:
            raise ValueError("must be origins such as https://app.example.com, without a path and without *")
        usual = {"http": ":80", "https": ":443"}[parts.scheme]
        found.append(given.lower().removesuffix(usual))
    return tuple(found)


def hosts(value: str) -> tuple[str, ...]:
    """Host headers: a name or address, with its port where it is not the usual one."""
    found = tuple(part.strip().lower() for part in value.split(","))
    if not all(re.fullmatch(r"([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?", host) for host in found):
        raise ValueError("must be host names such as web.internal:8000, comma-separated, without *")
    return found


def cookie_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", value):
        raise ValueError("must be a cookie's name: letters, digits and _ . -")
    return value


def is_loopback(host: str) -> bool:
    """Whether a host name or literal address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
