"""The proxies' files for a server with sign-in: whom they let through is the server's business, and they keep it so."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.conftest import Deploy
from tests.deploy.proxies import NAME, ORIGIN, CaddySignIn, NginxSignIn, Proxy
from tests.deployment import Deployment
from tests.identity.conftest import OPERATOR_KEY, SIGN_IN
from tests.identity.tokens import Person


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    env = {**SIGN_IN, "PUBLIC_URL": ORIGIN, "AUTH_OPERATOR_KEY": OPERATOR_KEY}
    return await deploy(webs=2, dispatchers=0, generator=False, env=env)


@pytest.fixture(params=[NginxSignIn, CaddySignIn])
async def proxy(request: pytest.FixtureRequest, here: Deployment) -> AsyncIterator[Proxy]:
    kind: type[NginxSignIn | CaddySignIn] = request.param
    if kind.binary is None:
        pytest.skip(f"NOT TESTED with {kind.__name__}: it is not on the path (apt-get install nginx-light caddy)")
    found = kind(here)
    found.start()
    yield found
    found.stop()


async def test_who_is_who_behind_a_proxy(proxy: Proxy) -> None:
    mine, yours = Person(), Person()
    async with proxy.client(password=None) as client:
        own = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
        token = mine.token()
        begun = await client.post("/api/session", json={"token": token}, headers=own)
        assert begun.json()["userId"] == mine.id
        cookie, _, rest = begun.headers["set-cookie"].partition(";")
        assert cookie == f"__Host-taskbeam={token}"
        assert rest.endswith("; Secure")
        # By hand: the client takes the proxy for the host that it is pinned to.
        client.headers["Cookie"] = cookie
        made = await client.post("/api/generate", json={"prompt": "mine"}, headers=own)
        task = made.json()["taskId"]
        async with client.stream("GET", f"/api/generate/events?taskId={task}") as response:
            assert response.http_version == "HTTP/2"
            text = ""
            async for piece in response.aiter_text():
                text += piece
                if "event: status" in text:
                    break
        assert f'"taskId":"{task}"' in text
        url = f"/api/generate/status?taskId={task}"
        assert (await client.get(url)).status_code == 200
        assert (await client.get(url, headers=yours.headers())).status_code == 404
        for headers in (
            {"Origin": "https://evil.test"},
            {"Origin": "https://evil.test", "X-Forwarded-Host": "evil.test"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            answer = await client.post("/api/generate", json={"prompt": "theirs"}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin"), headers
        del client.headers["Cookie"]
        assert (await client.get(url)).status_code == 401
        # Nobody becomes the machine itself by what he says.
        forged = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost", "X-Real-IP": "::1"}
        assert (await client.get("/metrics", headers=forged)).status_code == 401
        assert (await client.get("/metrics", headers={"Authorization": f"Bearer {OPERATOR_KEY}"})).status_code == 200


async def test_a_websocket_with_the_cookie_or_the_token(proxy: Proxy) -> None:
    person = Person()
    address: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": proxy.port,
        "ssl": proxy.tls(),
        "server_hostname": NAME,
        "proxy": None,
    }
    url = f"wss://{NAME}/api/generate/ws"
    cookie = {"Cookie": f"__Host-taskbeam={person.token()}"}
    for headers in (person.headers(), {**cookie, "Origin": ORIGIN}):
        async with connect(url, additional_headers=headers, **address) as socket:
            await socket.send('{"type":"ping"}')
            assert json.loads(await socket.recv()) == {"type": "pong"}
    for headers, status in (({}, 401), ({**cookie, "Origin": "https://evil.test"}, 403)):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, additional_headers=headers, **address):
                pass
        assert refused.value.response.status_code == status


async def test_no_secret_is_logged_by_a_proxy(proxy: Proxy, here: Deployment) -> None:
    person = Person()
    token = person.token()
    async with proxy.client(password=None) as client:
        await client.get(f"/api/generate/events?ticket={token}", headers={"Authorization": f"Bearer {token}"})
        await client.get("/api/generate", headers={"Cookie": f"__Host-taskbeam={token}"})
        await client.get(f"/api/generate/webhook/fal?token={token}")
    proxy.stop()
    logs: list[Path] = [proxy.log, *(web.log for web in here.webs)]
    for log in logs:
        text = log.read_text()
        assert text
        assert token not in text
        assert token.split(".")[2] not in text
