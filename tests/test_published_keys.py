"""The keys of fal: kept, renewed when a signature fits none, and asked for seldom, whoever sends what."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest

from server.dispatch import fal_keys
from server.dispatch.fal_keys import FalKeys, KeysUnavailable
from tests.receiver import Receiver, Reply


def published(first: int) -> Reply:
    x = base64.urlsafe_b64encode(bytes([first]) * 32).decode().rstrip("=")
    return Reply(200, json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}).encode())


@pytest.fixture
async def fal() -> AsyncIterator[Receiver]:
    async with Receiver() as fal:
        yield fal
    fal.listener.close()


async def test_fetched_once(fal: Receiver) -> None:
    keys = FalKeys(fal.on("/jwks", published(1)))
    found = await asyncio.gather(*(keys.current() for _ in range(20)))
    assert len({id(each) for each in found}) == 1
    # Twenty forgeries a second cost one request in half a minute.
    for _ in range(20):
        assert await keys.renewed(found[0]) is found[0]
    assert len(fal.at("/jwks")) == 1


async def test_renewed_after_a_rotation(fal: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = FalKeys(fal.script("/jwks", published(1), published(2)))
    old = await keys.current()
    monkeypatch.setattr(fal_keys, "AGAIN_SECONDS_MIN", 0.0)
    new = await keys.renewed(old)
    assert new != old
    assert await keys.current() is new
    # Whoever had seen only the old ones is given the new ones without asking again.
    assert await keys.renewed(old) is new
    assert len(fal.at("/jwks")) == 2


@pytest.mark.parametrize("reply", [Reply(500), Reply(200, b"<html>"), Reply(200, b" " * 70_000), Reply(302)])
async def test_not_to_be_had(fal: Receiver, monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    keys = FalKeys(fal.script("/jwks", reply, published(1), reply))
    with pytest.raises(KeysUnavailable):
        await keys.current()
    with pytest.raises(KeysUnavailable):
        await keys.current()
    assert len(fal.at("/jwks")) == 1
    monkeypatch.setattr(fal_keys, "AGAIN_SECONDS_MIN", 0.0)
    found = await keys.current()
    # Known ones stay good while newer ones cannot be had, for a day and no longer.
    assert await keys.renewed(found) is found
    monkeypatch.setattr(fal_keys, "KEPT_SECONDS_MAX", 0.0)
    with pytest.raises(KeysUnavailable):
        await keys.current()
