"""Every setting, in one place: its variable, its default, what it means, what is refused.

Nothing else reads the environment. All wrong values are reported together, each by name and reason, because
a person fixing a deployment should not have to restart it once per mistake.
"""

import dataclasses
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server.dispatch.retry import BadExpression, parse_delay

SIGNING_KEY_CHARACTERS_MIN = 32  # HS256 wants 256 bits (RFC 7518, 3.2); QStash's own keys have 32 characters


class InvalidSettings(ValueError):
    """One or more settings cannot be used; `problems` holds one line for each, starting with its name."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _text(value: str) -> str:
    return value


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value) or not low <= float(value) <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def _url(*schemes: str) -> Callable[[str], str]:
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


def _base_url(value: str) -> str:
    parsed = _url("http", "https")(value)
    if urlsplit(parsed).query or urlsplit(parsed).fragment:
        raise ValueError("must not have a query or fragment")
    return parsed.rstrip("/")


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value

    return parse


def _pointer(value: str) -> str:
    if not re.fullmatch(r"(/([^~/]|~[01])*)+", value):
        raise ValueError("must be a JSON pointer such as /data/0/url")
    return value


def _expression(value: str) -> str:
    try:
        parse_delay(value)
    except BadExpression as error:
        raise ValueError(f"is not an expression over `retried`: {error}") from None
    return value


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{0,64}", value):
        raise ValueError("may hold at most 64 letters, digits and _ . : -")
    return value


def _origins(value: str) -> tuple[str, ...]:
    return tuple(_base_url(part.strip()) for part in value.split(",") if part.strip())


def _setting(env: str, default: Any, parse: Callable[[str], Any], doc: str, *, secret: bool = False) -> Any:
    return dataclasses.field(
        default=default, repr=not secret, metadata={"env": env, "parse": parse, "doc": doc, "secret": secret}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Build with `Settings.from_env()`; every field has its variable and its explanation in its metadata."""

    host: str = _setting("HOST", "127.0.0.1", _text, "Address the web process listens on.")
    port: int = _setting("PORT", 8000, _integer(0, 65535), "Port the web process listens on; 0 takes any.")
    public_url: str | None = _setting(
        "PUBLIC_URL",
        None,
        _base_url,
        "The address QStash reaches this server by; pictures of ours are shown below it.",
    )
    callback_url: str | None = _setting(
        "CALLBACK_URL",
        None,
        _base_url,
        "Base of the callback and progress URLs when it differs from PUBLIC_URL (a private network).",
    )
    database_url: str | None = _setting(
        "DATABASE_URL",
        None,
        _url("postgres", "postgresql"),
        "Postgres 15 or newer, or Supabase. Unset: `up` runs a private one.",
        secret=True,
    )
    database_connections: int = _setting(
        "DATABASE_CONNECTIONS", 10, _integer(2, 200), "Connections a process opens to Postgres at most."
    )
    redis_url: str | None = _setting(
        "REDIS_URL",
        None,
        _url("redis", "rediss", "unix"),
        "Redis or Valkey for the push channels. Unset: `up` runs a private one; else notices in Postgres are used.",
        secret=True,
    )
    redis_prefix: str = _setting(
        "REDIS_PREFIX", "", _prefix, "Put before every channel name, for several deployments on one Redis."
    )
    qstash_url: str | None = _setting(
        "QSTASH_URL",
        None,
        _base_url,
        "The QStash API. Unset: Upstash when QSTASH_TOKEN is set, else our own.",
    )
    qstash_token: str | None = _setting("QSTASH_TOKEN", None, _text, "Token of the QStash API.", secret=True)
    qstash_current_signing_key: str | None = _setting(
        "QSTASH_CURRENT_SIGNING_KEY", None, _text, "Key that callbacks are signed with.", secret=True
    )
    qstash_next_signing_key: str | None = _setting(
        "QSTASH_NEXT_SIGNING_KEY",
        None,
        _text,
        "Key that they will be signed with after a rotation.",
        secret=True,
    )
    dispatcher_host: str = _setting("DISPATCHER_HOST", "127.0.0.1", _text, "Address our dispatcher listens on.")
    dispatcher_port: int = _setting(
        "DISPATCHER_PORT",
        8080,
        _integer(0, 65535),
        "Port our dispatcher's QStash API listens on; 0 takes any.",
    )
    dispatcher_parallelism: int = _setting(
        "DISPATCHER_PARALLELISM",
        16,
        _integer(1, 10_000),
        "Deliveries a dispatcher process has under way at once.",
    )
    dispatcher_private_origins: tuple[str, ...] = _setting(
        "DISPATCHER_PRIVATE_ORIGINS",
        (),
        _origins,
        "Origins on a private network our dispatcher may deliver to, comma-separated; all others must be public.",
    )
    generator_url: str | None = _setting(
        "GENERATOR_URL",
        None,
        _url("http", "https"),
        "The HTTP image API that does the work. Unset: `up` runs the built-in one.",
    )
    generator_result: str | None = _setting(
        "GENERATOR_RESULT",
        None,
        _pointer,
        "JSON pointer to the picture's URL in its answer. Unset: the usual places (/result, /url, /data/0/url, …).",
    )
    generator_seconds: float = _setting(
        "GENERATOR_SECONDS", 4.0, _seconds(0, 600), "How long the built-in generator takes for a picture."
    )
    generator_timeout_seconds: float = _setting(
        "GENERATOR_TIMEOUT_SECONDS",
        300.0,
        _seconds(1, 7200),
        "How long one request to the generator may take.",
    )
    generator_retries: int = _setting(
        "GENERATOR_RETRIES", 3, _integer(0, 100), "Deliveries after the first that failed, for each attempt."
    )
    generator_retry_delay_ms: str = _setting(
        "GENERATOR_RETRY_DELAY",
        "1000 * pow(2, retried)",
        _expression,
        "Milliseconds before a retry, as a QStash expression over `retried` (0 at the first).",
    )
    task_deadline_seconds: float = _setting(
        "TASK_DEADLINE_SECONDS", 900.0, _seconds(1, 86_400), "How long a run may take before its task fails."
    )
    data_dir: Path = _setting(
        "DATA_DIR",
        Path(".taskbeam"),
        Path,
        "Folder of the pictures, and of everything `up` keeps.",
    )
    log_level: str = _setting(
        "LOG_LEVEL",
        "info",
        _choice("debug", "info", "warning", "error"),
        "The least severe line that is logged.",
    )
    log_format: str = _setting(
        "LOG_FORMAT", "json", _choice("json", "console"), "One JSON object a line, or a line for people."
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        """Read all settings from `env`; an empty value counts as unset. Raises InvalidSettings."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        for field in dataclasses.fields(cls):
            name, raw = field.metadata["env"], env.get(field.metadata["env"], "").strip()
            if not raw:
                continue
            try:
                values[field.name] = field.metadata["parse"](raw)
            except ValueError as error:
                shown = "" if field.metadata["secret"] or "@" in raw else f" (it is {raw[:80]!r})"
                problems.append(f"{name} {error}{shown}")
        settings = cls(**values)
        problems += _contradictions(settings)
        if problems:
            raise InvalidSettings(problems)
        return settings

    @property
    def callback_base(self) -> str:
        """The URL that callbacks and reports are sent below."""
        host = f"[{self.host.strip('[]')}]" if ":" in self.host else self.host
        return self.callback_url or self.public_url or f"http://{host}:{self.port}"

    @property
    def signing_keys(self) -> tuple[str, ...]:
        """The keys a callback may be signed with, current first."""
        return tuple(k for k in (self.qstash_current_signing_key, self.qstash_next_signing_key) if k)


def is_loopback(host: str) -> bool:
    """Whether a host name or literal address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def far_qstash_problems(settings: Settings) -> list[str]:
    """What is missing for a QStash on another machine (Upstash's): it has to reach us, and the generator."""
    host = urlsplit(settings.qstash_url).hostname or "" if settings.qstash_url else "qstash.upstash.io"
    if not settings.qstash_token or is_loopback(host):
        return []
    problems = []
    if settings.callback_url is None and settings.public_url is None:
        problems.append(f"PUBLIC_URL is needed: QStash at {host} has to reach this server (a tunnel will do)")
    if settings.generator_url is None:
        problems.append(f"GENERATOR_URL is needed: QStash at {host} cannot reach the built-in generator")
    return problems


# Published in the SDKs' documentation for local development: whoever knows them can forge a callback.
PUBLIC_DEVELOPMENT_SECRETS = frozenset(
    {
        "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=",
        "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
        "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
    }
)


def _contradictions(settings: Settings) -> list[str]:
    problems: list[str] = []
    if settings.qstash_token and not settings.qstash_current_signing_key:
        problems.append("QSTASH_CURRENT_SIGNING_KEY is needed with QSTASH_TOKEN, or no callback could be trusted")
    keys = {"CURRENT": settings.qstash_current_signing_key, "NEXT": settings.qstash_next_signing_key}
    problems += [
        f"QSTASH_{name}_SIGNING_KEY has fewer than {SIGNING_KEY_CHARACTERS_MIN} characters: it could be guessed"
        for name, key in keys.items()
        if key is not None and len(key) < SIGNING_KEY_CHARACTERS_MIN
    ]
    if settings.qstash_url and not settings.qstash_token:
        problems.append("QSTASH_TOKEN is needed with QSTASH_URL")
    public = {settings.qstash_token, *settings.signing_keys} & PUBLIC_DEVELOPMENT_SECRETS
    exposed = settings.public_url and not is_loopback(urlsplit(settings.public_url).hostname or "")
    if public and (exposed or not is_loopback(settings.host) or not is_loopback(settings.dispatcher_host)):
        problems.append("QSTASH_TOKEN or a signing key is the published development value: loopback only")
    if not is_loopback(settings.host):
        problems.append(
            f"HOST is {settings.host!r}, but without sign-in the server may listen on loopback only (127.0.0.1)"
        )
    return problems
