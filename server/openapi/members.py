"""What the members of the types mean, in a sentence each, and the limits that are checked outside of the types."""

from typing import Any

from server.openapi.document import ProblemDetails, reference
from server.tasks.endpoints import PROMPT_CHARACTERS_MAX
from server.tasks.snapshot import Snapshot

_TASK_ID = "The task's id."
_VERSION = "Rises by one with each change of the task; the cursor of its stream."
_OUTCOME = "`applied`; `duplicate`: it was so already; `stale`: of the past, nothing changed."

MEMBERS: dict[str, dict[str, str]] = {
    "Generate": {
        "prompt": "What is to be generated; not only white space, and without NUL.",
        "params": "Go to the generator as they are.",
        "generator": "The name of one of the server's GENERATORS; null for the usual one.",
        "ticket": "Whether the answer is to bring a ticket for the task's stream.",
    },
    "Accepted": {
        "taskId": _TASK_ID,
        "status": "Of a new task.",
        "version": _VERSION,
        "statusUrl": "Where to ask.",
        "eventsUrl": "Where to be told.",
        "pollAfterMs": "When it is worth asking.",
        "ticket": "Where one was asked for: for one stream of this task, within 60 seconds.",
    },
    "SignIn": {"token": "The user's access token."},
    "Session": {
        "userId": "The user's id, a UUID.",
        "expiresAt": "When the access token ends; null where none is needed.",
        "operator": "Whether it is an operator, who may see what concerns all users.",
    },
    "SignedOut": {"outcome": "Always `signed_out`."},
    "Wanted": {
        "taskIds": "The tasks, each of them yours; 100 at most.",
        "all": "All your tasks instead, those to come included.",
    },
    "Issued": {"ticket": "For `ticket` in the query of one stream.", "expiresAt": "When it is good no more."},
    "DeleteOutcome": {"taskId": _TASK_ID, "outcome": "Always `deleted`."},
    "RetryOutcome": {"taskId": _TASK_ID, "outcome": "Always `retried`."},
    "Page": {"tasks": "Newest first.", "cursor": "Of the next page; left out on the last."},
    "Snapshot": {
        "taskId": _TASK_ID,
        "status": "`completed` and `failed` are final.",
        "result": "The picture's URL once completed; relative to the server where it keeps it and has no PUBLIC_URL.",
        "error": "Why it failed, for people.",
        "errorCode": "Why it failed, for programs.",
        "prompt": "As it was asked for.",
        "params": "As they were asked for.",
        "progress": "Percent.",
        "message": "What is being done.",
        "preview": "URL or small data URL of the unfinished picture.",
        "step": "Of `steps`.",
        "steps": "How many there are.",
        "attempt": "Which run this is, from 1.",
        "version": _VERSION,
        "statusVersion": "The version of the last change of status or attempt; what came after is mere progress.",
        "cancelled": "Whether it failed because it was cancelled.",
        "batchId": "Its batch, if any.",
        "queuePosition": "Advice: how many are before it.",
        "etaMs": "Advice: when it may be done.",
        "pollAfterMs": "Advice: when it is worth asking again.",
        "createdAt": "When it was accepted.",
        "updatedAt": "When this version was made.",
    },
    "Deliveries": {"deliveries": "Oldest first; 1,000 at most."},
    "LedgerEntry": {
        "at": "When it was taken.",
        "kind": "Who said it: `callback` is QStash's, `webhook` the generator's provider's, `report` the generator's; "
        "`lookup` was found among the provider's dead letters.",
        "outcome": _OUTCOME,
        "delivery": "Which delivery of the run it tells of, from 1.",
        "status": "What the generator answered, 0 where nothing; left out where there was no answer to tell of.",
    },
    "Delivery": {
        "status": "What the generator answered; under 100 where it could not be reached.",
        "body": "The generator's answer in base64.",
        "retried": "How many deliveries failed before this one.",
        "maxRetries": "How many may.",
        "dlqId": "There where no delivery follows.",
        "sourceMessageId": "The message that was delivered.",
    },
    "Taken": {"ok": "It need not be sent again.", "outcome": _OUTCOME},
    "Noted": {
        "ok": "It need not be sent again.",
        "outcome": _OUTCOME,
        "cancel": "The task was cancelled: the run need not go on.",
    },
    "ProgressReport": {
        "progress": "Percent; what is less than before changes nothing.",
        "message": "What is being done.",
        "preview": "URL, or data URL of at most 32 KiB, of the unfinished picture.",
        "step": "Of `steps`.",
        "steps": "How many there are.",
        "delivery": "Which delivery of the run reports, from 1; without it the current one.",
        "status": "The end of the run.",
        "result": "With `completed`: the picture's URL, or the picture as a data URL or in base64.",
        "error": "With `failed`: why.",
    },
    "WebhookBody": {"status": "Of replicate and fal.", "type": "Of a Standard Webhooks sender."},
    "Liveness": {"status": "Always `ok`."},
    "Readiness": {
        "status": "`unavailable` comes with 503.",
        "postgres": "The database.",
        "redis": "`none` where notices in Postgres are used.",
        "qstash": "Whether it took the last message.",
    },
    "Job": {"prompt": "As it was asked for; the task's params are beside it."},
    "Subscribe": {
        "type": "Which message this is.",
        "taskIds": "The tasks; the connection may follow 1,000.",
        "all": "All your tasks instead, those to come included.",
        "after": "The cursor: with `taskIds` the version of each, with `all` the last one that came.",
    },
    "Unsubscribe": {"type": "Which message this is.", "taskIds": "The tasks.", "all": "The subscription to all."},
    "Ping": {"type": "Which message this is."},
    "Auth": {"type": "Which message this is.", "token": "The access token."},
    "Pong": {"type": "Which message this is."},
    "Sync": {
        "from": "The cursor that was asked for, 0 without one.",
        "to": "The newest version, or cursor of many tasks.",
        "mode": "`live`: nothing to send; `replay`: what was missed follows; `snapshot`: the present follows.",
        "recovered": "Nothing was lost since the cursor.",
    },
    "TaskGone": {"taskId": _TASK_ID},
    "Farewell": {"reason": "Why."},
    "Subscribed": {"type": "Which message this is.", "taskIds": "Empty for all tasks.", "sync": "How it was joined."},
    "Changed": {
        "type": "Whether the status or attempt changed, or there is mere progress.",
        "task": "The whole task.",
        "cursor": "For `after`.",
    },
    "Refused": {"type": "Which message this is.", "taskIds": "Of which tasks.", "problem": "Why."},
    "Ending": {"expiresAt": "When the access token ends, and the stream with it."},
    "Expiring": {"type": "Which message this is.", "expiresAt": "When the access token ends."},
    "Authenticated": {"type": "Which message this is.", "expiresAt": "When the newer one ends; null without sign-in."},
    "Gone": {"type": "Which message this is.", "taskIds": "The tasks."},
    "Bye": {"type": "Which message this is.", "reason": "Why.", "retryMs": "When to come back, in milliseconds."},
    "ProblemDetails": {
        "type": "Always `about:blank`: `code` says which problem it is.",
        "title": "The same for every problem of this code.",
        "status": "As in the answer's status line.",
        "detail": "What is wrong with this request, for people.",
        "code": "Which problem it is, for programs; one is added now and then, none changes.",
        "requestId": "As in X-Request-Id and in the log.",
    },
}

REFINED: dict[str, dict[str, dict[str, Any]]] = {
    "Generate": {"prompt": {"minLength": 1, "maxLength": PROMPT_CHARACTERS_MAX, "pattern": r"\S"}},
    "Accepted": {
        "status": {"const": "pending"},
        "statusUrl": {"format": "uri-reference"},
        "eventsUrl": {"format": "uri-reference"},
        "pollAfterMs": {"minimum": 0},
    },
    "Wanted": {"": {"minProperties": 1, "maxProperties": 1}, "all": {"const": True}},
    # Encoded once and sent as they are, so their types are told here.
    "Page": {"tasks": {"items": reference(Snapshot)}},
    "Snapshot": {
        "params": {"type": "object"},
        "result": {"format": "uri-reference"},
        "progress": {"minimum": 0, "maximum": 100},
        "attempt": {"minimum": 1},
        "version": {"minimum": 1},
        "statusVersion": {"minimum": 1},
        "createdAt": {"format": "date-time"},
        "updatedAt": {"format": "date-time"},
    },
    "Delivery": {"body": {"contentEncoding": "base64"}},
    "Refused": {"problem": reference(ProblemDetails)},
}
