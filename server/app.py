"""START HERE: the web application. What answers where, what runs beside it, and how the parts are put together.

Everything is built here and handed on by argument: no module holds state. The other processes are put together
in dispatch/process.py and generator/process.py; cli.py starts them all.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from qstash import AsyncQStash
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from server.admission import admission
from server.contradictions import far_qstash_problems
from server.db import DATABASE_ERRORS, Pool, close_pool, listen, open_pool
from server.dispatch.callback import Callback
from server.dispatch.destination import origin_of
from server.dispatch.finish import Finish
from server.dispatch.lookup import Lookup
from server.dispatch.outbox import Outbox
from server.dispatch.progress import Progress
from server.dispatch.reconciler import Reconciler
from server.dispatch.settle import Settle
from server.dispatch.webhook import Webhook
from server.fleet.board import Place
from server.fleet.siblings import Figures, Siblings
from server.guard import Guard
from server.health import Liveness, Postgres, Readiness, Redis, State
from server.identity.identity import Identity
from server.identity.session import Sessions
from server.metrics import CONTENT_TYPE, Metrics
from server.openapi import web as openapi
from server.push.bus import Bus, NoticeBus, RedisBus
from server.push.follow import Following
from server.push.hub import Hub
from server.push.poll import Poll
from server.push.publisher import Publisher, outlet
from server.push.rights import Rights
from server.push.sse import EventStreams
from server.push.stream import Pulse, Streams
from server.push.tick import NOTICE_CHANNEL, Tick
from server.push.turns import Turns
from server.push.ws import Sockets
from server.results import PATH, Results
from server.retention import Retention
from server.routing import Routes
from server.settings import InvalidSettings, Settings
from server.starting import redis_problems
from server.tasks.access import Access
from server.tasks.backlog import read_backlog
from server.tasks.endpoints import TaskEndpoints
from server.tasks.expiry import Expiry
from server.tasks.pace import Pace
from server.tasks.reading import TaskReader
from server.tasks.retries import Retries
from server.tasks.snapshot import TaskChange
from server.tasks.store import Deleted, TaskStore
from server.tasks.tickets import TicketDesk, Tickets
from server.upkeep import Upkeep

log = structlog.get_logger()

HERE = Path(__file__).parent
# In a checkout the folder lies beside `server`; in an installed package inside it.
STATIC = next(f for f in (HERE.parent / "static", HERE / "static") if f.is_dir())
PROBE = "select version from taskbeam.changes limit 1"
BUS_SECONDS = 1.0


class Web:
    """The application, and `closing`, to be called when the process is told to end."""

    def __init__(self, settings: Settings, place: Place | None = None) -> None:
        _require(settings)
        self.settings = settings
        self._place = place
        self.metrics = Metrics()
        self.hub: Hub | None = None
        # A bare router: the outermost layer of a Starlette application would answer errors before the guard does.
        self._router = Routes(lifespan=self._lifespan, redirect_slashes=False)
        self.identity = Identity(settings, self.metrics)
        origins = settings.allowed_origins
        guard = Guard(self._router, admission(settings), self.metrics, _image_origins(settings), shared=bool(origins))
        self.app: ASGIApp = _shared_with(origins, guard)

    def closing(self) -> None:
        """Every stream says goodbye, so that the server can end at once."""
        if self.hub is not None:
            self.hub.close()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        settings, metrics = self.settings, self.metrics
        pool = await open_pool(settings, application="web", waited=metrics.pool_wait.observe)
        metrics.watch(pool, lambda: read_backlog(pool))
        secret = await pool.fetchval("select value from taskbeam.secrets where name = 'progress_token'")
        public_url, redis_url = settings.public_url or "", settings.redis_url
        reader = TaskReader(pool, public_url=public_url)
        publisher = Publisher(outlet(settings, pool), metrics)
        bus: Bus = RedisBus(redis_url, settings.redis_prefix, metrics) if redis_url else NoticeBus()
        self.hub = hub = Hub(bus.subscribe, bus.unsubscribe, metrics.conflated)
        tick = Tick(reader, hub, metrics)

        def publish(change: TaskChange) -> None:
            publisher.publish(change)
            if change.status == "pending":  # new, or retried
                outbox.poke()

        store = TaskStore(pool, publish, public_url=public_url, deadline_seconds=settings.task_deadline_seconds)
        qstash = AsyncQStash(settings.qstash_token or "", base_url=settings.qstash_url, retry=False)
        outbox = Outbox(pool, store, qstash, settings, secret, metrics)
        retention = Retention(
            pool,
            settings.data_dir / "results",
            metrics,
            tasks_days=settings.tasks_kept_days,
            events_days=settings.events_kept_days,
        )

        async def clear_away(deleted: Deleted) -> None:
            outbox.withdraw(deleted.message_ids)
            if deleted.result is not None:
                await retention.discard_pictures([deleted.result.removeprefix(PATH)])

        pace = Pace()
        await tick.begin()
        generators = settings.generator_by_name
        finish = Finish(store, settings.data_dir / "results", secret)
        settle = Settle(store, finish)
        reconciler = Reconciler(pool, store, settle, outbox, Lookup(qstash), settings, metrics)
        expiry = Expiry(pool, store.announce)
        following = Following(hub, bus, reader)
        rights = Rights(Access(pool), metrics)
        identify = self.identity.caller
        tickets = Tickets(pool, metrics)
        pulse = Pulse()
        siblings = None if self._place is None else Siblings(self._place, metrics.exposition)
        figures = metrics.exposition if siblings is None else siblings.figures
        turns = Turns(asyncio.get_running_loop(), settings.stream_coalesce_ms)
        self._router.tell(
            routes(
                settings,
                identity=self.identity,
                tasks=TaskEndpoints(
                    identify,
                    store,
                    Retries(pool, store.announce, store.turn),
                    reader,
                    pace,
                    metrics,
                    clear_away,
                    generators,
                ),
                poll=Poll(identify, following, rights, reader, pace, metrics),
                tickets=TicketDesk(identify, tickets),
                streams=EventStreams(identify, tickets, following, rights, Streams(turns, pulse, metrics), metrics),
                sockets=Sockets(identify, self.identity.verified, tickets, following, rights, turns, metrics),
                callback=Callback(settle, settings.signing_keys, settings.callback_base, generators, metrics),
                progress=Progress(store, finish, secret, metrics),
                webhook=Webhook(store, finish, settings, secret, metrics),
                health=Health(pool, bus if redis_url else None, outbox, figures, self.identity),
            )
        )
        loops = [
            asyncio.create_task(run)
            for run in (
                bus.run(hub.deliver, tick.poke),
                publisher.run(),
                tick.run(),
                pulse.run(),
                rights.run(),
                outbox.run(),
                reconciler.run(),
                Upkeep(expiry, reader, pace, retention, metrics).run(),
                listen(settings.direct_url or "", NOTICE_CHANNEL, tick.noticed),
                metrics.watch_loop(),
                *(() if siblings is None else (siblings.run(),)),
            )
        ]
        for loop in loops:
            loop.add_done_callback(_died)
        await bus.started(BUS_SECONDS)
        log.info("web_started")
        yield
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await close_pool(pool)
        log.info("web_stopped")


def routes(
    settings: Settings,
    *,
    identity: Identity,
    tasks: TaskEndpoints,
    poll: Poll,
    tickets: TicketDesk,
    streams: EventStreams,
    sockets: Sockets,
    callback: Callback,
    progress: Progress,
    webhook: Webhook,
    health: "Health",
) -> list[BaseRoute]:
    """The route table."""
    sessions = Sessions(identity)
    return [
        # They are tried in this order: first what comes by the thousand.
        Route("/api/generate/callback", callback, methods=["POST"]),
        Route("/api/generate/progress", progress, methods=["POST"]),
        Route("/api/session", sessions.show, methods=["GET"]),
        Route("/api/session", sessions.begin, methods=["POST"]),
        Route("/api/session", sessions.end, methods=["DELETE"]),
        Route("/api/generate", tasks.create, methods=["POST"]),
        Route("/api/generate", tasks.page, methods=["GET"]),
        Route("/api/generate", tasks.delete, methods=["DELETE"]),
        Route("/api/generate/deliveries", tasks.deliveries, methods=["GET"]),
        Route("/api/generate/retry", tasks.retry, methods=["POST"]),
        Route("/api/generate/ticket", tickets.issue, methods=["POST"]),
        Route("/api/generate/status", poll.answer, methods=["GET"]),
        Route("/api/generate/events", streams, methods=["GET"]),
        WebSocketRoute("/api/generate/ws", sockets.serve),
        Route("/api/generate/webhook/{provider}", webhook.answer, methods=["POST"]),
        Route("/results/{name}", Results(settings.data_dir / "results").answer, methods=["GET"]),
        Route("/healthz", health.alive, methods=["GET"]),
        Route("/readyz", health.ready, methods=["GET"]),
        Route("/metrics", health.figures, methods=["GET"]),
        Route("/openapi.json", openapi.answer, methods=["GET"]),
        Route("/dashboard", _page("dashboard.html"), methods=["GET"]),
        Route("/docs", _page("docs.html"), methods=["GET"]),
        Route("/", _page("index.html"), methods=["GET"]),
        Mount("/static", _Fresh(directory=STATIC)),
    ]


def build(settings: Settings, place: Place | None = None) -> Web:
    """The web application; `place` is this process's among several behind one port.

    Raises InvalidSettings when something it needs is not set.
    """
    return Web(settings, place)


class Health:
    """/healthz: the process answers. /readyz: it can do its work, and if not, which part is away. /metrics."""

    def __init__(self, pool: Pool, bus: Bus | None, outbox: Outbox, figures: Figures, identity: Identity) -> None:
        self._pool = pool
        self._identity = identity
        self._bus = bus
        self._outbox = outbox
        self._figures = figures

    async def alive(self, _: Request) -> Response:
        return Response(msgspec.json.encode(Liveness("ok")), media_type="application/json")

    async def ready(self, _: Request) -> Response:
        try:
            await self._pool.fetchval("select 1", timeout=2)
            postgres: Postgres = "up"
        except DATABASE_ERRORS:
            postgres = "down"
        # With Redis away everything still arrives, by the tick, and what QStash does not take is sent again: that is
        # no reason to be taken out of service.
        redis: Redis = "none" if self._bus is None else "up" if self._bus.connected else "down"
        qstash = self._outbox.qstash
        state: State = "unavailable" if postgres == "down" else "degraded" if "down" in (redis, qstash) else "ready"
        return Response(
            msgspec.json.encode(Readiness(state, postgres, redis, qstash)),
            status_code=503 if postgres == "down" else 200,
            media_type="application/json",
        )

    async def figures(self, request: Request) -> Response:
        """For operators, or for whoever asks on this machine itself."""
        await self._identity.require_operator(request)
        return Response(await self._figures(), media_type=CONTENT_TYPE)


class _Fresh(StaticFiles):
    """Files that are asked for again each time (they have ETags): modules of two versions must not meet in a page."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _shared_with(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """Pages of these origins may read the answers, with what their browser knows of the user."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_credentials=True,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Prefer"],
        expose_headers=["ETag", "Location", "Retry-After", "X-Request-Id"],
    )


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        # Always asked for again, so that an update is seen.
        headers = {"Cache-Control": "no-cache"}
        return FileResponse(STATIC / name, media_type="text/html; charset=utf-8", headers=headers)

    return answer


def _image_origins(settings: Settings) -> set[str]:
    """A generator on the operator's own network may answer with plain http:// URLs of its own."""
    told = (settings.public_url, *(generator.url for generator in settings.generator_by_name.values()))
    return {origin_of(url) for url in told if url}


def _require(settings: Settings) -> None:
    missing = {
        "DATABASE_URL": settings.database_url,
        "GENERATOR_URL": settings.generator_url,
        "QSTASH_TOKEN": settings.qstash_token,
        "QSTASH_CURRENT_SIGNING_KEY": settings.qstash_current_signing_key,
    }
    problems = [f"{name} is not set (`taskbeam up` brings a part of its own)" for name, v in missing.items() if not v]
    problems += far_qstash_problems(settings) + redis_problems(settings)
    if problems:
        raise InvalidSettings(problems)


def _died(loop: "asyncio.Task[None]") -> None:
    """A loop that ends by itself is a defect that must not stay unseen: the process without it only looks well."""
    if not loop.cancelled() and loop.exception() is not None:
        log.critical("loop_died", loop=loop.get_name(), exc_info=loop.exception())
        asyncio.get_running_loop().stop()
