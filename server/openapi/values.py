"""The values that the examples have in common. A test that runs one puts real ones in their place."""

import base64
import datetime as dt

import msgspec

from server.tasks import snapshot
from server.tasks.endpoints import Accepted, Page
from server.tasks.ledger import Deliveries, LedgerEntry
from server.tasks.snapshot import Snapshot
from server.tasks.tickets import Issued

ID_SCHEMA = {"type": "string", "pattern": f"^{snapshot.TASK_ID.pattern}$"}
TASK_ID = "q7Zt0m3YxJc8VdRk2HnPfA"
PROMPT = "A fox at sunset"
PICTURE = "https://cdn.example.com/fox.png"
NAME = "nD3mVq0sXw8Kp1TzRb6YcE2f.png"
RUN_TOKEN = f"{TASK_ID}.1.RUN_TOKEN"
HOOK_TOKEN = f"{TASK_ID}.1.WEBHOOK_TOKEN"
SIGNATURE = "SIGNATURE"
TICKET = "TICKET-of-43-characters-is-opaque-and-spent"
WEBHOOK_ID = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"
WEBHOOK_TIME = "1700000000"
BEGAN = dt.datetime(2027, 1, 15, 9, 30, tzinfo=dt.UTC)

PENDING = Snapshot(
    task_id=TASK_ID,
    status="pending",
    prompt=PROMPT,
    params=msgspec.Raw(b'{"seed":7}'),
    attempt=1,
    version=1,
    status_version=1,
    poll_after_ms=1000,
    created_at=BEGAN,
    updated_at=BEGAN,
)
COMPLETED = msgspec.structs.replace(
    PENDING,
    status="completed",
    result=PICTURE,
    progress=100,
    version=2,
    status_version=2,
    poll_after_ms=None,
    updated_at=BEGAN + dt.timedelta(seconds=4),
)
FAILED = msgspec.structs.replace(
    PENDING,
    status="failed",
    error="Out of paint",
    error_code="generator_error",
    version=2,
    status_version=2,
    poll_after_ms=None,
    updated_at=BEGAN + dt.timedelta(seconds=4),
)
STATUS_URL = f"/api/generate/status?taskId={TASK_ID}"
EVENTS_URL = f"/api/generate/events?taskId={TASK_ID}"
ACCEPTED = Accepted(TASK_ID, "pending", 1, STATUS_URL, EVENTS_URL, 1000)
ACCEPTED_WITH_TICKET = msgspec.structs.replace(ACCEPTED, ticket=TICKET)
ISSUED = Issued(TICKET, BEGAN + dt.timedelta(seconds=60))
DELIVERIES = Deliveries([LedgerEntry(at=BEGAN + dt.timedelta(seconds=4), kind="report", outcome="applied", delivery=1)])


def as_json(value: Accepted | Deliveries | Issued | Page | Snapshot) -> object:
    """The value as its JSON is read."""
    return msgspec.json.decode(msgspec.json.encode(value))


PAGE = as_json(Page([msgspec.Raw(msgspec.json.encode(COMPLETED))], "WyIyMDI3LTAxLTE1VDA5OjMwOjAwWiIsInE3WnQwbTNZ"))
PAGE_OF_FAILED = as_json(Page([msgspec.Raw(msgspec.json.encode(FAILED))]))
STREAM = (
    "retry: 1420\n\n"
    'event: sync\ndata: {"from":0,"to":1,"mode":"snapshot","recovered":false}\n\n'
    f"id: 1\nevent: status\ndata: {msgspec.json.encode(PENDING).decode()}\n\n"
)
STREAM_OF_ALL = (
    "retry: 1420\n\n"
    'event: sync\ndata: {"from":"s0","to":"s1","mode":"snapshot","recovered":false}\n\n'
    f"id: s1\nevent: status\ndata: {msgspec.json.encode(PENDING).decode()}\n\n"
)
ANSWER_BASE64 = base64.b64encode(msgspec.json.encode({"result": PICTURE})).decode()
