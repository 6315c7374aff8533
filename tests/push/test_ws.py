"""Many tasks over one WebSocket, spoken with a client that is not ours."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Connection, Deploy
from tests.deployment import Deployment
from tests.playing import Play

BOTH_WAYS = pytest.mark.parametrize("here", [False, True], ids=["frames", "portable"], indirect=True)


@pytest.fixture
async def here(request: pytest.FixtureRequest, deploy: Deploy) -> Deployment:
    """By frames of our own; or, where the test asks for it, as under any ASGI server."""
    return await deploy(dispatchers=0, generator=False, portable=getattr(request, "param", False))


@pytest.fixture
async def play(here: Deployment) -> Play:
    return await Play.of(here)


def address(here: Deployment) -> str:
    return here.web.url.replace("http", "ws") + "/api/generate/ws"


@pytest.fixture
async def socket(here: Deployment) -> AsyncIterator[ClientConnection]:
    async with connect(address(here), proxy=None) as websocket:
        yield websocket


async def say(socket: ClientConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def hear(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 10))
    return message


async def hear_until(socket: ClientConnection, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    heard = [await hear(socket)]
    while not wanted(heard[-1]):
        heard.append(await hear(socket))
    return heard


def completed(task_id: str) -> Callable[[dict[str, Any]], bool]:
    return lambda m: "task" in m and m["task"]["taskId"] == task_id and m["task"]["status"] == "completed"


@BOTH_WAYS
async def test_follow_to_the_end(play: Play, socket: ClientConnection) -> None:
    task_id = await play.create()
    await say(socket, type="subscribe", taskIds=[task_id])
    subscribed, now = await hear(socket), await hear(socket)
    assert subscribed == {
        "type": "subscribed",
        "taskIds": [task_id],
        "sync": {"from": 0, "to": 1, "mode": "snapshot", "recovered": False},
    }
    assert (now["type"], now["task"]["version"], now["cursor"]) == ("status", 1, "1")
    await play.report(task_id, 30)
    await play.finish(task_id)
    heard = await hear_until(socket, completed(task_id))
    assert [m["task"]["version"] for m in heard] == [2, 3]
    # The connection stays, for other tasks.
    await say(socket, type="ping")
    assert await hear(socket) == {"type": "pong"}


async def test_each_task_resumes_from_its_own_version(play: Play, socket: ClientConnection) -> None:
    one, two = await play.create("one"), await play.create("two")
    await play.report(one, 10)
    await play.report(one, 20)
    await say(socket, type="subscribe", taskIds=[one, two], after={one: 1, two: 1})
    heard = [await hear(socket) for _ in range(4)]
    assert [m["type"] for m in heard] == ["subscribed", "status", "progress", "subscribed"]
    assert heard[0]["sync"] == {"from": 1, "to": 3, "mode": "replay", "recovered": True}
    assert heard[3]["sync"]["mode"] == "live"


async def test_all_of_mine_and_its_cursor(here: Deployment, play: Play, socket: ClientConnection) -> None:
    await say(socket, type="subscribe", all=True)
    assert (await hear(socket))["type"] == "subscribed"
    task_id = await play.create()
    appeared = await hear(socket)
    assert (appeared["task"]["taskId"], appeared["task"]["version"]) == (task_id, 1)
    await play.report(task_id, 10)
    await play.finish(task_id)
    await hear_until(socket, completed(task_id))
    async with connect(address(here), proxy=None) as again:
        await say(again, type="subscribe", all=True, after=appeared["cursor"])
        assert (await hear(again))["sync"]["mode"] == "replay"
        heard = await hear_until(again, completed(task_id))
        assert [m["task"]["version"] for m in heard] == [2, 3]


async def test_unsubscribe(play: Play, socket: ClientConnection) -> None:
    task_id = await play.create()
    await say(socket, type="subscribe", taskIds=[task_id])
    await hear(socket), await hear(socket)
    await say(socket, type="unsubscribe", taskIds=[task_id])
    await say(socket, type="ping")
    assert (await hear(socket))["type"] == "pong"
    await play.finish(task_id)
    await say(socket, type="ping")
    assert (await hear(socket))["type"] == "pong"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "dance"}, "bad_request"),
        ({"type": "subscribe"}, "invalid_parameter"),
        ({"type": "subscribe", "taskIds": "x"}, "bad_request"),
        ({"type": "subscribe", "taskIds": ["nope-nope"]}, "task_not_found"),
        ({"type": "subscribe", "taskIds": ["task:*"]}, "task_not_found"),
        ({"type": "subscribe", "taskIds": ["x"] * 501}, "bad_request"),
        ({"type": "subscribe", "all": True, "after": "zzz"}, "invalid_cursor"),
        ({"type": "subscribe", "taskIds": ["a"], "after": {"a": -1}}, "invalid_cursor"),
        ([], "bad_request"),
    ],
)
async def test_what_is_refused_leaves_the_connection(socket: ClientConnection, message: Any, code: str) -> None:
    await socket.send(json.dumps(message))
    refused = await hear(socket)
    assert (refused["type"], refused["problem"]["code"]) == ("refused", code)
    await say(socket, type="ping")
    assert (await hear(socket))["type"] == "pong"


@pytest.mark.parametrize(
    ("sent", "code"), [("{not json", 1007), (b"binary", 1003), ('{"type":"ping","x":"' + "y" * 70_000 + '"}', 1009)]
)
async def test_what_ends_the_connection(socket: ClientConnection, sent: str | bytes, code: int) -> None:
    await socket.send(sent)
    with pytest.raises(ConnectionClosed) as closed:
        await hear(socket)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


async def test_pages_of_other_origins_are_turned_away(here: Deployment) -> None:
    for origin in ("https://evil.test", "null", here.web.url + ".evil.test"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(address(here), proxy=None, additional_headers={"Origin": origin})
        assert refused.value.response.status_code == 403


@BOTH_WAYS
async def test_goodbye(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    async with connect(address(here), proxy=None) as busy, connect(address(here), proxy=None) as idle:
        await say(busy, type="subscribe", taskIds=[task_id])
        await hear(busy), await hear(busy)
        here.web.signal(15)
        for websocket in (busy, idle):
            bye = await hear(websocket)
            assert (bye["type"], bye["reason"]) == ("bye", "restarting")
            assert bye["retryMs"] >= 500
            with pytest.raises(ConnectionClosed) as closed:
                await hear(websocket)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        here.web.wait(5)


async def test_subscriptions_are_bounded(play: Play, socket: ClientConnection, owner: Connection) -> None:
    task_id = await play.create()
    user = await owner.fetchval("select user_id from image_generations where task_id = $1", task_id)
    await owner.execute(
        """insert into image_generations (task_id, user_id, prompt)
           select 'task_' || n, $1, 'a boat' from generate_series(1, 1001) n""",
        user,
    )
    for begin in (1, 401, 801):
        ids = [f"task_{n}" for n in range(begin, min(begin + 400, 1002))]
        await say(socket, type="subscribe", taskIds=ids)
    await say(socket, type="ping")
    heard = await hear_until(socket, lambda m: m["type"] == "pong")
    assert sum(m["type"] == "subscribed" for m in heard) == 1_000
    (refused,) = [m for m in heard if m["type"] == "refused"]
    assert (refused["taskIds"], refused["problem"]["code"]) == (["task_1001"], "invalid_parameter")
    # Room that is given up can be used again.
    await say(socket, type="unsubscribe", taskIds=["task_1"])
    await say(socket, type="subscribe", taskIds=["task_1001"])
    assert (await hear(socket))["type"] == "subscribed"
