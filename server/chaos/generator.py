"""Plays the generator: slow, talkative, forgetful. It reports, doubles a report, fails, dies in the middle.

What it does with a delivery follows from the seed, the task and the number of the delivery. However it behaves, it
does its part in the end: a run that it accepted with 202 it finishes, and one it broke off it takes again.
"""

import asyncio
import base64
import contextlib
import hashlib
import random
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from server.chaos.exchange import Message, ask, serve, write_message
from server.chaos.link import BACKLOG
from server.clients.origin import Address

Manner: TypeAlias = Literal["answer", "picture", "accept", "fail", "refuse", "die"]
MANNERS: dict[Manner, float] = {"answer": 50, "picture": 15, "accept": 15, "fail": 6, "refuse": 6, "die": 8}
SECONDS_MIN, SECONDS_MEAN_MIN = 0.3, 4.0
HURRIED_SECONDS = 0.2
SECONDS_MAX_MEANS = 3.0  # no job takes longer than so many times the mean
# All tasks are one user's, whose changes are committed one after the other, each with a flush of the disk: where many
# are open, each takes longer, so that no more of them a second come to an end.
TASKS_A_SECOND_MAX = 12.0
REPORT_SECONDS_MAX = 5.0
FINISH_TRIES_MAX = 100
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
URL = "https://example.com/picture.png"


class PlayedGenerator:
    """`await start()`; `reports` is where progress is said to be heard, whatever the job says of a host.

    `tasks` are open at once.
    """

    def __init__(self, seed: int, tasks: int) -> None:
        self._seed = seed
        self._seconds_mean = max(SECONDS_MEAN_MIN, tasks / TASKS_A_SECOND_MAX)
        self.reports: Address | None = None
        self._server: asyncio.Server | None = None
        self._working: set[asyncio.Task[None]] = set()
        self.address: Address = ("127.0.0.1", 0)
        self.jobs = 0
        self._hurry = asyncio.Event()

    @property
    def seconds_max(self) -> float:
        """The longest that a delivery may take."""
        return SECONDS_MIN + SECONDS_MAX_MEANS * self._seconds_mean

    def hurry(self) -> None:
        """The run comes to its end: what is under way is soon done, and what comes takes little time."""
        self._hurry.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, *self.address, backlog=BACKLOG)  # type: ignore[misc]
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = (host, port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._working):
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (a server runs this in one)
        self._working.add(task)
        try:
            await serve(self._answer, reader, writer)
        finally:
            self._working.discard(task)

    async def _answer(self, request: Message) -> bytes | None:
        self.jobs += 1
        job = _Job(request, self.reports)
        number = request.headers.get("upstash-retried", "0")
        lot = hashlib.sha256(f"{self._seed} {job.task} {number}".encode()).digest()
        draw = random.Random(lot)  # noqa: S311  (has to be repeatable)
        manner = draw.choices(list(MANNERS), list(MANNERS.values()))[0]
        mean = 0.2 if self._hurry.is_set() else self._seconds_mean
        seconds = SECONDS_MIN + min(SECONDS_MAX_MEANS * mean, draw.expovariate(1 / mean))
        if manner == "accept":
            work = asyncio.create_task(self._work_on(job, draw, seconds))
            self._working.add(work)
            work.add_done_callback(self._working.discard)
            return _said("202 Accepted", {})
        if manner in ("fail", "die"):
            seconds *= draw.random()
        await self._work(job, draw, seconds)
        match manner:
            case "die":
                return None
            case "fail":
                return _said("500 Internal Server Error", {"error": "out of memory"})
            case "refuse":
                return _said("489 Refused", {"error": "not such a picture"}, {"Upstash-NonRetryable-Error": "true"})
            case "picture":
                return _said("200 OK", {"result": base64.b64encode(PICTURE).decode()})
            case _:
                return _said("200 OK", {"result": URL})

    async def _work_on(self, job: "_Job", draw: random.Random, seconds: float) -> None:
        """After the 202: nobody else will bring this run to its end, so its report is repeated until it is heard."""
        await self._work(job, draw, seconds)
        end: dict[str, object] = (
            {"status": "failed", "error": "no memory left"}
            if draw.random() < 0.1
            else {"status": "completed", "result": URL}
        )
        for _ in range(FINISH_TRIES_MAX):
            answer = await job.report(end)
            if answer is not None and answer.status < 500:
                return
            await asyncio.sleep(0.5)

    async def _work(self, job: "_Job", draw: random.Random, seconds: float) -> None:
        steps = draw.randint(1, 8)
        for step in range(steps):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds / steps):
                    await self._hurry.wait()
                    await asyncio.sleep(HURRIED_SECONDS)
            report = {"progress": round(100 * step / steps), "message": f"step {step}", "step": step, "steps": steps}
            await job.report(report)
            if draw.random() < 0.2:
                await job.report(report)


class _Job:
    """What the request says of its run, and the way to report on it."""

    def __init__(self, request: Message, reports: Address | None) -> None:
        self.task = request.headers.get("taskbeam-task-id", "")
        url = urlsplit(request.headers.get("taskbeam-progress-url", ""))
        self._host = url.netloc
        self._address = reports or (url.hostname or "127.0.0.1", url.port or 80)
        self._path = url.path
        self._token = request.headers.get("taskbeam-progress-token", "")
        self._delivery = int(request.headers.get("upstash-retried", "0")) + 1

    async def report(self, report: dict[str, object]) -> Message | None:
        """Say it once; None when nobody has answered."""
        headers = {
            "Host": self._host,
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Connection": "close",
        }
        # An end counts whichever delivery it is of: the run is over.
        told = report if "status" in report else {**report, "delivery": self._delivery}
        request = write_message(f"POST {self._path} HTTP/1.1", headers, msgspec.json.encode(told))
        return await ask(self._address, request, REPORT_SECONDS_MAX)


def _said(status: str, body: dict[str, str], headers: dict[str, str] | None = None) -> bytes:
    told = {"Content-Type": "application/json", **(headers or {})}
    return write_message(f"HTTP/1.1 {status}", told, msgspec.json.encode(body))
