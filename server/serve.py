"""Runs one ASGI app on uvicorn with the limits and the manners all our processes share.

A subclass of uvicorn's Server, not its lifespan, tells the app that it is going down: lifespan teardown runs
only after all connections have closed, and the streams close only when they are told.
"""

import asyncio
import contextlib
import gc
import logging
import resource
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from server.fleet.accept import Acceptor
from server.fleet.board import Place
from server.fleet.listener import inherit_listener, open_listener
from server.protocols import LimitedHttp, LimitedWebSocket
from server.settings import Settings

GRACEFUL_SECONDS = 3
KEEP_ALIVE_SECONDS = 20
# At the end: for the first request of a connection that was taken just before. It follows at once.
ARRIVAL_SECONDS = 0.15
# A client that acknowledges nothing for this long is gone, or does not read: its buffers go with it.
UNREAD_MS_MAX = 30_000
# What the kernel holds of a connection before it is on its way: without a limit up to 4 MB for who does not read.
UNSENT_BYTES_MAX = 16_384
# A stream is a dozen objects that stay: at Python's own 700 the collector looks through all of them again and again, a
# third of what a join costs. What it leaves lying about meanwhile is a few megabytes.
GC_THRESHOLDS = (5_000, 5, 5)


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        on_exit: Callable[[], None] | None,
        place: Place | None,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._on_exit = on_exit
        self._place = place
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # it is the acceptor that listens
        if self.should_exit:
            return
        self._acceptor = Acceptor(self._listener, self._protocol, self.server_state.connections, self._place)
        self._acceptor.start()
        if self._place is not None:
            self._place.tell(0)
            self._place.ready()

    def _protocol(self) -> asyncio.Protocol:
        return LimitedHttp(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        if self._place is not None and self._acceptor is not None:
            self._place.tell(self._acceptor.open)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.connections:
            await asyncio.sleep(ARRIVAL_SECONDS)
        await super().shutdown(sockets=[self._listener])
        logging.shutdown()  # the last lines: the process ends by the signal it caught, and nothing runs at its exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            # A signal handler may interrupt anything: leave the work to the loop.
            asyncio.get_running_loop().call_soon_threadsafe(self._closing)
        super().handle_exit(sig, frame)

    def _closing(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        if self._place is not None:
            self._place.leave()
        if self._on_exit is not None:
            self._on_exit()


def run_app(
    app: Any,
    *,
    host: str,
    port: int,
    fd: int | None = None,
    place: Place | None = None,
    on_exit: Callable[[], None] | None = None,
    ws_max_size: int = 65_536,
    graceful_seconds: int = GRACEFUL_SECONDS,
) -> None:
    """Serve `app` until SIGTERM or SIGINT, on `host:port` or on the listening socket `fd` handed on to us.

    `on_exit` is called in the event loop as the first thing after the signal. Exits by the signal it caught.
    `place` is where this process is among those that share the socket. Raises InvalidSettings where it cannot listen.
    """
    _raise_file_limit()
    listener = open_listener(host, port) if fd is None else inherit_listener(fd)
    if sys.platform == "linux":
        # Connections inherit both.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS_MAX)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=LimitedHttp,
        ws=LimitedWebSocket,
        ws_max_size=ws_max_size,
        ws_per_message_deflate=False,  # 40 kB a socket, and no frame could be shared
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_graceful_shutdown=graceful_seconds,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = _Server(config, listener, on_exit, place)
    gc.collect()
    gc.freeze()  # what was imported stays
    gc.set_threshold(*GC_THRESHOLDS)
    server.run()


def _raise_file_limit() -> None:
    """Every stream is an open file, and the usual soft limit is 1,024."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_web(settings: Settings, fd: int | None = None, place: Place | None = None) -> None:
    """The web process: API, streams and pages. Raises InvalidSettings and DatabaseNotReady."""
    from server import log  # the other processes do without the web app's imports
    from server.app import PROBE, build
    from server.db import wait_until_ready

    log.configure(settings, "web")
    web = build(settings, place)
    asyncio.run(wait_until_ready(settings, PROBE))
    run_app(web.app, host=settings.host, port=settings.port, fd=fd, place=place, on_exit=web.closing)
