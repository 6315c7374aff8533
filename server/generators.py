"""The generators a deployment knows, as its settings describe them: where a job goes and what is made of the answer.

Pure. Whatever is wrong with a description is a ValueError that says so and never shows a header's value.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from server import values
from server.template import BadTemplate, Template, placeholders, read_template

Provider: TypeAlias = Literal["standard", "replicate", "fal"]
PROVIDERS: tuple[str, ...] = get_args(Provider)
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
SECRET_CHARACTERS_MIN = 8

_http = values.url("http", "https")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
_HEADER_VALUE = re.compile(r"[ -~]{1,4096}", re.ASCII)
# Said by QStash or by us, or of one connection only.
_TAKEN = re.compile(
    r"(upstash|taskbeam)-.*|connection|content-(length|type)|host|keep-alive|te|trailer|transfer-encoding|upgrade"
    r"|user-agent",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """One HTTP image API. `name` is None for the one that is used unless another is asked for.

    `url` may have {webhookUrl} in its query; `result` is a JSON pointer; `webhook` says who calls back, if anybody.
    """

    url: str
    name: str | None = None
    body: Template | None = dataclasses.field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)
    result: str | None = None
    webhook: Provider | None = None

    @property
    def tells_webhook(self) -> bool:
        """Whether its requests say where to call back."""
        return "webhookUrl" in placeholders(self.url) | (self.body.names if self.body else frozenset())

    def without_secrets(self, text: str) -> str:
        """The text without what its headers hold: an API may repeat a key that it refuses."""
        for _, value in self.headers:
            for secret in (value, *value.split()):
                if len(secret) >= SECRET_CHARACTERS_MIN:
                    text = text.replace(secret, "***")
        return text


Generators: TypeAlias = Mapping[str | None, Generator]


class _Described(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    body: dict[str, Any] | None = None
    headers: dict[str, str] = {}
    result: str | None = None
    webhook: Provider | None = None


def parse_url(value: str) -> str:
    """A generator's URL. Raises ValueError."""
    unusual = placeholders(value) - {"webhookUrl"}
    if unusual:
        raise ValueError(f"may have {{webhookUrl}} and no other placeholder, but has {{{min(unusual)}}}")
    if "{" in re.split(r"[?]", value, maxsplit=1)[0]:
        raise ValueError("may have {webhookUrl} in its query only")
    return _http(value)


def parse_headers(value: str) -> tuple[tuple[str, str], ...]:
    """Headers from a JSON object. Raises ValueError."""
    given = _object(value, '{"Authorization": "Bearer …"}')
    for name, header in given.items():
        if not isinstance(header, str):
            raise ValueError(f"has a value for {name[:80]!r} that is not text")
    return _headers(given)


def parse_generators(value: str) -> tuple[Generator, ...]:
    """All generators with a name, from a JSON object. Raises ValueError."""
    return tuple(_named(name, entry) for name, entry in _object(value, '{"fast": {"url": "https://…"}}').items())


def contradictions(setting: str, generator: Generator, secrets: Mapping[str, bool]) -> list[str]:
    """What does not fit together in one description; `secrets` says of each provider whether it can be verified."""
    found = []
    if generator.webhook is None and generator.tells_webhook:
        found.append(f"{setting} or its body has {{webhookUrl}}, but no webhook setting says who calls it")
    if generator.webhook is not None and not generator.tells_webhook:
        found.append(f"{setting} expects a webhook, but has {{webhookUrl}} neither in its URL nor in its body")
    if generator.webhook is not None and not secrets[generator.webhook]:
        found.append(f"WEBHOOK_SECRET_{generator.webhook.upper()} is needed, or no webhook could be trusted")
    return found


def _object(value: str, such_as: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(f"must be a JSON object such as {such_as}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"must be a JSON object such as {such_as}")
    return found


def _named(name: str, described: Any) -> Generator:
    if not NAME.fullmatch(name):
        raise ValueError("has a name that is not 1 to 64 letters, digits, - and _")
    try:
        entry = msgspec.convert(described, _Described)
    except msgspec.ValidationError as error:
        raise ValueError(f'{name}: must be such as {{"url": "https://…"}}: {error}') from None
    try:
        return Generator(
            name=name,
            url=parse_url(entry.url),
            body=None if entry.body is None else read_template(entry.body),
            headers=_headers(entry.headers),
            result=None if entry.result is None else values.pointer(entry.result),
            webhook=entry.webhook,
        )
    except BadTemplate as error:
        raise ValueError(f"{name}: the template {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _headers(given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    for name, value in given.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError("has a header whose name cannot be sent")
        if _TAKEN.fullmatch(name):
            raise ValueError(f"has the header {name}, which is not the operator's to set")
        if not _HEADER_VALUE.fullmatch(value) or value != value.strip():
            raise ValueError(f"has a value for {name} that cannot be sent")
    if len({name.lower() for name in given}) < len(given):
        raise ValueError("has a header twice")
    return tuple(given.items())
