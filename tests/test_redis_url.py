"""REDIS_URL: which forms there are, and what becomes of one that names Sentinels."""

import pytest
from redis.asyncio.connection import parse_url

from server import redis_url
from server.redis_url import SENTINELS_MAX, sentinels
from server.settings import InvalidSettings, Settings

pytestmark = pytest.mark.pure

FULL = (
    "redis+sentinel://alice:hunter2%40@one.test:5000,two.test,[::1]:7/3?service=my%20master"
    "&sentinel_username=s%2Fa&sentinel_password=hunter2%3A&client_name=tb&protocol=2"
)


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis.test",
        "redis://:hunter2@redis.test:6380/1?protocol=3&health_check_interval=5",
        "rediss://alice:hunter2@redis.test?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2&password=hunter2",
        "unix://alice:hunter2@/run/redis.sock",
        "redis://[::1]:6379",
        "redis+sentinel://one.test?service=mymaster",
        "rediss+sentinel://:hunter2@one.test:1,two.test:2/?service=m&ssl_ca_certs=/ca.pem",
        FULL,
    ],
)
def test_these_can_be_used(url: str) -> None:
    assert redis_url.parse(url) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://hunter2.test", "must begin with redis:// or rediss:// or unix:// or redis+sentinel:// or rediss+sent"),
        ("redis://hunter2:x", "is not a URL"),
        ("redis+sentinel://hunter2", "needs ?service= and the name"),
        ("redis+sentinel://hunter2?service=", "needs ?service= and the name"),
        ("redis+sentinel://?service=hunter2", "names a Sentinel that is no host:port"),
        ("redis+sentinel://a.test,,b.test?service=hunter2", "names a Sentinel that is no host:port"),
        ("redis+sentinel://a.test:0?service=hunter2", "names a Sentinel that is no host:port"),
        ("redis+sentinel://a.test:65536?service=hunter2", "names a Sentinel that is no host:port"),
        ("redis+sentinel://a b?service=hunter2", "names a Sentinel that is no host:port"),
        ("redis+sentinel://a.test/hunter2?service=m", "must be like redis+sentinel://"),
        ("redis+sentinel:a.test?service=hunter2", "must be like redis+sentinel://"),
        ("redis+sentinel://a.test?service=m#hunter2", "must be like redis+sentinel://"),
        ("redis+sentinel://a.test?service=m&sentinel_username=hunter2", "has sentinel_username without"),
        ("redis+sentinel://" + "a.test," * SENTINELS_MAX + "a.test?service=hunter2", "names more than 16 Sentinels"),
    ],
)
def test_these_cannot_and_it_is_said_why_without_showing_them(url: str, reason: str) -> None:
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_env({"REDIS_URL": url})
    (problem,) = refusal.value.problems
    assert problem.startswith(f"REDIS_URL {reason}")
    assert "hunter2" not in problem


def test_the_master_is_asked_for_with_his_own_password_and_options() -> None:
    asked = sentinels(FULL)
    assert asked is not None
    assert asked.service == "my master"
    wanted = {"host": "10.0.0.7", "port": 6379, "db": 3, "username": "alice", "password": "hunter2@"}
    options = {"client_name": "tb", "protocol": 2}
    assert parse_url(asked.master("10.0.0.7", 6379)) == {**wanted, **options}
    assert parse_url(asked.master("fe80::1", 6379))["host"] == "fe80::1"
    assert "hunter2" not in repr(asked)


def test_the_sentinels_are_asked_with_theirs() -> None:
    asked = sentinels(FULL)
    assert asked is not None
    login = {"username": "s/a", "password": "hunter2:", "protocol": 2}
    places = [("one.test", 5000), ("two.test", 26379), ("::1", 7)]
    assert [parse_url(url) for url in asked.urls] == [{"host": h, "port": p, **login} for h, p in places]


def test_with_tls_to_both() -> None:
    asked = sentinels("rediss+sentinel://one.test?service=m&ssl_ca_certs=/ca.pem&ssl_check_hostname=false&db=2")
    assert asked is not None
    for url in (*asked.urls, asked.master("10.0.0.7", 6379)):
        options = parse_url(url)
        assert options["connection_class"].__name__ == "SSLConnection"
        assert (options["ssl_ca_certs"], options["ssl_check_hostname"]) == ("/ca.pem", False)  # type: ignore[typeddict-item]  # TypedDict is not total
    assert parse_url(asked.master("10.0.0.7", 6379))["db"] == 2
    assert "db" not in parse_url(asked.urls[0])


def test_another_url_names_none() -> None:
    assert sentinels("redis://one.test,two.test?service=m") is None
