"""Our dispatcher's process, driven by the published Python SDK and by plain HTTP: what is stored, shown, refused."""

import base64
import hashlib
import json
import time
from typing import Any

import httpx
import pytest
from qstash import AsyncQStash
from qstash import Receiver as Verifier
from qstash.errors import QStashError
from qstash.message import Message, PublishResponse

from tests.deployment import CURRENT_KEY, NEXT_KEY, TOKEN
from tests.dispatch.conftest import Connection, Home, publish
from tests.receiver import Receiver, Reply, until

LATER = "1h"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def raw(home: Home, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Any:
    """A request whose target goes out byte for byte; httpx alone would tidy it up."""
    url = httpx.URL(home.deployment.dispatcher.url).copy_with(raw_path=target.encode())
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.request(method, url, headers=BEARER if headers is None else headers, content=body)


async def shown(home: Home, message_id: str) -> dict[str, Any]:
    answer = await raw(home, "GET", f"/v2/messages/{message_id}")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_a_delivery_is_what_the_publisher_sent_signed(qstash: AsyncQStash, receiver: Receiver) -> None:
    url = receiver.on("/plain", Reply())
    message_id = await publish(
        qstash,
        url=url,
        body="héllo",
        content_type="text/plain",
        headers={"X-Custom": "one", "Authorization": "Bearer its"},
    )
    (delivery,) = await receiver.wait("/plain")
    assert (delivery.method, delivery.body) == ("POST", "héllo".encode())
    assert delivery.headers["content-type"] == "text/plain"
    assert delivery.headers["x-custom"] == "one"
    assert delivery.headers["authorization"] == "Bearer its"
    assert delivery.headers["user-agent"] == "Upstash-QStash"
    assert delivery.headers["upstash-message-id"] == message_id
    assert delivery.headers["upstash-retried"] == "0"
    assert delivery.headers["upstash-caller-ip"] == "127.0.0.1"
    assert delivery.headers["host"] == receiver.origin.removeprefix("http://")
    assert TOKEN not in str(delivery.headers)
    Verifier(CURRENT_KEY, NEXT_KEY).verify(signature=delivery.headers["upstash-signature"], body="héllo", url=url)
    with pytest.raises(QStashError):
        Verifier(CURRENT_KEY, NEXT_KEY).verify(signature=delivery.headers["upstash-signature"], body="hello", url=url)


async def test_json_any_method_and_no_body(qstash: AsyncQStash, receiver: Receiver) -> None:
    url = receiver.on("/json", Reply())
    await qstash.message.publish_json(url=url, body={"a": [1, "ü"]}, method="PATCH")
    await receiver.wait("/json")
    await publish(qstash, url=url, method="GET")
    first, second = await receiver.wait("/json", 2)
    assert (first.method, first.json(), first.headers["content-type"]) == ("PATCH", {"a": [1, "ü"]}, "application/json")
    assert (second.method, second.body) == ("GET", b"")


async def test_a_message_is_shown_with_what_was_set(qstash: AsyncQStash, home: Home) -> None:
    before = int(time.time() * 1000) - 1
    message_id = await publish(
        qstash,
        url="https://example.com/a",
        body="text",
        content_type="text/plain",
        method="PUT",
        headers={"x-my-key": "v"},
        callback="https://example.com/cb",
        callback_headers={"Upstash-Callback-Forward-x-back": "w"},
        failure_callback="https://example.com/failed",
        retries=0,
        retry_delay="1000 * retried",
        delay="2m",
        label="nightly",
    )
    message = await qstash.message.get(message_id)
    assert message == Message(
        message_id=message_id,
        url="https://example.com/a",
        url_group=None,
        endpoint=None,
        queue=None,
        body="text",
        body_base64=None,
        method="PUT",
        headers={"Content-Type": ["text/plain"], "X-My-Key": ["v"]},
        callback_headers={"X-Back": ["w"]},
        failure_callback_headers=None,
        max_retries=0,
        retry_delay_expression="1000 * retried",
        not_before=message.created_at + 120_000,
        created_at=message.created_at,
        callback="https://example.com/cb",
        failure_callback="https://example.com/failed",
        schedule_id=None,
        caller_ip="127.0.0.1",
        flow_control=None,
        label="nightly",
    )
    assert before <= message.created_at <= time.time() * 1000
    assert (await shown(home, message_id))["labels"] == ["nightly"]


async def test_what_was_not_set_is_left_out(qstash: AsyncQStash, home: Home) -> None:
    message_id = await publish(qstash, url="https://example.com/", delay=LATER)
    always = {"messageId", "url", "method", "maxRetries", "notBefore", "createdAt", "callerIP"}
    assert set(await shown(home, message_id)) == always
    message = await qstash.message.get(message_id)
    assert (message.method, message.max_retries) == ("POST", 3)


async def test_binary_bodies_come_as_base64(qstash: AsyncQStash, receiver: Receiver) -> None:
    body = bytes(range(256))
    message_id = await publish(qstash, url=receiver.on("/binary", Reply()), body=body)
    (delivery,) = await receiver.wait("/binary")
    assert delivery.body == body
    message = await qstash.message.get(message_id)
    assert (message.body, message.body_base64) == (None, base64.b64encode(body).decode())


async def test_not_before_wins_over_delay(qstash: AsyncQStash, receiver: Receiver) -> None:
    when = int(time.time()) + 3_600
    message_id = await publish(qstash, url="https://example.com/", delay="1s", not_before=when)
    assert (await qstash.message.get(message_id)).not_before == when * 1000
    await publish(qstash, url=receiver.on("/past", Reply()), not_before=int(time.time()) - 60, delay=LATER)
    await receiver.wait("/past")


async def test_deduplication_by_id(qstash: AsyncQStash, receiver: Receiver, home: Home, messages: Connection) -> None:
    url = receiver.on("/once", Reply())
    first = await publish(qstash, url=url, body="1", deduplication_id="the-id")
    again = await qstash.message.publish(url=url, body="2", deduplication_id="the-id")
    assert isinstance(again, PublishResponse)
    assert (again.message_id, again.deduplicated) == (first, True)
    answer = await raw(home, "POST", f"/v2/publish/{url}", BEARER | {"Upstash-Deduplication-Id": "the-id"})
    assert (answer.status_code, answer.json()) == (202, {"messageId": first, "url": url, "deduplicated": True})
    other = await publish(qstash, url=url, body="3", deduplication_id="another-id")
    assert [request.body for request in await receiver.wait("/once", 2)] == [b"1", b"3"]

    # The window is ten minutes; then the id is free again.
    await messages.execute("update dispatcher.deduplications set expires_at = now() - interval '1 s'")
    fresh = await publish(qstash, url=url, body="4", deduplication_id="the-id")
    assert len({first, other, fresh}) == 3
    window = await messages.fetchval("select max(expires_at) - now() from dispatcher.deduplications")
    assert 590 < window.total_seconds() <= 600


async def test_deduplication_by_content(qstash: AsyncQStash, home: Home) -> None:
    url = "https://example.com/content"
    same: dict[str, Any] = {"url": url, "body": "x", "content_type": "text/plain", "headers": {"A": "1"}}
    others = ({"url": url + "2"}, {"body": "y"}, {"content_type": "text/html"}, {"headers": {"A": "2"}})
    first = await publish(qstash, **same, delay=LATER, content_based_deduplication=True)
    assert await publish(qstash, **same, delay=LATER, content_based_deduplication=True) == first
    for other in others:
        assert await publish(qstash, **{**same, **other}, delay=LATER, content_based_deduplication=True) != first
    assert await publish(qstash, **same, delay=LATER) != first
    answer = await raw(
        home, "POST", f"/v2/publish/{url}?upstash-content-based-deduplication=TRUE&upstash-forward-a=1",
        BEARER | {"Content-Type": "text/plain", "Upstash-Delay": LATER}, b"x",
    )  # fmt: skip
    assert (answer.status_code, answer.json()["messageId"]) == (202, first)


async def test_cancel(qstash: AsyncQStash, receiver: Receiver, home: Home) -> None:
    url = receiver.on("/canceled", Reply())
    message_id = await publish(qstash, url=url, delay="1s")
    answer = await raw(home, "DELETE", f"/v2/messages/{message_id}")
    assert (answer.status_code, answer.json()) == (200, {"cancelled": 1})
    with pytest.raises(QStashError, match="404"):
        await qstash.message.cancel(message_id)
    assert (await qstash.message.get(message_id)).url == url
    await publish(qstash, url=receiver.on("/after", Reply()), delay="1s")
    await receiver.wait("/after")
    assert not receiver.at("/canceled")


async def test_cancel_many(qstash: AsyncQStash, home: Home) -> None:
    ids = [await publish(qstash, url="https://example.com/", delay=LATER) for _ in range(4)]
    assert await qstash.message.cancel_many([*ids[:2], ids[0], "msg_none", "a b"]) == 2
    assert await qstash.message.cancel_many([]) == 0
    answer = await raw(home, "DELETE", f"/v2/messages?messageIds={ids[1]}&messageIds={ids[2]}")
    assert answer.json() == {"cancelled": 1}
    assert (await raw(home, "DELETE", "/v2/messages?color=red")).status_code == 400
    assert await qstash.message.cancel_all() >= 1
    assert await qstash.message.cancel_many(ids) == 0


async def test_a_message_stays_readable_after_its_end(
    qstash: AsyncQStash, receiver: Receiver, messages: Connection
) -> None:
    message_id = await publish(qstash, url=receiver.on("/ended", Reply()), body="b")

    async def ended() -> bool:
        return bool(
            await messages.fetchval("select finished_at is not null from dispatcher.messages where id = $1", message_id)
        )

    await until(ended, "delivered")
    assert (await qstash.message.get(message_id)).body == "b"
    with pytest.raises(QStashError, match="404"):
        await qstash.message.cancel(message_id)


async def test_signing_keys(qstash: AsyncQStash) -> None:
    keys = await qstash.signing_key.get()
    assert (keys.current, keys.next) == (CURRENT_KEY, NEXT_KEY)


async def test_redaction_is_for_the_eyes_only(qstash: AsyncQStash, receiver: Receiver) -> None:
    url = receiver.on("/redacted", Reply())
    headers = {"X-Secret": "s3cret", "X-Open": "open"}
    message_id = await publish(
        qstash, url=url, body="private", headers=headers, redact={"body": True, "header": ["x-secret"]}
    )
    message = await qstash.message.get(message_id)
    assert message.body == "REDACTED:" + hashlib.sha256(b"private").hexdigest()
    assert message.headers == {
        "X-Secret": ["REDACTED:" + hashlib.sha256(b"s3cret").hexdigest()],
        "X-Open": ["open"],
    }
    (delivery,) = await receiver.wait("/redacted")
    assert (delivery.body, delivery.headers["x-secret"]) == (b"private", "s3cret")
    all_of_them = await publish(qstash, url=url, headers=headers, redact={"header": True}, delay=LATER)
    assert "open" not in str((await qstash.message.get(all_of_them)).headers)


async def test_nor_does_its_callback_show_it(qstash: AsyncQStash, receiver: Receiver, home: Home) -> None:
    """A callback repeats the message it tells of: to its receiver, not to whoever looks on."""
    url, callback = receiver.on("/redacted2", Reply()), receiver.on("/told", Reply())
    await publish(qstash, url=url, headers={"X-Secret": "s3cret"}, redact={"header": ["X-Secret"]}, callback=callback)
    (told,) = await receiver.wait("/told")
    assert told.json()["sourceHeader"]["X-Secret"] == ["s3cret"]
    seen = await shown(home, told.headers["upstash-message-id"])
    body = json.loads(seen["body"])
    assert body["sourceHeader"] == {"X-Secret": ["REDACTED:" + hashlib.sha256(b"s3cret").hexdigest()]}
    assert body["sourceBody"].startswith("REDACTED:")
    assert (body["status"], body["sourceMessageId"]) == (200, told.json()["sourceMessageId"])


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ("{origin}/to//a///b", "/to//a///b"),
        ("{origin}/to/a?x=1&x=2&&y", "/to/a?x=1&x=2&&y"),
        ("{origin}/to/%2F%20%C3%BC?q=%26+%00", "/to/%2F%20%C3%BC?q=%26+%00"),
        ("{origin}/to/a?u=http://h//p?z", "/to/a?u=http://h//p?z"),
        ("{origin}/to/a?qstash_token=t&x=1", "/to/a?x=1"),
        ("{origin}/to/a?x=1&upstash-forward-x-q=v%20w&Upstash-Method=put&y=2", "/to/a?x=1&y=2"),
        ("{escaped}%2Fto%2Fa%3Fx%3D1", "/to/a?x=1"),
    ],
)
async def test_the_destination_stands_raw_in_the_path(receiver: Receiver, home: Home, sent: str, arrives: str) -> None:
    receiver.seen.clear()
    escaped = receiver.origin.replace(":", "%3A").replace("/", "%2F")
    answer = await raw(home, "POST", f"/v2/publish/{sent.format(origin=receiver.origin, escaped=escaped)}")
    assert answer.status_code == 200, answer.text
    path = arrives.partition("?")[0]
    (delivery,) = await receiver.wait(path)
    assert delivery.target == arrives
    assert answer.json()["url"] == receiver.origin + arrives
    if "forward" in sent:
        assert (delivery.headers["x-q"], delivery.method) == ("v w", "PUT")


async def test_the_token_may_come_in_the_query(home: Home) -> None:
    target = f"/v2/publish/https://example.com/?qstash_token={TOKEN}&upstash-delay=1h"
    answer = await raw(home, "POST", target, {})
    assert (answer.status_code, answer.json()["url"]) == (200, "https://example.com/")


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer"}]
)
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v2/publish/https://example.com/"),
        ("GET", "/v2/messages/msg_1"),
        ("DELETE", "/v2/messages"),
        ("GET", "/v2/keys"),
    ],
)
async def test_nobody_without_the_token(home: Home, headers: dict[str, str], method: str, target: str) -> None:
    answer = await raw(home, method, target, headers)
    assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})


@pytest.mark.parametrize(
    ("status", "method", "target", "headers"),
    [
        (400, "POST", "/v2/publish/", {}),
        (400, "POST", "/v2/publish/no-such-group", {}),
        (400, "POST", "/v2/publish/ftp://example.com/", {}),
        (400, "POST", "/v2/publish/http://user:pw@example.com/", {}),
        (400, "POST", "/v2/publish/http://example.com:99999/", {}),
        (400, "POST", "/v2/publish/http://exa%20mple.com/", {}),
        (400, "POST", "/v2/publish/http://example.com/", {"Upstash-Retries": "-1"}),
        (400, "POST", "/v2/publish/http://example.com/", {"Upstash-Retry-Delay": "__import__('os')"}),
        (400, "POST", "/v2/publish/http://example.com/", {"Upstash-Delay": "soon"}),
        (400, "POST", "/v2/publish/http://example.com/", {"Upstash-Callback": "javascript:alert(1)"}),
        (400, "POST", "/v2/publish/http://example.com/?upstash-label=%00", {}),
        (400, "POST", "/v2/publish/http://example.com/?upstash-callback=http://h/%0d%0aX:y", {}),
        (400, "POST", "/v2/publish/http://example.com/?upstash-forward-x=%e6%97%a5", {}),
        (400, "POST", "/v2/publish/http://example.com/", {f"X-{n}": "" for n in range(120)}),
        (404, "GET", "/v2/messages/msg_none", {}),
        (404, "GET", "/v2/messages/%00", {}),
        (404, "DELETE", "/v2/messages/msg_none", {}),
        (404, "GET", "/v2/none", {}),
        (404, "POST", "/v2/publish%2Fhttp://example.com/", {}),
        (405, "PUT", "/v2/keys", {}),
    ],
)
async def test_errors_are_json(home: Home, status: int, method: str, target: str, headers: dict[str, str]) -> None:
    answer = await raw(home, method, target, BEARER | headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)


async def test_a_body_has_a_limit(home: Home) -> None:
    answer = await raw(home, "POST", "/v2/publish/https://example.com/?upstash-delay=1h", body=b"x" * (1024 * 1024))
    assert answer.status_code == 200
    answer = await raw(home, "POST", "/v2/publish/https://example.com/", body=b"x" * (1024 * 1024 + 1))
    assert (answer.status_code, list(answer.json())) == (413, ["error"])
