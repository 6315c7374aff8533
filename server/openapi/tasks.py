"""Tasks, their streams and their pictures, as operations."""

from server import errors
from server.openapi import values
from server.openapi.document import SCHEMAS
from server.openapi.operation import IMAGES, Answer, Example, Operation, Parameter, header, query
from server.push.poll import WAIT_SECONDS_MAX
from server.push.sse import TASKS_A_STREAM_MAX
from server.results import NAME
from server.tasks.endpoints import (
    GENERATE_BYTES_MAX,
    PAGE_DEFAULT,
    PAGE_MAX,
    Accepted,
    DeleteOutcome,
    Generate,
    Page,
    RetryOutcome,
)
from server.tasks.ledger import Deliveries
from server.tasks.snapshot import Snapshot
from server.tasks.state import STATUSES
from server.tasks.tickets import BODY_BYTES_MAX as TICKET_BYTES_MAX
from server.tasks.tickets import Issued, Wanted

TASK = query("taskId", "The task's id.", required=True, **values.ID_SCHEMA)

STREAM_ABOUT = """\
`retry:` comes first, then `event: sync` with `{"from","to","mode","recovered"}`: where this stream joins (`mode` is \
`live`, `replay` or `snapshot`) and whether anything was lost since the cursor. Then what lies after the cursor, then \
what happens: `event: status` and `event: progress`, `id:` the version (one task) or an opaque cursor (many), `data:` \
the task.

After the end of all named tasks the stream ends; asking again with that cursor is answered with 204, which keeps \
EventSource from coming back. A stream of all your tasks does not end. `event: bye` says that the server is going, \
`event: refused` carries a problem in place of a status code that would close EventSource for good; both come with a \
`retry:`. Where a task is deleted, `event: refused` ends the stream that follows it, and `event: deleted` with \
`{"taskId"}` tells a stream of many. With sign-in a stream ends with its access token: `event: auth_expiring` with \
`{"expiresAt"}` comes a minute before, `event: auth_expired` with a problem at the end. A comment comes every 15 \
seconds."""

SOCKET_ABOUT = """\
You send `{"type":"subscribe","taskIds":[…],"after":{"ID":version}}`; for all your tasks, those to come included, \
`{"type":"subscribe","all":true,"after":"cursor"}`; `{"type":"unsubscribe","taskIds":[…]}` or `"all":true`; \
`{"type":"ping"}`; with sign-in `{"type":"auth","token":"…"}`, a newer access token of the same user.

The server sends `{"type":"subscribed","taskIds","sync"}` with `sync` as in the stream of events, then \
`{"type":"status"|"progress","task","cursor"}`; `{"type":"refused","taskIds","problem"}`, which ends nothing but what \
it names (a task that is deleted, for one); `{"type":"deleted","taskIds"}`, to those who follow all; \
`{"type":"pong"}`; with sign-in `{"type":"auth_expiring","expiresAt"}` a minute before the access token ends, \
`{"type":"authenticated","expiresAt"}` for a newer one, and at the end a `refused` that names no task, and close 1008; \
and `{"type":"bye","reason","retryMs"}` before it closes with 1012. What is not JSON \
closes the connection with 1007, binary with 1003, a message of more than 64 KiB with 1009. A handshake that is \
refused is answered as any request; one that asks for no WebSocket finds nothing here."""

TICKET_ABOUT = """\
It goes into the query of a stream, `?ticket=…`, of `/api/generate/events` or `/api/generate/ws` and of nothing else, \
and is spent by it: once, within 60 seconds, for the tasks it was asked for. Each of them has to be yours. A browser's \
EventSource comes back by itself with a ticket that is spent: open a new one with a new ticket and `after=` instead, \
as `follow` of the package does with `ticket`. Of more than 200 unspent tickets of one user the oldest go."""

SOCKET_SCRIPT = f"""\
const socket = new WebSocket('ws://localhost:8000/api/generate/ws');
socket.onmessage = ({{ data }}) => console.log(JSON.parse(data));
socket.onopen = () => socket.send('{{"type":"subscribe","taskIds":["{values.TASK_ID}"]}}');"""

TASKS = (
    Operation(
        path="/api/generate",
        method="post",
        id="createTask",
        tag="Tasks",
        summary="Accept a task",
        body=Generate,
        body_bytes_max=GENERATE_BYTES_MAX,
        answers={202: Answer("The task was accepted: it will end.", Accepted, ("Location", "Retry-After"))},
        problems=(
            errors.InvalidBody,
            errors.InvalidPrompt,
            errors.UnknownGenerator,
            errors.Unauthorized,
            errors.TooLarge,
            errors.UnsupportedMediaType,
            errors.Unavailable,
        ),
        examples=(
            Example(
                name="prompt",
                about="A prompt and nothing else",
                status=202,
                body={"prompt": values.PROMPT},
                answer=values.as_json(values.ACCEPTED),
            ),
            Example(
                name="params",
                about="With what the generator takes besides",
                status=202,
                body={"prompt": values.PROMPT, "params": {"seed": 7, "size": "1024x1024"}},
                answer=values.as_json(values.ACCEPTED),
            ),
            Example(
                name="ticket",
                about="With a ticket for its stream",
                status=202,
                body={"prompt": values.PROMPT, "ticket": True},
                answer=values.as_json(values.ACCEPTED_WITH_TICKET),
            ),
        ),
    ),
    Operation(
        path="/api/generate",
        method="get",
        id="listTasks",
        tag="Tasks",
        summary="List your tasks, newest first",
        parameters=(
            Parameter(
                "limit",
                "query",
                "How many.",
                {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
            ),
            query("cursor", "From the page before."),
            query("status", "Only tasks of this status.", enum=list(STATUSES)),
        ),
        answers={200: Answer("A page.", Page)},
        problems=(errors.InvalidParameter, errors.InvalidCursor, errors.Unavailable),
        examples=(
            Example(name="newest", about="The newest one", status=200, query={"limit": "1"}, answer=values.PAGE),
            Example(
                name="failed",
                about="Those that failed",
                status=200,
                query={"status": "failed"},
                answer=values.PAGE_OF_FAILED,
            ),
        ),
    ),
    Operation(
        path="/api/generate",
        method="delete",
        id="deleteTask",
        tag="Tasks",
        summary="Delete a task with its log and its picture; a running one is cancelled first",
        parameters=(TASK,),
        answers={200: Answer("It is gone.", DeleteOutcome)},
        problems=(errors.InvalidParameter, errors.TaskNotFound, errors.TaskInUse, errors.Unavailable),
        examples=(
            Example(
                name="task",
                about="A task",
                status=200,
                query={"taskId": values.TASK_ID},
                answer={"taskId": values.TASK_ID, "outcome": "deleted"},
            ),
        ),
    ),
    Operation(
        path="/api/generate/deliveries",
        method="get",
        id="listDeliveries",
        tag="Tasks",
        summary="What was said of a task and verified, oldest first, and what became of each",
        about="Callbacks, webhooks, reports that ended a run, and what a look at the provider found. A good result "
        "that came too late is kept, and stands here as `stale`.",
        parameters=(TASK,),
        answers={200: Answer("The ledger.", Deliveries)},
        problems=(errors.InvalidParameter, errors.TaskNotFound, errors.Unavailable),
        examples=(
            Example(
                name="ended",
                about="Of a task that its generator ended",
                status=200,
                query={"taskId": values.TASK_ID},
                answer=values.as_json(values.DELIVERIES),
            ),
        ),
    ),
    Operation(
        path="/api/generate/retry",
        method="post",
        id="retryTask",
        tag="Tasks",
        summary="Try a failed task again",
        about="It gets a new attempt. Where a good result of an earlier one came too late, and is kept, the attempt "
        "completes with that at once, and nothing is generated again.",
        parameters=(TASK,),
        answers={200: Answer("It has a new attempt.", RetryOutcome)},
        problems=(
            errors.InvalidParameter,
            errors.TaskNotFound,
            errors.NotFailed,
            errors.AttemptsExhausted,
            errors.Unavailable,
        ),
        examples=(
            Example(
                name="failed",
                about="A task that failed",
                status=200,
                query={"taskId": values.TASK_ID},
                answer={"taskId": values.TASK_ID, "outcome": "retried"},
            ),
        ),
    ),
    Operation(
        path="/api/generate/status",
        method="get",
        id="getTask",
        tag="Tasks",
        summary="The snapshot of a task, now or as soon as there is news",
        parameters=(
            TASK,
            Parameter(
                "wait",
                "query",
                "Hold the answer back until the version is above `after`, this many seconds at most, and never longer "
                f"than {WAIT_SECONDS_MAX}.",
                {"type": "integer", "minimum": 0, "maximum": 9999, "default": 0},
            ),
            Parameter(
                "after",
                "query",
                "The version that is known.",
                {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0},
            ),
            header("If-None-Match", "The ETag of the last answer."),
        ),
        answers={
            200: Answer(
                "The snapshot; Retry-After only while it is not at its end.", Snapshot, ("ETag", "Retry-After")
            ),
            304: Answer("It has not changed.", None, ("ETag", "Retry-After")),
        },
        problems=(errors.InvalidParameter, errors.InvalidCursor, errors.TaskNotFound, errors.Unavailable),
        examples=(
            Example(
                name="now",
                about="As it is now",
                status=200,
                query={"taskId": values.TASK_ID},
                answer=values.as_json(values.PENDING),
            ),
            Example(
                name="news",
                about="As soon as it is past version 1, or after 30 seconds",
                status=200,
                query={"taskId": values.TASK_ID, "wait": "30", "after": "1"},
                answer=values.as_json(values.COMPLETED),
            ),
            Example(
                name="unchanged",
                about="Only if it has changed",
                status=304,
                query={"taskId": values.TASK_ID},
                headers={"If-None-Match": 'W/"1"'},
            ),
        ),
    ),
    Operation(
        path="/results/{name}",
        method="get",
        id="getPicture",
        tag="Tasks",
        summary="A picture that is kept here; whoever knows its name may see it",
        parameters=(
            Parameter(
                "name", "path", "As in the task's result.", {"type": "string", "pattern": f"^{NAME.pattern}$"}, True
            ),
        ),
        answers={200: Answer("The picture, for ever the same.", IMAGES, ("ETag",))},
        problems=(errors.NotFound,),
        examples=(Example(name="picture", about="A picture", status=200, path={"name": values.NAME}),),
    ),
)

STREAMS = (
    Operation(
        path="/api/generate/ticket",
        method="post",
        id="createTicket",
        tag="Streams",
        summary="A ticket for one stream, where a browser can send neither header nor cookie",
        about=TICKET_ABOUT,
        body=Wanted,
        body_bytes_max=TICKET_BYTES_MAX,
        answers={201: Answer("The ticket.", Issued)},
        problems=(
            errors.InvalidBody,
            errors.TaskNotFound,
            errors.TooLarge,
            errors.UnsupportedMediaType,
            errors.Unavailable,
        ),
        examples=(
            Example(
                name="tasks",
                about="For named tasks",
                status=201,
                body={"taskIds": [values.TASK_ID]},
                answer=values.as_json(values.ISSUED),
            ),
            Example(
                name="all",
                about="For all your tasks",
                status=201,
                body={"all": True},
                answer=values.as_json(values.ISSUED),
            ),
        ),
    ),
    Operation(
        path="/api/generate/events",
        method="get",
        id="followTasks",
        tag="Streams",
        summary="Follow one task, several, or all of yours, as server-sent events",
        about=STREAM_ABOUT,
        parameters=(
            Parameter(
                "taskId",
                "query",
                "May repeat; without it all your tasks.",
                {"type": "array", "items": values.ID_SCHEMA, "maxItems": TASKS_A_STREAM_MAX},
            ),
            query("ticket", "In place of any other proof of who asks; without `taskId` its tasks are followed."),
            query(
                "after",
                "The cursor: the version (one task) or id (many) of the last event seen.",
                pattern="^s?[0-9]{1,16}$",
            ),
            header("Last-Event-ID", "The cursor, as a browser sends it when it reconnects; beats `after`."),
        ),
        answers={
            200: Answer("The stream.", "text/event-stream"),
            204: Answer("All the tasks named had ended at the cursor."),
        },
        problems=(errors.InvalidParameter, errors.InvalidCursor, errors.InvalidTicket, errors.TaskNotFound),
        examples=(
            Example(name="one", about="One task", status=200, query={"taskId": values.TASK_ID}, answer=values.STREAM),
            Example(
                name="ticket",
                about="What a ticket is for",
                status=200,
                query={"ticket": values.TICKET},
                answer=values.STREAM,
            ),
            Example(
                name="ended",
                about="After its last event",
                status=204,
                query={"taskId": values.TASK_ID, "after": "2"},
            ),
            Example(name="all", about="All your tasks", status=200, answer=values.STREAM_OF_ALL),
        ),
        more={"x-itemSchema": {"$ref": SCHEMAS + "StreamEvent"}},
    ),
    Operation(
        path="/api/generate/ws",
        method="get",
        id="openSocket",
        tag="Streams",
        summary="Follow many tasks over one WebSocket",
        about=SOCKET_ABOUT,
        parameters=(query("ticket", "In place of any other proof of who asks; only its tasks can be followed."),),
        answers={101: Answer("The connection is a WebSocket now.")},
        problems=(errors.NotFound,),
        examples=(Example(name="subscribe", about="From a page", status=101, script=SOCKET_SCRIPT),),
        more={
            "x-receives": {"$ref": SCHEMAS + "SocketRequest"},
            "x-sends": {"$ref": SCHEMAS + "SocketMessage"},
        },
    ),
)
