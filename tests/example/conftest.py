"""A Supabase project of the example's, QStash, the image API, Taskbeam over the project's database, and both apps."""

import asyncio
import contextlib
import io
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from server.embedded.redis import EmbeddedRedis
from server.migrate import create_login_role, migrate
from tests.clusters import Elsewhere
from tests.conftest import Deploy
from tests.deployment import CURRENT_KEY, NEXT_KEY, TOKEN, Database, Deployment
from tests.example.apps import BEFORE, NextApp, after, before, installed, packages
from tests.example.supabase import PUBLISHABLE_KEY, SECRET_KEY, Person, Supabase
from tests.receiver import Receiver, Reply, Request

ADA = Person("ada@example.com")
BEN = Person("ben@example.com")
# The app asks once a second; here ten times, and whatever else is counted in seconds takes a tenth of it.
POLL_SECONDS = 0.1
SLOW = "the picture of second 25"
SLOW_SECONDS = 25 * POLL_SECONDS


class ImageApi:
    """Answers {"url": …}: at once, or for SLOW after 25 of the app's seconds, and not before `gate` is set."""

    def __init__(self, receiver: Receiver) -> None:
        self.url = receiver.on("/generate", self._generate)
        self._picture_url = receiver.on("/picture.png", Reply(200, _png(), {"Content-Type": "image/png"}))
        self.gate = asyncio.Event()

    async def _generate(self, request: Request) -> Reply:
        if request.json()["prompt"] == SLOW:
            await asyncio.sleep(SLOW_SECONDS)
            await self.gate.wait()
        return Reply(200, f'{{"url":"{self._picture_url}"}}'.encode(), {"Content-Type": "application/json"})


def _png() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(written, "PNG")
    return written.getvalue()


@dataclass
class World:
    """`polling` and `pushed` are the app before and after, built; neither they nor Taskbeam have been started."""

    project: Elsewhere
    supabase: Supabase
    images: ImageApi
    polling: NextApp
    pushed: NextApp
    taskbeam: Deployment
    settings: dict[str, str]

    async def adopt(self) -> None:
        """Taskbeam over the app's table: migrated, and its web process running."""
        await migrate(self.project.owner_url)
        async with self.project.connect() as postgres:
            await create_login_role(postgres)
        await self.taskbeam.web.start(**self.settings)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    return installed()


@pytest.fixture
async def project(supabase: Elsewhere) -> Elsewhere:
    """As the app made it, with its users and a picture from before."""
    async with supabase.connect(superuser=True) as admin:
        for person in (ADA, BEN):
            await admin.execute("insert into auth.users (id, email) values ($1, $2)", person.id, person.email)
    async with supabase.connect() as postgres:
        for file in sorted((BEFORE / "supabase/migrations").iterdir()):
            await postgres.execute(file.read_text())
        await postgres.execute(
            """insert into image_generations (user_id, task_id, status, prompt, result)
               values ($1, 'old', 'completed', 'an old picture', 'https://images.example.com/old.png')""",
            ADA.id,
        )
    return supabase


@pytest.fixture
async def world(
    node_modules: Path, project: Elsewhere, redis_server: EmbeddedRedis, deploy: Deploy, folder: Path, tmp_path: Path
) -> AsyncIterator[World]:
    async with Receiver() as outside, contextlib.AsyncExitStack() as ending:
        images, supabase = ImageApi(outside), Supabase(project, outside, ADA, BEN)
        polling, pushed = NextApp(before(tmp_path / "before")), NextApp(after(tmp_path / "after"))
        for end in (outside.listener.close, polling.stop, pushed.stop):
            ending.callback(end)
        # Ports only, for now: each has to know the others'.
        name = secrets.token_hex(6)
        database = Database(name, project.url, project.owner_url)
        taskbeam = Deployment(database, redis_server.url(), folder / name, dispatchers=0, generator=False)
        ending.callback(taskbeam.stop)
        private = ",".join([polling.url, pushed.url, outside.origin, taskbeam.web.url])
        qstash = await deploy(webs=0, generator=False, env={"DISPATCHER_PRIVATE_ORIGINS": private})
        both = {"QSTASH_URL": qstash.dispatcher.url, "GENERATOR_URL": images.url}
        env = {
            **both,
            "QSTASH_TOKEN": TOKEN,
            "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
            "QSTASH_NEXT_SIGNING_KEY": NEXT_KEY,
            "NEXT_PUBLIC_SUPABASE_URL": supabase.url,
            "NEXT_PUBLIC_SUPABASE_PUBLISHABLE_KEY": PUBLISHABLE_KEY,
            "NEXT_PUBLIC_POLL_MS": str(round(POLL_SECONDS * 1000)),
            "SUPABASE_SECRET_KEY": SECRET_KEY,
            "TASKBEAM_URL": taskbeam.web.url,  # the app that polls knows nothing of it
        }
        for app in (polling, pushed):
            packages(app.folder, node_modules)
        await asyncio.gather(*(app.build(env) for app in (polling, pushed)))
        signed_in = {"AUTH_ISSUER": supabase.issuer, "AUTH_COOKIE": supabase.cookie}
        yield World(project, supabase, images, polling, pushed, taskbeam, both | signed_in)
