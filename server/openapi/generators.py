"""What QStash and generators call here, as operations, and the job that a generator is called with."""

from typing import Any

import msgspec

from server import errors
from server.dispatch.callback import CALLBACK_BYTES_MAX, Taken
from server.dispatch.news import Delivery
from server.dispatch.progress import FINISH_BYTES_MAX, Noted, ProgressReport
from server.dispatch.webhook import WEBHOOK_BYTES_MAX
from server.generators import PROVIDERS
from server.openapi import values
from server.openapi.operation import IMAGES, JSON, Answer, Example, Operation, Parameter, header, query

# What brings a proof of its own may come from anywhere.
PROVING: dict[str, Any] = {"tag": "Generators", "never": (errors.ForeignOrigin,)}
ATTEMPT_SCHEMA = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
RUN = (
    query("task", "The task's id.", required=True, **values.ID_SCHEMA),
    Parameter("attempt", "query", "Which run of it.", ATTEMPT_SCHEMA, required=True),
)
RUN_VALUES = {"task": values.TASK_ID, "attempt": "1"}
OF_GENERATOR = query("generator", "The generator's name, if it has one.")


class WebhookBody(msgspec.Struct):
    """A prediction (replicate), a queue's news (fal), or an event with `type` and `data` (standard)."""

    status: str | None = None
    type: str | None = None


class Job(msgspec.Struct):
    """What a generator gets, unless GENERATOR_BODY makes something else of it."""

    prompt: str


GENERATORS = (
    Operation(
        path="/api/generate/callback",
        method="post",
        id="takeCallback",
        summary="The callback of QStash, signed over the raw body",
        about="QStash was told this URL with the task; the signature binds it, so it cannot be used for another.",
        parameters=(*RUN, OF_GENERATOR),
        body=Delivery,
        body_bytes_max=CALLBACK_BYTES_MAX,
        answers={200: Answer("Taken note of.", Taken)},
        problems=(
            errors.BadSignature,
            errors.InvalidParameter,
            errors.InvalidBody,
            errors.TooLarge,
            errors.UnknownTask,
            errors.Unavailable,
        ),
        security="qstashSignature",
        examples=(
            Example(
                name="delivered",
                about="The generator answered with a picture",
                status=200,
                query=RUN_VALUES,
                headers={"Upstash-Signature": values.SIGNATURE},
                body={"status": 200, "body": values.ANSWER_BASE64, "retried": 0, "maxRetries": 3},
                answer={"ok": True, "outcome": "applied"},
            ),
        ),
        **PROVING,
    ),
    Operation(
        path="/api/generate/progress",
        method="post",
        id="reportProgress",
        summary="A generator's report, with the token of its run",
        about="The token comes with the job, in Taskbeam-Progress-Token. A report may have 64 KiB; only an end with "
        "its picture may have more.",
        body=ProgressReport,
        body_bytes_max=FINISH_BYTES_MAX,
        answers={200: Answer("Taken note of.", Noted)},
        problems=(
            errors.BadToken,
            errors.InvalidBody,
            errors.TaskNotFound,
            errors.TooLarge,
            errors.Unavailable,
        ),
        security="runToken",
        examples=tuple(
            Example(
                name=name,
                about=about,
                status=200,
                headers={"Authorization": f"Bearer {values.RUN_TOKEN}"},
                body=body,
                answer={"ok": True, "outcome": "applied", "cancel": False},
            )
            for name, about, body in (
                ("progress", "How far it is", {"progress": 40, "message": "Adding the light"}),
                ("completed", "The end", {"status": "completed", "result": values.PICTURE}),
                ("failed", "The end, without a picture", {"status": "failed", "error": "Out of paint"}),
            )
        ),
        **PROVING,
    ),
    Operation(
        path="/api/generate/webhook/{provider}",
        method="post",
        id="takeWebhook",
        summary="The webhook of a generator that calls back itself, signed as its provider signs",
        about="The generator was told this URL with its job. Two proofs are asked for: the run's token in the URL, and "
        "the provider's signature over the raw body.",
        parameters=(
            Parameter("provider", "path", "Whose webhook it is.", {"type": "string", "enum": list(PROVIDERS)}, True),
            *RUN,
            OF_GENERATOR,
            *(
                header(name, f"Of {whose}.")
                for whose, names in {
                    "standard and replicate": ("Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"),
                    "fal": tuple(f"X-Fal-Webhook-{n}" for n in ("Request-Id", "User-Id", "Timestamp", "Signature")),
                }.items()
                for name in names
            ),
        ),
        body=WebhookBody,
        body_bytes_max=WEBHOOK_BYTES_MAX,
        answers={200: Answer("Taken note of.", Taken)},
        problems=(
            errors.InvalidParameter,
            errors.InvalidBody,
            errors.BadToken,
            errors.BadSignature,
            errors.UnknownProvider,
            errors.WebhookNotConfigured,
            errors.TaskNotFound,
            errors.TooLarge,
            errors.Unavailable,
        ),
        security="webhookToken",
        examples=(
            Example(
                name="standard",
                about="A Standard Webhooks sender has the picture",
                status=200,
                path={"provider": "standard"},
                query={**RUN_VALUES, "token": values.HOOK_TOKEN},
                headers={
                    "Webhook-Id": values.WEBHOOK_ID,
                    "Webhook-Timestamp": values.WEBHOOK_TIME,
                    "Webhook-Signature": values.SIGNATURE,
                },
                body={"type": "image.completed", "data": {"url": values.PICTURE}},
                answer={"ok": True, "outcome": "applied"},
            ),
        ),
        **PROVING,
    ),
)

JOB = Operation(
    path="",
    method="post",
    id="runJob",
    tag="Generators",
    summary="A job, as a generator of yours gets it from QStash",
    about="Sent to GENERATOR_URL. Any answer but a 2xx is tried again.",
    parameters=(
        header("Taskbeam-Task-Id", "The task's id."),
        header("Taskbeam-Attempt", "Which run of it."),
        header("Taskbeam-Progress-Url", "Where it may report how far it is."),
        header("Taskbeam-Progress-Token", "The token to report with."),
        header("Upstash-Signature", "QStash's signature of the job."),
        header("Upstash-Message-Id", "The message that carries it."),
        header("Upstash-Retried", "How many deliveries of this run failed before."),
    ),
    body=Job,
    answers={
        200: Answer("The picture itself, or JSON that holds it, as a URL or in base64.", f"{IMAGES}, {JSON}"),
        202: Answer("Accepted: the generator ends the task at Taskbeam-Progress-Url, or by its webhook."),
        489: Answer("It will never work: not tried again.", None, ("Upstash-NonRetryable-Error",)),
    },
)
