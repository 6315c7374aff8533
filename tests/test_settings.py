"""Holds the settings to saying everything that is wrong, at once and by name, and never a secret."""

import dataclasses
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.contradictions import PUBLIC_DEVELOPMENT_SECRETS, far_qstash_problems
from server.settings import InvalidSettings, Settings
from server.values import is_loopback

pytestmark = pytest.mark.pure

FIELDS = dataclasses.fields(Settings)
BY_ENV = {field.metadata["env"]: field for field in FIELDS}
# A value for each that is not its default.
GOOD = {
    "HOST": "localhost",
    "PORT": "9000",
    "PUBLIC_URL": "https://app.test",
    "CALLBACK_URL": "http://10.0.0.1:8000",
    "DATABASE_URL": "postgres://u:hunter2@db.test/x",
    "DATABASE_DIRECT_URL": "postgres://u:hunter2@direct.test/x",
    "DATABASE_POOLER": "transaction",
    "DATABASE_CONNECTIONS": "20",
    "WEB_PROCESSES": "3",
    "REDIS_URL": "redis://:hunter2@redis.test",
    "REDIS_PREFIX": "staging:",
    "STREAM_COALESCE_MS": "0",
    "ALLOWED_HOSTS": "web.internal:8000, [fd00::1]",
    "ALLOWED_ORIGINS": "https://app.test, http://localhost:3000",
    "AUTH_ISSUER": "https://project.supabase.co/auth/v1",
    "AUTH_JWKS_URL": "https://keys.test/jwks.json",
    "AUTH_SECRET": "hunter2hunter2hunter2hunter2hunter2",
    "AUTH_AUDIENCE": "app",
    "AUTH_COOKIE": "sb-project-auth-token",
    "AUTH_OPERATOR_ROLE": "admin",
    "AUTH_OPERATOR_KEY": "hunter2hunter2hunter2hunter2hunter3",
    "QSTASH_URL": "https://qstash.test",
    "QSTASH_TOKEN": "hunter2",
    "QSTASH_CURRENT_SIGNING_KEY": "sig_hunter2hunter2hunter2hunter2",
    "QSTASH_NEXT_SIGNING_KEY": "sig_hunter2hunter2hunter2_next00",
    "DISPATCHER_HOST": "127.0.0.2",
    "DISPATCHER_PORT": "9080",
    "DISPATCHER_PARALLELISM": "4",
    "DISPATCHER_PRIVATE_ORIGINS": "http://10.0.0.2:9000, http://gpu.test/",
    "GENERATOR_URL": "https://images.test/v1/generate?size=large&hook={webhookUrl}",
    "GENERATOR_BODY": '{"input":{"prompt":"{prompt}","key":"hunter2"}}',
    "GENERATOR_HEADERS": '{"Authorization":"Bearer hunter2"}',
    "GENERATOR_RESULT": "/data/0/a~1b",
    "GENERATOR_WEBHOOK": "replicate",
    "GENERATORS": '{"fast":{"url":"https://fast.test/","headers":{"X-Key":"hunter2"},"body":{"key":"hunter2"}}}',
    "WEBHOOK_SECRET_STANDARD": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx",
    "WEBHOOK_SECRET_REPLICATE": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "WEBHOOK_KEYS_FAL": "http://127.0.0.1:9/keys",
    "GENERATOR_SECONDS": "0.5",
    "GENERATOR_TIMEOUT_SECONDS": "60",
    "GENERATOR_RETRIES": "0",
    "GENERATOR_RETRY_DELAY": "1000",
    "TASK_DEADLINE_SECONDS": "60",
    "TASKS_KEPT_DAYS": "forever",
    "EVENTS_KEPT_DAYS": "0.5",
    "MESSAGES_KEPT_DAYS": "2",
    "DEAD_LETTERS_KEPT_DAYS": "36500",
    "DATA_DIR": "/var/lib/taskbeam",
    "LOG_LEVEL": "debug",
    "LOG_FORMAT": "console",
}
BAD = {
    "PORT": ["-1", "65536", "80a", "1.5", "٣", "0x50", "9" * 500],
    "PUBLIC_URL": ["app.test", "ftp://h", "http://", "http://h:x", "https://h/?q", "https://h/#f", "http://[::1"],
    "CALLBACK_URL": ["app.test", "https://h/?q"],
    "DATABASE_URL": ["mysql://db.test", "db.test", "postgres://h:x"],
    "DATABASE_DIRECT_URL": ["http://direct.test", "direct.test"],
    "DATABASE_POOLER": ["session", "Transaction"],
    "DATABASE_CONNECTIONS": ["1", "201", "many"],
    "WEB_PROCESSES": ["0", "257", "auto"],
    "TASKS_KEPT_DAYS": ["0", "-1", "36501", "never", "1d"],
    "REDIS_URL": ["http://redis.test", "redis.test", "redis+sentinel://redis.test"],
    "REDIS_PREFIX": ["a b", "a*", "é", "x" * 65, "a\nb"],
    "STREAM_COALESCE_MS": ["-1", "1001", "2.5", "20ms"],
    "ALLOWED_HOSTS": ["https://web.internal", "*", "*.internal", "a b", "web:8000/x"],
    "ALLOWED_ORIGINS": ["*", "app.test", "https://app.test/", "https://*.app.test", "https://a@app.test", "null"],
    "AUTH_ISSUER": ["project.supabase.co", "ftp://x", "https://u:p@h/"],
    "AUTH_JWKS_URL": ["http://keys.test/jwks.json", "keys.test"],
    "AUTH_COOKIE": ["a b", "a=b", "a;b", "é"],
    "QSTASH_URL": ["qstash.test", "redis://x"],
    "DISPATCHER_PORT": ["65536"],
    "DISPATCHER_PARALLELISM": ["0", "10001"],
    "DISPATCHER_PRIVATE_ORIGINS": ["http://ok.test,gpu.test"],
    "GENERATOR_URL": ["images.test", "file:///etc/passwd", "https:///path"],
    "GENERATOR_BODY": [
        "{prompt}",
        '"{prompt}"',
        "[]",
        '{"a":"{promt}"}',
        '{"a":"{params}"}',
        '{"a":"{params.a b}"}',
        '{"a":"{ prompt }"}',
        '{"a":"one { only"}',
        '{"a":["}"]}',
        '{"a":' * 100 + '"x"' + "}" * 100,
        '{"a":"\\ud800"}',
    ],
    "GENERATOR_HEADERS": [
        "Authorization: Bearer x",
        '["x"]',
        '{"X-Key":7}',
        '{"X Key":"x"}',
        '{"":"x"}',
        '{"X-Key":"a\\nX-Other: b"}',
        '{"X-Key":""}',
        '{"X-Key":" x"}',
        '{"X-Key":"ü"}',
        '{"X-Key":"a","x-key":"b"}',
        '{"Host":"evil.test"}',
        '{"content-type":"text/plain"}',
        '{"Upstash-Callback":"https://evil.test"}',
        '{"Taskbeam-Progress-Token":"x"}',
    ],
    "GENERATOR_WEBHOOK": ["Replicate", "stripe"],
    "GENERATORS": [
        "fast",
        "[]",
        '{"fast":"https://fast.test/"}',
        '{"fast":{}}',
        '{"fast":{"url":"fast.test"}}',
        '{"fast":{"url":"https://{prompt}.test/"}}',
        '{"fast":{"url":"https://fast.test/{webhookUrl}"}}',
        '{"fast":{"url":"https://fast.test/?{params.x}"}}',
        '{"fast":{"url":"https://fast.test/","headers":{"Host":"x"}}}',
        '{"fast":{"url":"https://fast.test/","body":{"a":"{x}"}}}',
        '{"fast":{"url":"https://fast.test/","body":"{prompt}"}}',
        '{"fast":{"url":"https://fast.test/","result":"url"}}',
        '{"fast":{"url":"https://fast.test/","webhook":"stripe"}}',
        '{"fast":{"url":"https://fast.test/","reslut":"/url"}}',
        '{"fast one":{"url":"https://fast.test/"}}',
        '{"":{"url":"https://fast.test/"}}',
    ],
    "WEBHOOK_SECRET_STANDARD": ["whsec_", "whsec_c2hvcnQ=", "hunter2 hunter2", "whsec_%%%%"],
    "WEBHOOK_SECRET_REPLICATE": ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD x"],
    "WEBHOOK_KEYS_FAL": ["http://rest.fal.ai/keys", "rest.fal.ai"],
    "GENERATOR_RESULT": ["url", "/a~2", "data.0.url"],
    "GENERATOR_SECONDS": ["-1", "601", "nan", "inf", "1e2", "soon"],
    "GENERATOR_TIMEOUT_SECONDS": ["0", "7201"],
    "GENERATOR_RETRIES": ["-1", "101"],
    "GENERATOR_RETRY_DELAY": ["soon", "1 +", "__import__('os')"],
    "TASK_DEADLINE_SECONDS": ["0", "86401"],
    "LOG_LEVEL": ["INFO", "verbose"],
    "LOG_FORMAT": ["xml"],
}


def problems(env: dict[str, str]) -> list[str]:
    try:
        Settings.from_env(env)
    except InvalidSettings as error:
        return error.problems
    return []


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_each_has_a_variable_and_an_explanation(field: "dataclasses.Field[object]") -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", field.metadata["env"])
    assert field.metadata["doc"].endswith("."), "a sentence"
    assert callable(field.metadata["parse"])
    assert field.repr is not field.metadata["secret"]
    looks_secret = re.search(r"token|key|password|secret|database.*_url|redis_url|body|headers|generators", field.name)
    published = field.name in ("webhook_keys_fal", "auth_jwks_url")
    assert field.metadata["secret"] == (bool(looks_secret) and not published)


def test_no_two_share_a_variable() -> None:
    assert len(BY_ENV) == len(FIELDS)


def test_nothing_set_gives_the_defaults_and_a_strange_variable_is_not_ours() -> None:
    assert Settings.from_env({"PATH": "/bin", "host": "10.0.0.1"}) == Settings()
    assert Settings.from_env(dict.fromkeys(BY_ENV, " ")) == Settings(), "empty counts as unset"


def test_every_variable_is_read() -> None:
    assert GOOD.keys() == BY_ENV.keys(), "a new setting: give it a value here, and wrong ones in BAD"
    read, default = Settings.from_env(GOOD), Settings()
    for field in FIELDS:
        assert getattr(read, field.name) != getattr(default, field.name), field.metadata["env"]
    assert (read.port, read.generator_seconds, read.data_dir) == (9000, 0.5, Path("/var/lib/taskbeam"))
    assert read.dispatcher_private_origins == ("http://10.0.0.2:9000", "http://gpu.test")
    assert read.signing_keys == ("sig_hunter2hunter2hunter2hunter2", "sig_hunter2hunter2hunter2_next00")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_wrong_value_is_refused_by_name(name: str, value: str) -> None:
    (problem,) = problems(GOOD | {name: value})
    assert problem.startswith(f"{name} ")
    assert "\n" not in problem
    assert len(problem) < 300


def test_all_wrong_values_are_reported_together() -> None:
    wrong = {name: values[0] for name, values in BAD.items()}
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_env(GOOD | wrong)
    assert [problem.split()[0] for problem in refusal.value.problems] == [env for env in BY_ENV if env in BAD]
    assert str(refusal.value) == "\n".join(refusal.value.problems)


def test_contradictions_are_reported_with_wrong_values() -> None:
    found = problems({"PORT": "x", "QSTASH_TOKEN": "t", "HOST": "0.0.0.0"})  # noqa: S104
    assert [problem.split()[0] for problem in found] == ["PORT", "QSTASH_CURRENT_SIGNING_KEY", "HOST"]


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        ({"QSTASH_TOKEN": "t"}, "QSTASH_CURRENT_SIGNING_KEY"),
        ({"QSTASH_URL": "https://q.test"}, "QSTASH_TOKEN"),
        ({"QSTASH_TOKEN": "t", "QSTASH_NEXT_SIGNING_KEY": "sig_" + "x" * 28}, "QSTASH_CURRENT_SIGNING_KEY"),
    ],
)
def test_what_is_needed_together(env: dict[str, str], missing: str) -> None:
    assert [problem.split()[0] for problem in problems(env)] == [missing]


REPLICATE = {"GENERATOR_WEBHOOK": "replicate", "WEBHOOK_SECRET_REPLICATE": GOOD["WEBHOOK_SECRET_REPLICATE"]}
CALLS_BACK = {"GENERATOR_URL": "https://g.test/", "GENERATOR_BODY": '{"hook":"{webhookUrl}","p":"{prompt}"}'}


@pytest.mark.parametrize(
    ("env", "first"),
    [
        (CALLS_BACK | {"GENERATOR_WEBHOOK": "standard"}, "WEBHOOK_SECRET_STANDARD"),
        (CALLS_BACK, "GENERATOR_URL"),
        ({"GENERATOR_URL": "https://g.test/?hook={webhookUrl}"}, "GENERATOR_URL"),
        (REPLICATE | {"GENERATOR_URL": "https://g.test/", "GENERATOR_BODY": '{"p":"{prompt}"}'}, "GENERATOR_URL"),
        ({"GENERATORS": '{"a":{"url":"https://g.test/?h={webhookUrl}","webhook":"replicate"}}'}, "WEBHOOK_SECRET_"),
        ({"GENERATORS": '{"a":{"url":"https://g.test/","webhook":"fal"}}'}, "GENERATORS: a "),
    ],
)
def test_a_webhook_is_told_and_can_be_trusted(env: dict[str, str], first: str) -> None:
    (problem,) = problems(env)
    assert problem.startswith(first)


def test_generators_by_name() -> None:
    found = Settings.from_env(GOOD).generator_by_name
    assert found.keys() == {None, "fast"}
    default, fast = found[None], found["fast"]
    assert (default.url, default.result) == (GOOD["GENERATOR_URL"], "/data/0/a~1b")
    assert (default.headers, default.webhook) == ((("Authorization", "Bearer hunter2"),), "replicate")
    assert (fast.url, fast.headers, fast.webhook) == ("https://fast.test/", (("X-Key", "hunter2"),), None)
    assert "hunter2" not in repr(found)
    assert Settings().generator_by_name == {}
    assert Settings.from_env(CALLS_BACK | REPLICATE).generator_by_name.keys() == {None}


def test_a_secret_of_a_webhook_may_be_padded_or_not() -> None:
    first, second = Settings.from_env(GOOD).webhook_secret_standard
    assert (first[:3], second[:3]) == (b"1\xf2\x90", b"1\xf2\x90")
    assert Settings.from_env({"WEBHOOK_SECRET_STANDARD": "whsec_AAAAAAAAAAAAAAAAAAAAAA"}).webhook_secret_standard == (
        bytes(16),
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "app.test", "localhost.evil.test"])  # noqa: S104
def test_without_sign_in_only_loopback(host: str) -> None:
    assert any(problem.startswith("HOST ") for problem in problems({"HOST": host}))


DEVELOPMENT = {
    "QSTASH_TOKEN": "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=",
    "QSTASH_CURRENT_SIGNING_KEY": "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
    "QSTASH_NEXT_SIGNING_KEY": "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
    "AUTH_SECRET": "super-secret-jwt-token-with-at-least-32-characters-long",
}


@pytest.mark.parametrize("name", DEVELOPMENT)
@pytest.mark.parametrize(
    "exposed",
    [{"PUBLIC_URL": "https://app.test"}, {"HOST": "0.0.0.0"}, {"DISPATCHER_HOST": "0.0.0.0"}],  # noqa: S104
)
def test_published_development_secrets_are_for_loopback_only(name: str, exposed: dict[str, str]) -> None:
    secrets = {"QSTASH_TOKEN": "t", "QSTASH_CURRENT_SIGNING_KEY": "sig_" + "x" * 28, name: DEVELOPMENT[name]}
    secrets["AUTH_ISSUER"] = "https://project.supabase.co/auth/v1"
    assert problems(secrets | {"PUBLIC_URL": "http://localhost:8000"}) == []
    found = problems(secrets | exposed)
    assert any("development" in problem for problem in found)
    assert DEVELOPMENT[name] not in "".join(found)


def test_these_are_they() -> None:
    assert set(DEVELOPMENT.values()) == PUBLIC_DEVELOPMENT_SECRETS


def test_no_secret_is_shown() -> None:
    secrets = {env for env, field in BY_ENV.items() if field.metadata["secret"]}
    assert "hunter2" not in repr(Settings.from_env(GOOD))
    wrong = {name: f"hunter2 {name}" for name in secrets} | {"DATABASE_URL": "mysql://u:hunter2@h"}
    found = problems(wrong | {"HOST": "0.0.0.0"})  # noqa: S104
    assert found
    assert "hunter2" not in "\n".join(found)


@pytest.mark.parametrize(
    "name", ["PUBLIC_URL", "CALLBACK_URL", "QSTASH_URL", "GENERATOR_URL", "DISPATCHER_PRIVATE_ORIGINS"]
)
def test_nor_one_that_stands_where_it_must_not(name: str) -> None:
    (problem,) = problems(GOOD | {name: "https://user:hunter2@h.test/"})
    assert problem.startswith(f"{name} must not carry a user name or password")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("env", "base"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"PORT": "9"}, "http://127.0.0.1:9"),
        ({"HOST": "::1"}, "http://[::1]:8000"),
        ({"PUBLIC_URL": "https://app.test/"}, "https://app.test"),
        ({"PUBLIC_URL": "https://app.test", "CALLBACK_URL": "http://10.0.0.1:8000"}, "http://10.0.0.1:8000"),
    ],
)
def test_where_callbacks_go(env: dict[str, str], base: str) -> None:
    found = Settings.from_env(env).callback_base
    assert found == base
    assert urlsplit(found).port != 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "10.0.0.1", "localhost.test", "127.0.0.1.evil.test", "2130706433", "app.test"],  # noqa: S104
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_key_that_could_be_guessed_is_refused() -> None:
    for name in ("QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"):
        (problem,) = problems({name: "sig_short"})
        assert problem.startswith(f"{name} has fewer than")
        assert "sig_short" not in problem


def test_a_qstash_on_another_machine_has_to_reach_us_and_the_generator() -> None:
    base = {"QSTASH_TOKEN": "t", "QSTASH_CURRENT_SIGNING_KEY": "sig_" + "x" * 28}
    for url, needed in (
        ({}, ["PUBLIC_URL", "GENERATOR_URL"]),
        ({"QSTASH_URL": "http://dispatcher.internal:8080"}, ["PUBLIC_URL", "GENERATOR_URL"]),
        ({"QSTASH_URL": "http://127.0.0.1:8080"}, []),
        ({"CALLBACK_URL": "http://web.internal", "GENERATOR_URL": "https://g.test/"}, []),
    ):
        found = far_qstash_problems(Settings.from_env(base | url))
        assert [problem.split()[0] for problem in found] == needed


SIGN_IN = {"AUTH_ISSUER": "https://project.supabase.co/auth/v1"}


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"HOST": "0.0.0.0"}, "HOST"),  # noqa: S104
        ({**SIGN_IN, "HOST": "0.0.0.0"}, "PUBLIC_URL"),  # noqa: S104
        ({"AUTH_SECRET": "x" * 32}, "AUTH_ISSUER"),
        ({"AUTH_JWKS_URL": "https://keys.test/"}, "AUTH_ISSUER"),
        ({"AUTH_COOKIE": "sb-x-auth-token"}, "AUTH_ISSUER"),
        ({"AUTH_OPERATOR_KEY": "x" * 32}, "AUTH_ISSUER"),
        ({"ALLOWED_ORIGINS": "https://app.test"}, "AUTH_ISSUER"),
        ({"ALLOWED_HOSTS": "web"}, "AUTH_ISSUER"),
        ({**SIGN_IN, "AUTH_SECRET": "x" * 31}, "AUTH_SECRET"),
        ({**SIGN_IN, "AUTH_OPERATOR_KEY": "x" * 31}, "AUTH_OPERATOR_KEY"),
        ({"AUTH_ISSUER": "http://project.test/auth/v1"}, "AUTH_ISSUER"),
    ],
    ids=str,
)
def test_what_does_not_go_together_with_sign_in(env: dict[str, str], name: str) -> None:
    (problem,) = problems(env)
    assert problem.startswith(f"{name} ")
    assert not any(value in problem for key, value in env.items() if BY_ENV[key].metadata["secret"])


def test_where_the_keys_of_the_tokens_are() -> None:
    url = "https://project.supabase.co/auth/v1/.well-known/jwks.json"
    assert Settings.from_env(SIGN_IN).auth_keys_url == url
    assert Settings.from_env({"AUTH_ISSUER": SIGN_IN["AUTH_ISSUER"] + "/"}).auth_keys_url == url
    assert Settings.from_env({**SIGN_IN, "AUTH_SECRET": "x" * 32}).auth_keys_url is None
    both = {**SIGN_IN, "AUTH_SECRET": "x" * 32, "AUTH_JWKS_URL": "https://keys.test/"}
    assert Settings.from_env(both).auth_keys_url == "https://keys.test/"
    assert Settings().auth_keys_url is None
    # On the developer's own machine.
    assert not problems({"AUTH_ISSUER": "http://127.0.0.1:54321/auth/v1"})
