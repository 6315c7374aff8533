"""Holds what really goes over a stream, over a WebSocket, to a generator and to a callback to its described form."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from server.embedded.redis import EmbeddedRedis
from server.errors import AccessTokenExpired, SessionEnded, Unavailable
from server.openapi.tasks import SOCKET_SCRIPT
from server.openapi.values import TASK_ID
from server.push import wire
from tests.conftest import Deploy
from tests.deployment import TOKEN, Database, Deployment, listen
from tests.openapi.conftest import Here
from tests.openapi.description import DISPATCHER, WEB
from tests.playing import Play
from tests.receiver import Receiver, Reply
from tests.sse import lines, parse


def hold(kind: str, value: Any) -> None:
    problems = WEB.problems(WEB.schemas[kind], value)
    assert not problems, f"{value}: {problems}"


async def sse_events(text: bytes) -> list[dict[str, Any]]:
    """As the schema has them: the data as it was sent."""

    async def pieces() -> Any:
        yield text.decode()

    found = []
    async for event in parse(lines(pieces())):
        if event.data is not None:
            said = {"event": event.event, "data": json.dumps(event.data)}
            found.append(said if event.id is None else {**said, "id": event.id})
    return found


async def test_what_a_stream_says_when_it_goes_or_refuses() -> None:
    said = {
        wire.sse_bye("restarting"): ("bye", "Farewell"),
        wire.sse_refused(Unavailable()): ("refused", "ProblemDetails"),
        wire.sse_ending(1.7e9): ("auth_expiring", "Ending"),
        wire.sse_ended(AccessTokenExpired()): ("auth_expired", "ProblemDetails"),
        wire.sse_ended(SessionEnded()): ("refused", "ProblemDetails"),
    }
    for event, (name, kind) in zip(await sse_events(b"".join(said)), said.values(), strict=True):
        assert event["event"] == name
        hold("StreamEvent", event)
        hold(kind, json.loads(event["data"]))
    with pytest.raises(AssertionError):
        hold("StreamEvent", {"event": "error", "data": "{}"})


async def test_a_conversation_over_a_websocket(deploy: Deploy) -> None:
    here = await deploy(dispatchers=0, generator=False)
    play = await Play.of(here)
    heard: list[dict[str, Any]] = []
    task_id = await play.create()
    # What the description shows is what is sent.
    shown = re.findall(r"send\('(.+?)'\)", SOCKET_SCRIPT)
    assert len(shown) == 1
    async with connect(here.web.url.replace("http", "ws") + "/api/generate/ws", proxy=None) as socket:

        async def hear(until: str) -> None:
            while not heard or heard[-1]["type"] != until:
                message = json.loads(await asyncio.wait_for(socket.recv(), 30))
                hold("SocketMessage", message)
                heard.append(message)

        for text in (
            shown[0].replace(TASK_ID, task_id),
            '{"type":"subscribe","all":true}',
            '{"type":"unsubscribe","taskIds":["x"]}',
            '{"type":"auth","token":"whatever"}',
        ):
            hold("SocketRequest", json.loads(text))
            await socket.send(text)
        await hear("authenticated")
        await play.report(task_id, 10)
        await play.report(task_id, 20, message="Adding the light")
        await hear("progress")
        await socket.send('{"type":"subscribe","taskIds":["nobody"]}')
        await hear("refused")
        await socket.send('{"type":"ping"}')
        await hear("pong")
        await play.finish(task_id)
        while heard[-1].get("task", {}).get("status") != "completed":
            heard.append(json.loads(await asyncio.wait_for(socket.recv(), 30)))
            hold("SocketMessage", heard[-1])
        async with here.client() as client:
            await client.delete(f"/api/generate?taskId={await play.create()}")
        await hear("deleted")
        here.web.process.terminate()  # type: ignore[union-attr]
        await hear("bye")
    # Which comes with sign-in only.
    hold("SocketMessage", json.loads(wire.ws_message(wire.Expiring(wire.instant(1.7e9)))))
    heard.append({"type": "auth_expiring"})
    assert {message["type"] for message in heard} == set(WEB.schemas["SocketMessage"]["discriminator"]["mapping"])


async def test_a_handshake_from_elsewhere(here: Here) -> None:
    address = here.deployment.web.url.replace("http", "ws") + "/api/generate/ws"
    with pytest.raises(InvalidStatus) as refusal:
        await connect(address, origin="https://evil.test", proxy=None)  # type: ignore[arg-type]
    response = refusal.value.response
    assert (response.status_code, json.loads(bytes(response.body))["code"]) == (403, "foreign_origin")


async def test_a_job_and_its_callbacks(database: Database, redis_server: EmbeddedRedis, folder: Path) -> None:
    with listen() as listener:
        async with Receiver(listener) as receiver:
            receiver.on("/draw", Reply(500, b"broken"))
            receiver.on("/callback", Reply())
            receiver.on("/failure", Reply())
            env = {"GENERATOR_URL": f"{receiver.origin}/draw", "GENERATOR_RETRIES": "0"}
            env["DISPATCHER_PRIVATE_ORIGINS"] = receiver.origin
            here = Deployment(database, redis_server.url(), folder / database.name, generator=False, env=env)
            try:
                await here.start()
                async with here.client() as client:
                    await client.post("/api/generate", json={"prompt": "a fox", "params": {"seed": 7}})
                    (job,) = await receiver.wait("/draw")
                    hook = WEB.webhooks["job"]
                    assert not WEB.problems(
                        hook.body["requestBody"]["content"]["application/json"]["schema"], job.json()
                    )
                    assert job.json() == {"prompt": "a fox", "seed": 7}
                    assert {p["name"].lower() for p in hook.parameters} <= set(job.headers)
                    headers = {
                        "Authorization": f"Bearer {TOKEN}",
                        "Upstash-Retries": "0",
                        "Upstash-Callback": f"{receiver.origin}/callback",
                        "Upstash-Failure-Callback": f"{receiver.origin}/failure",
                    }
                    await client.post(f"{here.dispatcher.url}/v2/publish/{receiver.origin}/draw", headers=headers)
                    for path, is_last in (("/callback", False), ("/failure", True)):
                        (said,) = await receiver.wait(path)
                        problems = DISPATCHER.problems(DISPATCHER.schemas["CallbackBody"], said.json())
                        assert not problems, problems
                        assert ("dlqId" in said.json()) is is_last
            finally:
                here.stop()
