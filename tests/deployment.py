"""Real processes on loopback over one Postgres and one Redis, as a platform would run them.

The listening sockets belong to the test and are handed on, as the supervisor does it: a process that is restarted
has the port of the one before.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.embedded.children import spawn

COMMAND = Path(sys.executable).parent / "taskbeam"
READY_SECONDS_MAX = 30.0
TOKEN = "token-of-the-tests-0123456789abcdef"
CURRENT_KEY = "sig_0123456789abcdefghijklmnopqr"
NEXT_KEY = "sig_rqponmlkjihgfedcba9876543210"
CLEAN = ("AUTH_", "QSTASH_", "DATABASE_", "REDIS_", "GENERATOR_", "DISPATCHER_", "TASKBEAM_", "LOG_", "TASK", "EVENTS_")


@dataclass(frozen=True)
class Database:
    name: str
    url: str
    owner_url: str


def listen(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(1024)
    return listener


def clean_env() -> dict[str, str]:
    """The environment without anything that is a setting of ours."""
    return {k: v for k, v in os.environ.items() if not k.startswith(CLEAN) and k not in ("PORT", "HOST", "PUBLIC_URL")}


class Server:
    """One process of ours, and its log."""

    def __init__(self, name: str, env: Mapping[str, str], log: Path, listener: socket.socket | None = None) -> None:
        self.name = name
        self.env = dict(env)
        self.log = log
        self.listener = listener or listen()
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.command = [sys.executable, str(COMMAND)]

    def begin(self, **env: str) -> None:
        """Start it; `env` is added to its environment for this run."""
        fd = self.listener.fileno()
        argv = [*self.command, self.name, "--fd", str(fd)]
        with self.log.open("ab") as output:
            self.process = spawn(argv, env={**self.env, **env}, output=output, pass_fds=(fd,))

    async def ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                assert self.process is not None
                assert self.process.poll() is None, f"{self.name} ended: {self.tail()}"
                try:
                    if (await client.get(f"{self.url}/readyz", timeout=5)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.03)
        raise AssertionError(f"{self.name} was not ready: {self.tail()}")

    async def start(self, **env: str) -> None:
        self.begin(**env)
        await self.ready()

    def signal(self, signum: int) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def kill(self) -> None:
        """As by the kernel: no clean-up."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 10) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self, seconds: float = 8) -> None:
        """Ask it to end; idempotent."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


class Deployment:
    """`webs` web processes, our dispatcher and the built-in generator, unless told otherwise.

    `portable`: the web processes run as under any ASGI server (tests/portable.py); `hasty`: they look at the rights of
    their followers all the time (tests/hasty.py).
    """

    def __init__(
        self,
        database: Database,
        redis_url: str,
        folder: Path,
        *,
        webs: int = 1,
        dispatchers: int = 1,
        generator: bool = True,
        env: Mapping[str, str] | None = None,
        portable: bool = False,
        hasty: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.database = database
        self.prefix = f"{database.name}:"
        web_sockets = [listen() for _ in range(webs)]
        dispatcher_socket, generator_socket = listen(), listen()
        origin = f"http://127.0.0.1:{web_sockets[0].getsockname()[1]}" if webs else "http://127.0.0.1:9"
        self.env = {
            **clean_env(),
            "DATABASE_URL": database.url,
            "REDIS_URL": redis_url,
            "REDIS_PREFIX": self.prefix,
            "DATA_DIR": str(folder),
            "CALLBACK_URL": origin,
            "QSTASH_URL": f"http://127.0.0.1:{dispatcher_socket.getsockname()[1]}",
            "QSTASH_TOKEN": TOKEN,
            "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
            "QSTASH_NEXT_SIGNING_KEY": NEXT_KEY,
            "GENERATOR_URL": f"http://127.0.0.1:{generator_socket.getsockname()[1]}/",
            "GENERATOR_SECONDS": "1",
            **(env or {}),
        }
        self.webs = [self._server(f"web{n}", "web", s) for n, s in enumerate(web_sockets)]
        if portable or hasty:
            for web in self.webs:
                web.command = [sys.executable, "-m", "tests.portable" if portable else "tests.hasty"]
        # All of them take from one socket, as behind a load balancer.
        self.dispatchers = [self._server(f"dispatcher{n}", "dispatcher", dispatcher_socket) for n in range(dispatchers)]
        self.generator = self._server("generator", "generator", generator_socket) if generator else None
        self._sockets = [*web_sockets, dispatcher_socket, generator_socket]

    def _server(self, label: str, name: str, listener: socket.socket) -> Server:
        return Server(name, self.env, self.folder / f"{label}.log", listener)

    @property
    def servers(self) -> list[Server]:
        return [*self.dispatchers, *([self.generator] if self.generator else []), *self.webs]

    @property
    def web(self) -> Server:
        return self.webs[0]

    @property
    def dispatcher(self) -> Server:
        return self.dispatchers[0]

    async def start(self) -> None:
        for server in self.servers:
            server.begin()
        for server in self.servers:
            await server.ready()

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()
        for listener in self._sockets:
            listener.close()

    def client(self, web: int = 0, **options: Any) -> httpx.AsyncClient:
        """An HTTP client for one of the web processes."""
        return httpx.AsyncClient(base_url=self.webs[web].url, trust_env=False, timeout=30, **options)
