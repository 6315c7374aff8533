"""Runs every example of the descriptions, as the line of curl that people copy, against real processes."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import httpx
import pytest

from server import results
from server.dispatch.token import make_token
from server.openapi import dispatcher, values
from tests.curl import Line, read
from tests.deployment import TOKEN
from tests.dispatch.runs import sign
from tests.openapi.conftest import WEBHOOK_SECRET, Here
from tests.openapi.description import DISPATCHER, WEB
from tests.sse import lines, parse

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
EXAMPLES = [
    (part, operation.id, sample["x-example"])
    for part, description in (("web", WEB), ("dispatcher", DISPATCHER))
    for operation in description.operations
    for sample in operation.body["x-codeSamples"]
    if sample["lang"] == "Shell"
]
# What a task must have come to for the example to be answered as shown.
BEFORE = {
    ("listTasks", "newest"): {"status": "completed", "result": values.PICTURE},
    ("listTasks", "failed"): {"status": "failed", "error": "Out of paint"},
    ("getTask", "news"): {"status": "completed", "result": values.PICTURE},
    ("retryTask", "failed"): {"status": "failed", "error": "Out of paint"},
    ("listDeliveries", "ended"): {"status": "completed", "result": values.PICTURE},
    ("followTasks", "ended"): {"status": "completed", "result": values.PICTURE},
}


def stand_ins(here: Here, task_id: str, message_id: str, letter_id: str, ticket: str) -> dict[str, str]:
    """What takes the place of the values that the examples have in common."""
    return {
        values.RUN_TOKEN: make_token(here.secret, task_id, 1),
        values.HOOK_TOKEN: make_token(here.secret, task_id, 1, "webhook standard "),
        values.TASK_ID: task_id,
        values.TICKET: ticket,
        values.WEBHOOK_TIME: str(int(time.time())),
        dispatcher.MESSAGE: message_id,
        dispatcher.DEAD_LETTER: letter_id,
        dispatcher.TOKEN: TOKEN,
    }


def signed(here: Here, line: Line) -> None:
    """In place of SIGNATURE: the header that a sender with the key would make."""
    body = (line.data or "").encode()
    if line.headers.get("Upstash-Signature") == values.SIGNATURE:
        line.headers["Upstash-Signature"] = sign(here.deployment.web.url + line.target, body)
    if line.headers.get("Webhook-Signature") == values.SIGNATURE:
        text = f"{line.headers['Webhook-Id']}.{line.headers['Webhook-Timestamp']}.".encode() + body
        mac = hmac.new(WEBHOOK_SECRET, text, hashlib.sha256).digest()
        line.headers["Webhook-Signature"] = "v1," + base64.b64encode(mac).decode()


async def events(here: Here, line: Line, wanted: int) -> tuple[httpx.Response, list[dict[str, str]]]:
    """The first events of a stream; its data is left as text."""
    found: list[dict[str, str]] = []
    async with here.client.stream("GET", here.deployment.web.url + line.target, headers=line.headers) as answer:
        if answer.status_code == 200:
            async for event in parse(lines(answer.aiter_text())):
                if event.data is None:
                    continue
                said = {"event": event.event, "data": json.dumps(event.data)}
                found.append(said if event.id is None else {**said, "id": event.id})
                if len(found) == wanted:
                    break
        else:
            await answer.aread()
    return answer, found


# They have whatever members they were given.
OPEN = {"params", "cursor", "responseHeader"}


def shape(value: Any) -> Any:
    """What of an answer must be as it is shown: which members there are, and of what kind each is."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items() if name not in OPEN}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value)


@pytest.mark.parametrize(("part", "name", "example"), EXAMPLES, ids=[" ".join(example) for example in EXAMPLES])
async def test_it_is_answered_as_shown(here: Here, part: str, name: str, example: str) -> None:
    operation = (here.web if part == "web" else here.dispatcher).operation(name)
    sample = next(s for s in operation.body["x-codeSamples"] if s["x-example"] == example)
    task_id, message_id, letter_id = await here.create(), await here.publish(), ""
    ticket = await here.ticket(task_id) if name == "followTasks" else ""
    if name in ("listDeadLetters", "getDeadLetter"):
        message_id, letter_id = await here.dead_letter()
    if (name, example) in BEFORE:
        await here.report(task_id, **BEFORE[name, example])
    if name == "getPicture":
        results.save(here.deployment.folder / "results", values.NAME, PNG)
    source = sample["source"]
    for shown, real in stand_ins(here, task_id, message_id, letter_id, ticket).items():
        source = source.replace(shown, real)
    line = read(source)
    signed(here, line)
    assert line.method.lower() == operation.method
    if name == "followTasks":
        answer, seen = await events(here, line, 2)
        assert [event["event"] for event in seen] == (["sync", "status"] if answer.status_code == 200 else [])
        problems = [here.web.problems(here.web.schemas["StreamEvent"], event) for event in seen]
        assert not any(problems), problems
        assert answer.status_code == sample["x-status"]
        assert answer.status_code != 200 or answer.headers["content-type"].startswith("text/event-stream")
        return
    answer = await here.ask(operation, line.target, headers=line.headers, content=line.data)
    assert answer.status_code == sample["x-status"], answer.text
    content = operation.responses[str(sample["x-status"])].get("content", {}).get("application/json", {})
    if example in content.get("examples", {}):
        assert shape(answer.json()) == shape(content["examples"][example]["value"]), "not as it is shown"
