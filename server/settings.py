"""Every setting, in one place: its variable, its default, what it means, what is refused.

Nothing else reads the environment. All wrong values are reported together, each by name and reason, because
a person fixing a deployment should not have to restart it once per mistake.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server import contradictions, values
from server import database_url as database
from server import redis_url as redis
from server.generators import PROVIDERS, Generator, Provider, parse_generators, parse_headers, parse_url
from server.template import Template, parse_template


class InvalidSettings(ValueError):
    """One or more settings cannot be used; `problems` holds one line for each, starting with its name."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _setting(env: str, default: Any, parse: Callable[[str], Any], doc: str, *, secret: bool = False) -> Any:
    return dataclasses.field(
        default=default, repr=not secret, metadata={"env": env, "parse": parse, "doc": doc, "secret": secret}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Build with `Settings.from_env()`; every field has its variable and its explanation in its metadata."""

    host: str = _setting("HOST", "127.0.0.1", values.text, "Address the web process listens on.")
    port: int = _setting("PORT", 8000, values.integer(0, 65535), "Port the web process listens on; 0 takes any.")
    web_processes: int | None = _setting(
        "WEB_PROCESSES",
        None,
        values.integer(1, 256),
        "Web processes that `serve` runs behind its port. Unset: one a core; one in `up`.",
    )
    public_url: str | None = _setting(
        "PUBLIC_URL",
        None,
        values.base_url,
        "The address QStash reaches this server by; pictures of ours are shown below it.",
    )
    callback_url: str | None = _setting(
        "CALLBACK_URL",
        None,
        values.base_url,
        "Base of the callback and progress URLs when it differs from PUBLIC_URL (a private network).",
    )
    database_url: str | None = _setting(
        "DATABASE_URL",
        None,
        values.url("postgres", "postgresql"),
        "Postgres 15 or newer, or Supabase. Unset: `up` runs a private one.",
        secret=True,
    )
    database_direct_url: str | None = _setting(
        "DATABASE_DIRECT_URL",
        None,
        values.url("postgres", "postgresql"),
        "The same database past a transaction pooler, for notices and migrations. Unset: DATABASE_URL is direct.",
        secret=True,
    )
    database_pooler: database.Pooler = _setting(
        "DATABASE_POOLER",
        "auto",
        values.choice("auto", "transaction", "none"),
        "Whether DATABASE_URL is a transaction pooler's. auto: by its port 6543 or ?pgbouncer=true.",
    )
    database_connections: int = _setting(
        "DATABASE_CONNECTIONS", 10, values.integer(2, 200), "Connections a process opens to Postgres at most."
    )
    redis_url: str | None = _setting(
        "REDIS_URL",
        None,
        redis.parse,
        "Redis or Valkey for the push channels, or its Sentinels (redis+sentinel://host,host/0?service=name). "
        "Unset: `up` runs a private one; else notices in Postgres are used.",
        secret=True,
    )
    redis_prefix: str = _setting(
        "REDIS_PREFIX", "", values.prefix, "Put before every channel name, for several deployments on one Redis."
    )
    stream_coalesce_ms: int = _setting(
        "STREAM_COALESCE_MS",
        20,
        values.integer(0, 1000),
        "Milliseconds in which a stream is written to at most once, but for changes of status; 0: each change at once.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "ALLOWED_HOSTS",
        (),
        values.hosts,
        "Names besides those of PUBLIC_URL and CALLBACK_URL that this server answers to, with sign-in.",
    )
    allowed_origins: tuple[str, ...] = _setting(
        "ALLOWED_ORIGINS",
        (),
        values.page_origins,
        "Origins of pages elsewhere that may call this server from a browser (CORS, WebSocket), comma-separated.",
    )
    auth_issuer: str | None = _setting(
        "AUTH_ISSUER",
        None,
        values.url("http", "https"),
        "Who issues access tokens, as in their `iss`; turns sign-in on: https://<ref>.supabase.co/auth/v1 for one.",
    )
    auth_jwks_url: str | None = _setting(
        "AUTH_JWKS_URL",
        None,
        values.key_set,
        "Where its public keys are. Unset: below AUTH_ISSUER, at /.well-known/jwks.json, unless there is AUTH_SECRET.",
    )
    auth_secret: str | None = _setting(
        "AUTH_SECRET",
        None,
        values.text,
        "The secret that its tokens are signed with, where they are HS256.",
        secret=True,
    )
    auth_audience: str = _setting("AUTH_AUDIENCE", "authenticated", values.text, "The `aud` of its tokens.")
    auth_cookie: str | None = _setting(
        "AUTH_COOKIE",
        None,
        values.cookie_name,
        "The cookie in which @supabase/ssr keeps its session, such as sb-<ref>-auth-token. Unset: it is not read.",
    )
    auth_operator_role: str = _setting(
        "AUTH_OPERATOR_ROLE",
        "operator",
        values.text,
        "Who has it in `app_metadata` (`role` or `roles`) is an operator.",
    )
    auth_operator_key: str | None = _setting(
        "AUTH_OPERATOR_KEY",
        None,
        values.text,
        "A key that makes an operator of whoever sends it as a bearer token, such as Prometheus.",
        secret=True,
    )
    qstash_url: str | None = _setting(
        "QSTASH_URL",
        None,
        values.base_url,
        "The QStash API. Unset: Upstash when QSTASH_TOKEN is set, else our own.",
    )
    qstash_token: str | None = _setting("QSTASH_TOKEN", None, values.text, "Token of the QStash API.", secret=True)
    qstash_current_signing_key: str | None = _setting(
        "QSTASH_CURRENT_SIGNING_KEY", None, values.text, "Key that callbacks are signed with.", secret=True
    )
    qstash_next_signing_key: str | None = _setting(
        "QSTASH_NEXT_SIGNING_KEY",
        None,
        values.text,
        "Key that they will be signed with after a rotation.",
        secret=True,
    )
    dispatcher_host: str = _setting("DISPATCHER_HOST", "127.0.0.1", values.text, "Address our dispatcher listens on.")
    dispatcher_port: int = _setting(
        "DISPATCHER_PORT",
        8080,
        values.integer(0, 65535),
        "Port our dispatcher's QStash API listens on; 0 takes any.",
    )
    dispatcher_parallelism: int = _setting(
        "DISPATCHER_PARALLELISM",
        16,
        values.integer(1, 10_000),
        "Deliveries a dispatcher process has under way at once.",
    )
    dispatcher_private_origins: tuple[str, ...] = _setting(
        "DISPATCHER_PRIVATE_ORIGINS",
        (),
        values.origins,
        "Origins on a private network our dispatcher may deliver to, comma-separated; all others must be public.",
    )
    generator_url: str | None = _setting(
        "GENERATOR_URL",
        None,
        parse_url,
        "The HTTP image API that does the work. Unset: `up` runs the built-in one.",
    )
    generator_body: Template | None = _setting(
        "GENERATOR_BODY",
        None,
        parse_template,
        'JSON template of its request, such as {"input": {"prompt": "{prompt}"}}. Unset: the params and the prompt.',
        secret=True,
    )
    generator_headers: tuple[tuple[str, str], ...] = _setting(
        "GENERATOR_HEADERS",
        (),
        parse_headers,
        'JSON object of headers that its requests carry, such as {"Authorization": "Bearer …"}.',
        secret=True,
    )
    generator_result: str | None = _setting(
        "GENERATOR_RESULT",
        None,
        values.pointer,
        "JSON pointer to the picture in its answer. Unset: the usual places (/result, /url, /data/0/url, …).",
    )
    generator_webhook: Provider | None = _setting(
        "GENERATOR_WEBHOOK",
        None,
        values.choice(*PROVIDERS),
        "Who calls {webhookUrl} when the picture is there: standard, replicate or fal. Unset: its answer is the end.",
    )
    generators: tuple[Generator, ...] = _setting(
        "GENERATORS",
        (),
        parse_generators,
        'More generators, by the name a task asks for: {"fast": {"url", "body"?, "headers"?, "result"?, "webhook"?}}.',
        secret=True,
    )
    webhook_secret_standard: tuple[bytes, ...] = _setting(
        "WEBHOOK_SECRET_STANDARD",
        (),
        values.secrets,
        "Secret (whsec_…) of a Standard Webhooks sender; several, apart by a space, while they are exchanged.",
        secret=True,
    )
    webhook_secret_replicate: tuple[bytes, ...] = _setting(
        "WEBHOOK_SECRET_REPLICATE", (), values.secrets, "Secret (whsec_…) of your webhooks at Replicate.", secret=True
    )
    webhook_keys_fal: str = _setting(
        "WEBHOOK_KEYS_FAL",
        "https://rest.fal.ai/.well-known/jwks.json",
        values.key_set,
        "Where the keys are published that fal signs webhooks with.",
    )
    generator_seconds: float = _setting(
        "GENERATOR_SECONDS", 4.0, values.seconds(0, 600), "How long the built-in generator takes for a picture."
    )
    generator_timeout_seconds: float = _setting(
        "GENERATOR_TIMEOUT_SECONDS",
        300.0,
        values.seconds(1, 7200),
        "How long one request to the generator may take.",
    )
    generator_retries: int = _setting(
        "GENERATOR_RETRIES", 3, values.integer(0, 100), "Deliveries after the first that failed, for each attempt."
    )
    generator_retry_delay_ms: str = _setting(
        "GENERATOR_RETRY_DELAY",
        "1000 * pow(2, retried)",
        values.expression,
        "Milliseconds before a retry, as a QStash expression over `retried` (0 at the first).",
    )
    task_deadline_seconds: float = _setting(
        "TASK_DEADLINE_SECONDS", 900.0, values.seconds(1, 86_400), "How long a run may take before its task fails."
    )
    tasks_kept_days: float | None = _setting(
        "TASKS_KEPT_DAYS",
        30.0,
        values.days,
        "Days after its end that a task is deleted, with its picture; or `forever`. Only tasks accepted here go.",
    )
    events_kept_days: float | None = _setting(
        "EVENTS_KEPT_DAYS",
        7.0,
        values.days,
        "Days after a task's end that its log is cut down to the last event; or `forever`.",
    )
    messages_kept_days: float | None = _setting(
        "MESSAGES_KEPT_DAYS", 1.0, values.days, "Days that our dispatcher keeps a message after its end; or `forever`."
    )
    dead_letters_kept_days: float | None = _setting(
        "DEAD_LETTERS_KEPT_DAYS", 7.0, values.days, "The same for messages that could not be delivered."
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
        values.choice("debug", "info", "warning", "error"),
        "The least severe line that is logged.",
    )
    log_format: str = _setting(
        "LOG_FORMAT", "json", values.choice("json", "console"), "One JSON object a line, or a line for people."
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
                # A key may stand in the query of a URL.
                told, query, _ = raw.partition("?")
                shown = (
                    ""
                    if field.metadata["secret"] or "@" in raw
                    else f" (it is {told[:80] + query.replace('?', '?…')!r})"
                )
                problems.append(f"{name} {error}{shown}")
        settings = cls(**values)
        problems += contradictions.of_settings(settings)
        if not any(problem.startswith("DATABASE_") for problem in problems):
            problems += database.contradictions(
                settings.database_url, settings.database_direct_url, settings.database_pooler
            )
        # What fits together can be told when each is right by itself.
        if not any(problem.startswith(("GENERATOR", "WEBHOOK_")) for problem in problems):
            problems += contradictions.of_generators(settings)
        if not any(problem.startswith("AUTH_ISSUER") for problem in problems):
            problems += contradictions.of_sign_in(settings)
        if problems:
            raise InvalidSettings(problems)
        return settings

    @property
    def pooled(self) -> bool:
        """Whether DATABASE_URL leads through a transaction pooler."""
        return self.database_url is not None and database.is_pooled(self.database_url, self.database_pooler)

    @property
    def direct_url(self) -> str | None:
        """Where notices are heard and migrations run: a connection of their own to the database."""
        url = self.database_direct_url or self.database_url
        return url and database.for_driver(url)

    @property
    def callback_base(self) -> str:
        """The URL that callbacks and reports are sent below."""
        host = f"[{self.host.strip('[]')}]" if ":" in self.host else self.host
        return self.callback_url or self.public_url or f"http://{host}:{self.port}"

    @property
    def webhook_base(self) -> str:
        """The URL that webhooks are sent below: their senders are on the Internet, where QStash may be near."""
        return self.public_url or self.callback_base

    @property
    def generator_by_name(self) -> dict[str | None, Generator]:
        """All that a task may ask for; None is the one it gets without asking."""
        named: dict[str | None, Generator] = {generator.name: generator for generator in self.generators}
        if self.generator_url is None:
            return named
        default = Generator(
            url=self.generator_url,
            body=self.generator_body,
            headers=self.generator_headers,
            result=self.generator_result,
            webhook=self.generator_webhook,
        )
        return {None: default, **named}

    @property
    def auth_keys_url(self) -> str | None:
        """Where the public keys are that access tokens are signed with; None where a secret is all there is."""
        if self.auth_jwks_url is not None or self.auth_issuer is None or self.auth_secret is not None:
            return self.auth_jwks_url
        return f"{self.auth_issuer.rstrip('/')}/.well-known/jwks.json"

    @property
    def serves_https(self) -> bool:
        """Whether browsers reach this server over TLS."""
        return (self.public_url or "").startswith("https://")

    @property
    def signing_keys(self) -> tuple[str, ...]:
        """The keys a callback may be signed with, current first."""
        return tuple(k for k in (self.qstash_current_signing_key, self.qstash_next_signing_key) if k)
