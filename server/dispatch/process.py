"""The process `taskbeam dispatcher`: the QStash API and the engine behind it, over one pool."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from server import log as logging
from server.db import close_pool, listen, open_pool, wait_until_ready
from server.dispatch.announcer import Announcer
from server.dispatch.api import Api, on_error
from server.dispatch.backlog import read_backlog
from server.dispatch.delivery import Sender
from server.dispatch.engine import Engine, OnClaim
from server.dispatch.messages import Claimed, Messages
from server.dispatch.metrics import DispatcherMetrics
from server.openapi.dispatcher import answer as description
from server.serve import run_app
from server.settings import InvalidSettings, Settings
from server.starting import Starter, redis_problems, task_starter

log = structlog.get_logger()

PROBE = "select id from dispatcher.messages limit 1"


def run_dispatcher(settings: Settings, fd: int | None = None) -> None:
    """Serve until told to end. Raises InvalidSettings when something it needs is not set, and DatabaseNotReady."""
    needed = {
        "DATABASE_URL": settings.database_url,
        "QSTASH_TOKEN": settings.qstash_token,
        "QSTASH_CURRENT_SIGNING_KEY": settings.qstash_current_signing_key,
    }
    problems = [f"{name} is not set; the dispatcher cannot work without it" for name, v in needed.items() if not v]
    problems += redis_problems(settings)
    if problems:
        raise InvalidSettings(problems)
    logging.configure(settings, "dispatcher")
    asyncio.run(wait_until_ready(settings, PROBE))
    dispatcher = Dispatcher(settings)
    run_app(
        dispatcher.app,
        host=settings.dispatcher_host,
        port=settings.dispatcher_port,
        fd=fd,
        on_exit=dispatcher.closing,
    )


class Dispatcher:
    """The ASGI application, and `closing`, to be called when the process is told to end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._closing: asyncio.Task[None] | None = None
        self.app = Starlette(lifespan=self._lifespan, exception_handlers={HTTPException: on_error, Exception: on_error})

    def closing(self) -> None:
        """Hand back what is held at once, not only when the last connection has closed."""
        if self._engine is not None and self._closing is None:
            self._closing = asyncio.create_task(self._engine.close())

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            metrics = DispatcherMetrics(settings.dispatcher_parallelism)
            pool = await open_pool(settings, application="dispatcher", waited=metrics.pool_wait.observe)
            stack.push_async_callback(close_pool, pool)
            starter = await stack.enter_async_context(task_starter(settings, pool, metrics))
            sender = Sender(settings.signing_keys[0], _private_origins(settings))
            stack.push_async_callback(sender.close)
            messages = Messages(
                pool,
                kept_days=settings.messages_kept_days,
                dead_letters_kept_days=settings.dead_letters_kept_days,
            )
            metrics.watch(pool, lambda: read_backlog(pool))
            parallelism = settings.dispatcher_parallelism
            announcer = Announcer(pool)
            self._engine = engine = Engine(messages, sender, parallelism, metrics, announcer.announce, _noting(starter))
            app.router.redirect_slashes = False
            api = Api(settings, pool, messages, engine.published, metrics)
            app.router.routes.extend([*api.routes, Route("/openapi.json", description, methods=["GET"])])
            loops = [
                asyncio.create_task(run)
                for run in (
                    listen(settings.direct_url or "", "dispatcher", lambda _: engine.poke()),
                    engine.run(),
                    announcer.run(),
                    metrics.watch_loop(),
                )
            ]
            for loop in loops:
                loop.add_done_callback(_died)
            log.info("dispatcher_started", parallelism=parallelism)
            yield
            self.closing()
            if self._closing is not None:
                await self._closing
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            log.info("dispatcher_stopped")


def _died(task: "asyncio.Task[None]") -> None:
    """A loop that ends by itself is a defect that must not stay unseen: the process without it only looks well."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("loop_died", exc_info=task.exception())
        asyncio.get_running_loop().stop()


def _private_origins(settings: Settings) -> set[str]:
    """Where the operator told us to deliver needs no second permission, on whatever network it is."""
    told = (settings.callback_base, *(generator.url for generator in settings.generator_by_name.values()))
    return {*settings.dispatcher_private_origins, *told}


def _noting(start: Starter) -> OnClaim:
    async def note(claimed: Sequence[Claimed]) -> None:
        tasks = [(*m.subject, m.deliveries) for m in claimed if not m.is_callback and m.subject is not None]
        if tasks:
            await start(tasks)

    return note
