"""Which settings do not go together: each problem is a line that begins with the setting's name. Pure."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.generators import contradictions as of_generator
from server.values import is_loopback

if TYPE_CHECKING:
    from server.settings import Settings

# HS256 wants 256 bits (RFC 7518, 3.2); QStash's own keys have 32 characters.
KEY_CHARACTERS_MIN = 32


def far_qstash_problems(settings: "Settings") -> list[str]:
    """What is missing for a QStash on another machine (Upstash's): it has to reach us, and the generator."""
    host = urlsplit(settings.qstash_url).hostname or "" if settings.qstash_url else "qstash.upstash.io"
    if not settings.qstash_token or is_loopback(host):
        return []
    problems = []
    if settings.callback_url is None and settings.public_url is None:
        problems.append(f"PUBLIC_URL is needed: QStash at {host} has to reach this server (a tunnel will do)")
    elif is_loopback(urlsplit(settings.callback_base).hostname or ""):
        name = "PUBLIC_URL" if settings.callback_url is None else "CALLBACK_URL"
        problems.append(f"{name} is an address of this machine: QStash at {host} cannot reach it (a tunnel will do)")
    if settings.generator_url is None:
        problems.append(f"GENERATOR_URL is needed: QStash at {host} cannot reach the built-in generator")
    return problems


# Published in the SDKs' documentation for local development: whoever knows them can forge a callback.
PUBLIC_DEVELOPMENT_SECRETS = frozenset(
    {
        "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=",
        "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
        "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
        "super-secret-jwt-token-with-at-least-32-characters-long",  # of a Supabase on the developer's machine
    }
)


def of_settings(settings: "Settings") -> list[str]:
    problems: list[str] = []
    if settings.qstash_token and not settings.qstash_current_signing_key:
        problems.append("QSTASH_CURRENT_SIGNING_KEY is needed with QSTASH_TOKEN, or no callback could be trusted")
    keys = {"CURRENT": settings.qstash_current_signing_key, "NEXT": settings.qstash_next_signing_key}
    problems += [
        f"QSTASH_{name}_SIGNING_KEY has fewer than {KEY_CHARACTERS_MIN} characters: it could be guessed"
        for name, key in keys.items()
        if key is not None and len(key) < KEY_CHARACTERS_MIN
    ]
    if settings.qstash_url and not settings.qstash_token:
        problems.append("QSTASH_TOKEN is needed with QSTASH_URL")
    public = {settings.qstash_token, *settings.signing_keys, settings.auth_secret} & PUBLIC_DEVELOPMENT_SECRETS
    exposed = settings.public_url and not is_loopback(urlsplit(settings.public_url).hostname or "")
    if public and (exposed or not is_loopback(settings.host) or not is_loopback(settings.dispatcher_host)):
        problems.append("QSTASH_TOKEN, a signing key or AUTH_SECRET is the published development value: loopback only")
    if not is_loopback(settings.host):
        if settings.auth_issuer is None:
            problems.append(
                f"HOST is {settings.host!r}, but without sign-in (AUTH_ISSUER) the server may listen on loopback only "
                "(127.0.0.1)"
            )
        elif settings.public_url is None:
            problems.append(
                f"PUBLIC_URL is needed with HOST {settings.host!r}: the address people and QStash reach this server by"
            )
    return problems


def of_sign_in(settings: "Settings") -> list[str]:
    problems = []
    keys = {"AUTH_SECRET": settings.auth_secret, "AUTH_OPERATOR_KEY": settings.auth_operator_key}
    problems += [
        f"{name} has fewer than {KEY_CHARACTERS_MIN} characters: it could be guessed"
        for name, key in keys.items()
        if key is not None and len(key) < KEY_CHARACTERS_MIN
    ]
    if settings.auth_issuer is None:
        given = {
            "AUTH_JWKS_URL": settings.auth_jwks_url,
            "AUTH_SECRET": settings.auth_secret,
            "AUTH_COOKIE": settings.auth_cookie,
            "AUTH_OPERATOR_KEY": settings.auth_operator_key,
            "ALLOWED_ORIGINS": settings.allowed_origins,
            "ALLOWED_HOSTS": settings.allowed_hosts,
        }
        problems += [
            f"AUTH_ISSUER is needed with {name}: without it there is no sign-in" for name, v in given.items() if v
        ]
        return problems
    keys_url = settings.auth_keys_url or "https://"
    if not keys_url.startswith("https://") and not is_loopback(urlsplit(keys_url).hostname or ""):
        problems.append(
            "AUTH_ISSUER does not begin with https://: its keys could be forged on the way (or set AUTH_SECRET)"
        )
    return problems


def of_generators(settings: "Settings") -> list[str]:
    verifiable = {
        "standard": bool(settings.webhook_secret_standard),
        "replicate": bool(settings.webhook_secret_replicate),
        "fal": True,
    }
    problems: list[str] = []
    for name, generator in settings.generator_by_name.items():
        problems += of_generator("GENERATOR_URL" if name is None else f"GENERATORS: {name}", generator, verifiable)
    return problems
