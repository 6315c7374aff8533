"""Sign-in through real processes: who is taken for whom, and what one user sees of another's."""

import asyncio
import base64
import json
import time
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.deployment import Deployment
from tests.identity.conftest import APP, COOKIE, OPERATOR_KEY, PUBLIC, DeploySignedIn
from tests.identity.tokens import Key, Person, claims_of, key_set
from tests.openapi.description import WEB
from tests.receiver import Receiver, Reply, Request

NOBODYS = "nobody-has-this-task-id"


async def new_task(client: httpx.AsyncClient, person: Person) -> str:
    answer = await client.post("/api/generate", json={"prompt": "a fox"}, headers=person.headers())
    assert answer.status_code == 202, answer.text
    return str(answer.json()["taskId"])


def without_request_id(answer: httpx.Response) -> Any:
    return {name: value for name, value in answer.json().items() if name != "requestId"}


async def test_not_yours_and_not_there_are_the_same_answer(here: Deployment) -> None:
    mine, yours = Person(), Person()
    async with here.client() as client:
        task = await new_task(client, mine)
        routes = [
            ("GET", "/api/generate/status?taskId={}"),
            ("GET", "/api/generate/status?taskId={}&wait=5&after=1"),
            ("GET", "/api/generate/events?taskId={}"),
            ("GET", "/api/generate/events?taskId={}&after=1"),
            ("GET", "/api/generate/events?taskId={}&taskId=" + await new_task(client, yours)),
            ("GET", "/api/generate/deliveries?taskId={}"),
            ("POST", "/api/generate/retry?taskId={}"),
            ("DELETE", "/api/generate?taskId={}"),
        ]
        for method, route in routes:
            theirs = await client.request(method, route.format(task), headers=yours.headers())
            absent = await client.request(method, route.format(NOBODYS), headers=yours.headers())
            assert theirs.status_code == absent.status_code == 404, route
            assert without_request_id(theirs) == without_request_id(absent)
            same = {name: value for name, value in theirs.headers.items() if name not in ("x-request-id", "date")}
            assert same == {n: v for n, v in absent.headers.items() if n not in ("x-request-id", "date")}
        assert (await client.get("/api/generate", headers=yours.headers())).json()["tasks"][0]["taskId"] != task
        assert len((await client.get("/api/generate", headers=yours.headers())).json()["tasks"]) == 1
        still = await client.get(f"/api/generate/status?taskId={task}", headers=mine.headers())
        assert (still.status_code, still.json()["version"]) == (200, 1)


async def test_not_yours_over_a_websocket(here: Deployment) -> None:
    mine, yours = Person(), Person()
    async with here.client() as client:
        task, own = await new_task(client, mine), await new_task(client, yours)
    url = f"ws://127.0.0.1:{here.web.port}/api/generate/ws"
    async with connect(url, additional_headers=yours.headers(), proxy=None) as socket:
        await socket.send(json.dumps({"type": "subscribe", "taskIds": [task, own, NOBODYS]}))
        told = [json.loads(await asyncio.wait_for(socket.recv(), 5)) for _ in range(4)]
    refused = {message["taskIds"][0]: message["problem"] for message in told if message["type"] == "refused"}
    assert refused[task] == refused[NOBODYS]
    assert [message["task"]["taskId"] for message in told if message["type"] == "status"] == [own]


async def test_no_token_or_a_bad_one_is_401_everywhere(here: Deployment) -> None:
    person = Person()
    bad = [
        ({}, "unauthorized"),
        (person.headers(exp=int(time.time()) - 60), "access_token_expired"),
        (person.headers(role="service_role"), "invalid_access_token"),
        ({"Authorization": "Basic YTpi"}, "invalid_access_token"),
        ({"Authorization": f"Bearer {OPERATOR_KEY}"}, "invalid_access_token"),
    ]
    asked = [op for op in WEB.operations if "unauthorized" in {code for _, code in op.problems_declared()}]
    asked = [op for op in asked if op.id not in ("openSocket", "getMetrics")]
    assert len(asked) >= 8
    async with here.client() as client:
        for operation in asked:
            for headers, code in bad:
                answer = await client.request(operation.method, operation.path, json={"prompt": "a"}, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (401, code), operation.id
                assert answer.headers["www-authenticate"].startswith("Bearer")
                operation.hold(answer)
        # Never in a URL, and nothing of it in the log.
        token = person.token()
        for name in ("token", "access_token"):
            answer = await client.get(f"/api/generate/events?{name}={token}")
            assert answer.status_code == 401
        metrics = (await client.get("/metrics")).text
    assert f'taskbeam_sign_ins_refused_total{{reason="expired"}} {len(asked)}.0' in metrics
    log = here.web.log.read_text()
    assert token[-20:] not in log
    assert OPERATOR_KEY not in log
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://127.0.0.1:{here.web.port}/api/generate/ws", proxy=None):
            pass
    assert refused.value.response.status_code == 401


async def test_a_session_is_a_cookie_that_no_script_reads(here: Deployment) -> None:
    person = Person()
    own = {"Origin": here.web.url}
    async with here.client() as client:
        answer = await client.post("/api/session", json={"token": person.token()}, headers=own)
        assert answer.json()["userId"] == person.id
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly; SameSite=Lax" in cookie
        assert client.cookies
        task = await client.post("/api/generate", json={"prompt": "a fox"}, headers=own)
        assert task.status_code == 202
        assert (await client.get("/api/session")).json() == {**answer.json()}
        url = f"/api/generate/status?taskId={task.json()['taskId']}"
        assert (await client.get(url)).status_code == 200
        # A header beats the cookie, for better or worse.
        assert (await client.get(url, headers=Person().headers())).status_code == 404
        assert (await client.get(url, headers={"Authorization": "Bearer x"})).status_code == 401
        gone = await client.request("DELETE", "/api/session", headers=own)
        assert gone.json() == {"outcome": "signed_out"}
        assert not client.cookies
        assert (await client.get(url)).status_code == 401
        refused = await client.post("/api/session", json={"token": person.token(exp=1)}, headers=own)
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        long = await client.post("/api/session", json={"token": person.token(filler="x" * 4000)}, headers=own)
        assert long.json()["code"] == "too_large"


async def test_the_session_of_the_supabase_package(here: Deployment) -> None:
    person = Person()
    session = json.dumps({"access_token": person.token(), "refresh_token": "r", "user": {"id": person.id}})
    coded = "base64-" + base64.urlsafe_b64encode(session.encode()).decode().rstrip("=")
    pieces = [coded[start : start + 600] for start in range(0, len(coded), 600)]
    cookie = "; ".join(f"{COOKIE}.{number}={piece}" for number, piece in enumerate(pieces))
    async with here.client() as client:
        answer = await client.get("/api/session", headers={"Cookie": f"theme=dark; {cookie}"})
        assert answer.json()["userId"] == person.id


async def test_with_a_cookie_a_page_of_another_origin_is_refused(here: Deployment) -> None:
    person = Person()
    cookie = {"Cookie": f"taskbeam={person.token()}"}
    own = here.web.url
    post = {"method": "POST", "url": "/api/generate", "json": {"prompt": "a"}}
    get = {"method": "GET", "url": "/api/generate"}
    foreign = ["https://evil.test", "null", f"{APP}.evil.test", "http://app.example.com", f"{own}.evil.test"]
    async with here.client() as client:
        for asked in (post, get):
            for origin in foreign:
                answer = await client.request(**asked, headers={**cookie, "Origin": origin})
                assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin"), origin
                assert "access-control-allow-origin" not in answer.headers
                assert answer.headers["vary"] == "Origin"
            answer = await client.request(**asked, headers={**cookie, "Sec-Fetch-Site": "cross-site"})
            assert answer.status_code == 403
            for origin in (own, APP, "http://localhost:3000"):
                answer = await client.request(**asked, headers={**cookie, "Origin": origin})
                assert answer.status_code in (200, 202), origin
                assert (answer.headers.get("access-control-allow-origin") == origin) == (origin != own)
        form = await client.post(
            "/api/generate", content='{"prompt":"a"}', headers={**cookie, "Content-Type": "text/plain"}
        )
        assert form.status_code == 415
        asking = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
        preflight = await client.options("/api/generate", headers={"Origin": APP, **asking})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == APP
        assert preflight.headers["access-control-allow-credentials"] == "true"
        preflight = await client.options("/api/generate", headers={"Origin": "https://evil.test", **asking})
        assert "access-control-allow-origin" not in preflight.headers
    url = f"ws://127.0.0.1:{here.web.port}/api/generate/ws"
    for origin in foreign:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, additional_headers={**cookie, "Origin": origin}, proxy=None):
                pass
        assert refused.value.response.status_code == 403
    async with connect(url, additional_headers={**cookie, "Origin": APP}, proxy=None):
        pass


async def test_which_names_are_answered_to(deploy_signed_in: DeploySignedIn) -> None:
    env = {"PUBLIC_URL": PUBLIC, "ALLOWED_HOSTS": "web.internal:8000"}
    here = await deploy_signed_in(env, dispatchers=0, generator=False)
    person = Person()
    async with here.client() as client:
        for host in ("tasks.example.com", "web.internal:8000", f"localhost:{here.web.port}"):
            answer = await client.get("/api/generate", headers={**person.headers(), "Host": host})
            assert answer.status_code == 200, host
        for host in ("evil.test", "tasks.example.com.evil.test", "tasks.example.com:8000", "web.internal"):
            answer = await client.get("/api/generate", headers={**person.headers(), "Host": host})
            assert (answer.status_code, answer.json()["code"]) == (421, "foreign_host"), host
            assert (await client.get("/healthz", headers={"Host": host})).status_code == 200
        front = {"Host": f"localhost:{here.web.port}", "X-Forwarded-Host": "app.test", "Origin": "https://app.test"}
        cookie = {"Cookie": f"__Host-taskbeam={person.token()}"}
        # The app's own server stands in front, on this machine, and passes its pages' requests on.
        assert (await client.get("/api/generate", headers={**cookie, **front})).status_code == 200
        answer = await client.post("/api/session", json={"token": person.token()}, headers=front)
        assert answer.headers["set-cookie"].startswith("__Host-taskbeam=")
        assert answer.headers["set-cookie"].endswith("; Secure")


async def test_figures_are_for_operators(here: Deployment) -> None:
    person = Person()
    far = {"X-Forwarded-For": "203.0.113.9"}
    async with here.client() as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/metrics", headers=far)).status_code == 401
        assert (await client.get("/metrics", headers={**far, **person.headers()})).status_code == 403
        operator = person.headers(app_metadata={"roles": ["operator"]})
        assert (await client.get("/metrics", headers={**far, **operator})).status_code == 200
        by_key = {**far, "Authorization": f"Bearer {OPERATOR_KEY}"}
        assert (await client.get("/metrics", headers=by_key)).status_code == 200
        assert (await client.get("/metrics", headers={**far, "Authorization": "Bearer x"})).status_code == 401


async def test_keys_that_are_published(deploy_signed_in: DeploySignedIn) -> None:
    first, second = Key("ES256", "1"), Key("EdDSA", "2")
    person = Person()
    async with Receiver() as issuer:
        published = [Reply(200, key_set(first))]

        async def answer(_: Request) -> Reply:
            return published[0]

        origin = issuer.on("/auth/v1/.well-known/jwks.json", answer).removesuffix("/.well-known/jwks.json")
        env = {"AUTH_ISSUER": origin, "AUTH_SECRET": "", "LOG_LEVEL": "debug"}
        here = await deploy_signed_in(env, dispatchers=0, generator=False)
        claims = claims_of(person.id, iss=origin)

        async with here.client() as client:

            async def ask(token: str) -> int:
                return (await client.get("/api/session", headers={"Authorization": f"Bearer {token}"})).status_code

            assert await asyncio.gather(*(ask(first.sign(claims)) for _ in range(20))) == [200] * 20
            assert len(issuer.seen) == 1
            # A flood of keys that nobody has costs no request before half a minute is over.
            assert await asyncio.gather(*(ask(first.sign(claims, kid=f"x{n}")) for n in range(50))) == [401] * 50
            assert await ask(second.sign(claims)) == 401
            assert len(issuer.seen) == 1
            # Its server may be away: who signed in with a known key stays.
            published[0] = Reply(500)
            assert await ask(first.sign(claims)) == 200
        here.web.stop()
        await here.web.start()
        async with here.client() as client:
            answer_ = await client.get("/api/session", headers={"Authorization": f"Bearer {first.sign(claims)}"})
            assert (answer_.status_code, answer_.headers["retry-after"]) == (503, "30")
            begun = await client.post("/api/session", json={"token": first.sign(claims)})
            assert (begun.status_code, begun.json()["code"]) == (503, "unavailable")
            stream = await client.get("/api/generate/events", headers={"Authorization": f"Bearer {first.sign(claims)}"})
            # An EventSource would be closed for ever by a 503.
            assert (stream.status_code, "event: refused" in stream.text) == (200, True)
