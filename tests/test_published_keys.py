"""Published keys: kept, renewed when something fits none of them, and asked for seldom, whoever sends what."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest

from server import published_keys
from server.dispatch.webhook_signature import PublicKeys, read_keys
from server.published_keys import KeysUnavailable, PublishedKeys
from tests.receiver import Receiver, Reply, Request


def published(first: int) -> Reply:
    x = base64.urlsafe_b64encode(bytes([first]) * 32).decode().rstrip("=")
    return Reply(200, json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}).encode())


def keys_at(url: str, fresh_seconds: float = 60.0) -> PublishedKeys[PublicKeys]:
    return PublishedKeys(url, read_keys, fresh_seconds=fresh_seconds, kept_seconds_max=60.0)


@pytest.fixture
async def fal() -> AsyncIterator[Receiver]:
    async with Receiver() as fal:
        yield fal
    fal.listener.close()


async def test_fetched_once(fal: Receiver) -> None:
    keys = keys_at(fal.on("/jwks", published(1)))
    found = await asyncio.gather(*(keys.current() for _ in range(20)))
    assert len({id(each) for each in found}) == 1
    # Twenty forgeries a second cost one request in half a minute.
    for _ in range(20):
        assert await keys.renewed(found[0]) is found[0]
    assert len(fal.at("/jwks")) == 1


async def test_renewed_after_a_rotation(fal: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_at(fal.script("/jwks", published(1), published(2)))
    old = await keys.current()
    monkeypatch.setattr(published_keys, "AGAIN_SECONDS_MIN", 0.0)
    new = await keys.renewed(old)
    assert new != old
    assert await keys.current() is new
    # Whoever had seen only the old ones is given the new ones without asking again.
    assert await keys.renewed(old) is new
    assert len(fal.at("/jwks")) == 2


@pytest.mark.parametrize("reply", [Reply(500), Reply(200, b"<html>"), Reply(200, b" " * 70_000), Reply(302)])
async def test_not_to_be_had(fal: Receiver, monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    keys = keys_at(fal.script("/jwks", reply, published(1), reply))
    with pytest.raises(KeysUnavailable):
        await keys.current()
    with pytest.raises(KeysUnavailable):
        await keys.current()
    assert len(fal.at("/jwks")) == 1
    monkeypatch.setattr(published_keys, "AGAIN_SECONDS_MIN", 0.0)
    found = await keys.current()
    # Known ones stay good while newer ones cannot be had, for a day and no longer.
    assert await keys.renewed(found) is found
    assert keys.away
    keys._kept_seconds_max = 0.0
    with pytest.raises(KeysUnavailable):
        await keys.current()


async def test_newer_ones_are_fetched_on_the_side(fal: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_keys, "AGAIN_SECONDS_MIN", 0.0)
    slow = asyncio.Event()

    async def second(_: Request) -> Reply:
        await slow.wait()
        return published(2)

    keys = keys_at(fal.on("/jwks", published(1)), fresh_seconds=0.0)
    old = await keys.current()
    fal.on("/jwks", second)
    # Whoever has keys does not wait for a server that takes its time.
    assert await asyncio.wait_for(asyncio.gather(*(keys.current() for _ in range(20))), 1) == [old] * 20
    slow.set()
    async with asyncio.timeout(5):
        while await keys.current() is old:  # noqa: ASYNC110  (nobody is told)
            await asyncio.sleep(0.01)
    assert not keys.away


async def test_the_same_keys_stay_the_same_object(fal: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_keys, "AGAIN_SECONDS_MIN", 0.0)
    keys = keys_at(fal.on("/jwks", published(1)))
    found = await keys.current()
    assert await keys.renewed(found) is found
    assert len(fal.at("/jwks")) == 2


async def test_a_document_that_nobody_foresaw_stops_nothing(fal: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(document: bytes) -> bytes:
        if document == b"odd":
            raise NotImplementedError
        return document

    url = fal.script("/jwks", Reply(200, b"odd"), Reply(200, b"one"), Reply(200, b"odd"), Reply(200, b"two"))
    keys = PublishedKeys(url, odd, fresh_seconds=0.0, kept_seconds_max=None)
    with pytest.raises(KeysUnavailable):
        await keys.current()
    monkeypatch.setattr(published_keys, "AGAIN_SECONDS_MIN", 0.0)
    assert await keys.current() == b"one"
    async with asyncio.timeout(5):  # on the side: one that cannot be read, then one that can
        while await keys.current() != b"two":  # noqa: ASYNC110  (nobody is told)
            await asyncio.sleep(0.01)
