"""The built-in generator: an image API like any other that is slow, behind HTTP and nothing else.

`POST /` takes `{"prompt", …params}` and answers `{"result": "/results/….png"}` when the picture is there. On the
way it reports to the URL in `Taskbeam-Progress-Url`, with the token beside it. Parameters it knows: `seed`, and
`simulate` to see how failures look: `error` (500, worth a retry), `refuse` (489, not worth one), `slow` (takes
five times as long).
"""

import asyncio
import base64
import secrets
import time
from typing import Any, Literal

import httpx
import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server import results
from server.body import decode_json, read_body
from server.dispatch.signature import BadSignature, verify
from server.errors import Problem
from server.generator import draw
from server.settings import Settings

log = structlog.get_logger()

JOB_BYTES_MAX = 131_072
DRAWING_AT_ONCE = 2
JOBS_AT_ONCE = 64
# Longer than our dispatcher waits for its deliveries, shorter than the server waits for its requests.
LEAVE_SECONDS = 0.95
REPORT_SECONDS_MAX = 2.0
REPORTS_A_SECOND = 2
# A picture that cannot be stored is tried again this often, for this share of the time a request may take.
ROOM_PERIOD_SECONDS = 1.0
ROOM_SHARE = 0.8
STAGES = ("Reading the prompt", "Mixing the colours", "Painting the sky", "Raising the hills", "Adding the light")


class Job(msgspec.Struct):
    prompt: str
    seed: int = 0
    simulate: Literal["error", "refuse", "slow"] | None = None


class Generator:
    """The ASGI application is `app`; `closing` is to be called when the process is told to end."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.generator_seconds
        # The dispatcher gives up a request a little later than this, and asks again.
        self._room_seconds = max(0.0, settings.generator_timeout_seconds * ROOM_SHARE - settings.generator_seconds)
        self._folder = settings.data_dir / "results"
        self._keys = settings.signing_keys
        self._url = settings.generator_url or ""
        self._client = httpx.AsyncClient(timeout=REPORT_SECONDS_MAX, trust_env=False)
        self._drawing = asyncio.Semaphore(DRAWING_AT_ONCE)
        self._jobs: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.app = Starlette(
            routes=[
                Route("/", self.generate, methods=["POST"]),
                Route("/healthz", self.alive, methods=["GET"]),
                Route("/readyz", self.alive, methods=["GET"]),
            ]
        )

    async def alive(self, _: Request) -> Response:
        return _answer(200, {"status": "ok"})

    async def generate(self, request: Request) -> Response:
        """Draw the picture of one job."""
        try:
            body = await read_body(request, JOB_BYTES_MAX)
            if self._keys:
                token = request.headers.get("upstash-signature", "")
                verify(token, body, self._url, self._keys, time.time())
            job = decode_json(body, Job)
        except BadSignature as error:
            return _answer(401, {"error": f"signature: {error.reason}"})
        except Problem as problem:
            return _refusal(problem.detail)
        if job.simulate == "refuse":
            return _refusal("This prompt is refused, as was asked for")
        if len(self._jobs) >= JOBS_AT_ONCE:
            return _answer(429, {"error": "too many jobs at once"}, {"Retry-After": "2"})
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (a request is served in one)
        self._jobs.add(task)
        try:
            return await self._work(job, Reports(self._client, request))
        except asyncio.CancelledError:
            if not self._closing:
                raise
            return _answer(503, {"error": "this generator is being restarted"}, {"Retry-After": "1"})
        finally:
            self._jobs.discard(task)

    def closing(self) -> None:
        """Leave what is not finished in a moment: our dispatcher has handed its messages back by then, uncounted."""
        self._closing = True
        asyncio.get_running_loop().call_later(LEAVE_SECONDS, lambda: [job.cancel() for job in tuple(self._jobs)])

    async def _work(self, job: Job, reports: "Reports") -> Response:
        began = time.monotonic()
        seconds = self._seconds * (5 if job.simulate == "slow" else 1)
        if await reports.send(0, STAGES[0]):
            return _answer(200, {"cancelled": True})
        if job.simulate == "error":
            return _answer(500, {"error": "This generator fails, as was asked for"})
        async with self._drawing:
            image = await asyncio.to_thread(draw.paint, job.prompt, seed=job.seed)
            preview = await asyncio.to_thread(draw.preview, image)
        data_url = "data:image/jpeg;base64," + base64.b64encode(preview).decode()
        steps = max(1, int(seconds * REPORTS_A_SECOND))
        for step in range(1, steps):
            await asyncio.sleep(max(0.0, began + seconds * step / steps - time.monotonic()))
            share = step / steps
            stage = STAGES[min(len(STAGES) - 1, int(share * len(STAGES)))]
            shown = data_url if share >= 0.5 else None
            if await reports.send(int(share * 100), stage, step=step, steps=steps, preview=shown):
                return _answer(200, {"cancelled": True})
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        return await self._keep(await asyncio.to_thread(draw.encode, image), reports)

    async def _keep(self, picture: bytes, reports: "Reports") -> Response:
        """Store it. A disk that is full need not cost the task: there may be room again in a moment."""
        name = f"{secrets.token_urlsafe(24)}.png"
        deadline = time.monotonic() + self._room_seconds
        while True:
            try:
                await asyncio.to_thread(results.save, self._folder, name, picture)
                return _answer(200, {"result": f"/results/{name}"})
            except OSError as error:
                log.warning("picture_not_stored", reason=error.strerror)
                if time.monotonic() > deadline:
                    return _answer(507, {"error": f"The picture could not be stored: {error.strerror}"})
            if await reports.send(99, "Waiting for room to store the picture"):
                return _answer(200, {"cancelled": True})
            await asyncio.sleep(ROOM_PERIOD_SECONDS)


class Reports:
    """Tells the task how far its run is. A report that fails costs nothing but itself."""

    def __init__(self, client: httpx.AsyncClient, request: Request) -> None:
        self._client = client
        self._task_id = request.headers.get("taskbeam-task-id")
        self._url = request.headers.get("taskbeam-progress-url", "")
        self._token = request.headers.get("taskbeam-progress-token", "")
        retried = request.headers.get("upstash-retried", "0")
        self._delivery = int(retried[:6]) + 1 if retried.isascii() and retried.isdigit() else 1

    async def send(self, progress: int, message: str, **details: Any) -> bool:
        """Report; True when the run need not go on."""
        if not self._url or not self._token:
            return False
        report = {"progress": progress, "message": message, "delivery": self._delivery, **details}
        try:
            response = await self._client.post(
                self._url, json=report, headers={"Authorization": f"Bearer {self._token}"}
            )
            said = response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.warning("report_failed", task_id=self._task_id, reason=type(error).__name__)
            return False
        return isinstance(said, dict) and said.get("cancel") is True


def _answer(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json", headers=headers)


def _refusal(reason: str) -> Response:
    """QStash's way to say that no retry will help."""
    return _answer(489, {"error": reason}, {"Upstash-NonRetryable-Error": "true"})
