"""What a QStash API remembers of its messages, for tests to write into: it answers the look-ups, and cancels.

From the protocol's description, sharing no code with our dispatcher.
"""

import base64
import itertools
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.receiver import Receiver, Reply, Request


@dataclass
class Remembered:
    """A message. `state`: the last in its log, None where there is no log; `gone`: its 404 comes."""

    url: str = "https://images.example.com/draw"
    callback: str | None = None
    state: str | None = "ACTIVE"
    at: float = field(default_factory=time.time)
    gone: bool = False
    dead: tuple[int, bytes] | None = None  # a dead letter: status and body of the last answer
    body: bytes = b"{}"


class Memory:
    """`messages` by id; `asked` counts look-ups, `cancelled` ids in order; `reply`, if set, answers everything."""

    def __init__(self, receiver: Receiver, token: str) -> None:
        self.messages: dict[str, Remembered] = {}
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.reply: Reply | None = None
        self._token = token
        self._ids = itertools.count(1)
        receiver.fallback = self._answer

    def add(self, **about: Any) -> str:
        """A new message; its id."""
        message_id = f"msg_{next(self._ids):06d}"
        self.messages[message_id] = Remembered(**about)
        return message_id

    async def _answer(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self._token}":
            return _json(401, {"error": "invalid token"})
        if request.method == "GET":
            self.asked.append(request.target)
        if self.reply is not None:
            return self.reply
        if found := re.fullmatch(r"/v2/messages/(\w+)", request.path):
            return self._message(request.method, found[1])
        query = {name: unquote(value) for name, value in request.query.items()}
        if request.path == "/v2/dlq":
            return self._dead_letters(query)
        if request.path == "/v2/events":
            return _json(200, {"events": self._events(query["messageId"])})
        return _json(404, {"error": "not found"})

    def _message(self, method: str, message_id: str) -> Reply:
        message = self.messages.get(message_id)
        if message is None or message.gone:
            return _json(404, {"error": "message not found"})
        if method == "DELETE":
            self.cancelled.append(message_id)
            message.state, message.gone = "CANCELED", True
            return _json(200, {"cancelled": 1})
        return _json(200, self._shown(message_id, message))

    def _shown(self, message_id: str, message: Remembered) -> dict[str, Any]:
        shown = {"messageId": message_id, "url": message.url, "method": "POST", "maxRetries": 3}
        times = {"notBefore": int(message.at * 1000), "createdAt": int(message.at * 1000)}
        more = {"callback": message.callback} if message.callback else {}
        return {**shown, **times, **more, "body": message.body.decode()}

    def _events(self, message_id: str) -> list[dict[str, Any]]:
        message = self.messages.get(message_id)
        if message is None or message.state is None:
            return []
        about = {"messageId": message_id, "url": message.url}
        latest = {**about, "time": int(message.at * 1000), "state": message.state}
        return [latest, {**about, "time": int(message.at * 1000) - 5, "state": "CREATED"}]

    def _dead_letters(self, query: dict[str, str]) -> Reply:
        """Newest first, one page after the other."""
        found = []
        for message_id, message in reversed(self.messages.items()):
            wanted = (query.get("messageId", message_id), query.get("url", message.url)) == (message_id, message.url)
            if message.dead is not None and wanted:
                status, body = message.dead
                answer = {"dlqId": f"1-{message_id}", "responseStatus": status, "responseBody": body.decode()}
                found.append({**self._shown(message_id, message), **answer})
        at, count = int(query.get("cursor", 0)), int(query.get("count", 100))
        page: dict[str, Any] = {"messages": found[at : at + count]}
        if len(found) > at + count:
            page["cursor"] = str(at + count)
        return _json(200, page)


def word(status: int, answer: bytes = b"", *, retried: int = 3, **more: Any) -> bytes:
    """The body of a callback that tells of a delivery."""
    body = base64.b64encode(answer).decode()
    return json.dumps({"status": status, "body": body, "retried": retried, "maxRetries": 3, **more}).encode()


def _json(status: int, body: Any) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})
