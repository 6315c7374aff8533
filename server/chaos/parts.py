"""The parts of a chaos run: real processes over a private Postgres and Redis, and a link for every pair that talks.

As under the supervisor, the listening sockets are ours: a process that is started again has the port of the one before.
"""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from server.chaos.callback_proxy import CallbackProxy
from server.chaos.generator import PlayedGenerator
from server.chaos.link import BACKLOG, Link
from server.chaos.redis_proxy import RedisProxy
from server.clients.origin import Origin
from server.embedded.children import ChildFailed, open_log, spawn
from server.embedded.postgres import SUPERUSER, EmbeddedPostgres
from server.embedded.redis import EmbeddedRedis
from server.migrate import LOGIN_ROLE, create_login_role, migrate

DATABASE = "taskbeam"
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 6.0
LOOK_SECONDS = 0.02
TOKEN, KEY = "token-of-the-chaos-0123456789", "sig_chaoschaoschaoschaoschaoscha"
COUNT = 2  # of web processes, and of dispatchers


class Process:
    """One web or dispatcher process, `name` with its number. Not there: between an end and the next begin."""

    def __init__(self, name: str, env: Mapping[str, str], log: Path, listener: socket.socket) -> None:
        self.name = name
        self._env = dict(env)
        self._log = log
        self._listener = listener
        self._process: subprocess.Popen[bytes] | None = None
        self._begun_at = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def begin(self, place: str = "") -> None:
        """Start it, with a failpoint armed if `place` names one."""
        fd = self._listener.fileno()
        argv = [sys.executable, str(Path(sys.argv[0]).absolute()), self.name.rstrip("01"), "--fd", str(fd)]
        with open_log(self._log) as output:
            env = {**self._env, "TASKBEAM_FAILPOINTS": place}
            self._begun_at = output.tell()
            self._process = spawn(argv, env=env, output=output, pass_fds=(fd,))

    def signal(self, signum: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signum)

    async def ended(self, seconds: float) -> bool:
        """Whether it has ended, waiting for so long at most."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.running:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    async def ready(self) -> None:
        """Wait until it says that it has started: its socket may be shared. Raises ChildFailed."""
        deadline = asyncio.get_running_loop().time() + READY_SECONDS_MAX
        while asyncio.get_running_loop().time() < deadline and self.running:
            with self._log.open("rb") as log:
                log.seek(self._begun_at)
                if b'_started"' in log.read():
                    return
            await asyncio.sleep(LOOK_SECONDS)
        raise ChildFailed(f"{self.name} did not start: see {self._log}")

    async def end(self) -> None:
        """Idempotent. Our links go on meanwhile: a process says goodbye to Postgres through them."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not await self.ended(STOP_SECONDS_MAX):
            self.signal(signal.SIGKILL)
            await self.ended(STOP_SECONDS_MAX)


class Parts:
    """`await start()`, `await stop()`. `links` by the names in schedule.LINKS."""

    def __init__(self, folder: Path, seed: int, tasks: int) -> None:
        self.folder = folder
        self._parallelism = 2 * tasks
        self.postgres = EmbeddedPostgres(folder)
        self.redis = EmbeddedRedis(folder)
        self.redis_proxy = RedisProxy()
        self.generator = PlayedGenerator(seed, tasks)
        self.links: dict[str, Link] = {}
        self.webs: list[Process] = []
        self.dispatchers: list[Process] = []
        self.callbacks = CallbackProxy()
        self.client_origins: list[Origin] = []
        self._sockets: list[socket.socket] = []

    @property
    def processes(self) -> list[Process]:
        return [*self.dispatchers, *self.webs]

    @property
    def redis_socket(self) -> Path:
        return Path(unquote(urlsplit(self.redis.url()).path))

    def process(self, name: str) -> Process:
        return next(process for process in self.processes if process.name == name)

    async def admin(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A superuser's connection past all links. Raises what asyncpg raises while Postgres is away."""
        return await asyncpg.connect(self.postgres.url(DATABASE, SUPERUSER), timeout=5)

    async def start(self) -> None:
        """Raises ChildFailed."""
        sockets = self.folder / "links"
        sockets.mkdir(mode=0o700)
        self.postgres.start()
        self.redis.start()
        await self._prepare_database()
        self.redis.ready()
        spoilt = sockets / "redis"
        await self.redis_proxy.start(self.redis.url(), spoilt)
        await self.generator.start()
        web_sockets = [self._listen() for _ in range(COUNT)]
        dispatcher_socket = self._listen()  # of both, as behind a load balancer
        postgres = Path(parse_qs(urlsplit(self.postgres.url(DATABASE)).query)["host"][0])
        for name in [f"{kind}{number}" for kind in ("web", "dispatcher") for number in range(COUNT)]:
            (sockets / name).mkdir()
            await self._link(f"{name}-postgres", postgres / ".s.PGSQL.5432", sockets / name / ".s.PGSQL.5432")
            await self._link(f"{name}-redis", spoilt, sockets / name / "redis")
        for number, listener in enumerate(web_sockets):
            await self._link(f"clients-web{number}", listener.getsockname()[:2])
            self.client_origins.append(Origin.plain(self.links[f"clients-web{number}"].address))
        await self.callbacks.start([listener.getsockname()[:2] for listener in web_sockets])
        await self._link("dispatcher-web", self.callbacks.address)
        await self._link("generator-web", self.callbacks.address)
        await self._link("dispatcher-generator", self.generator.address)
        await self._link("web-dispatcher", dispatcher_socket.getsockname()[:2])
        self.generator.reports = self.links["generator-web"].address
        self.webs = [self._process(f"web{n}", listener) for n, listener in enumerate(web_sockets)]
        self.dispatchers = [self._process(f"dispatcher{n}", dispatcher_socket) for n in range(COUNT)]
        for process in self.processes:
            process.begin()
        for process in self.webs:
            await process.ready()

    async def stop(self) -> None:
        """End all of it, the database last. Idempotent."""
        for link in self.links.values():
            link.turn("whole")
        await asyncio.gather(*(process.end() for process in self.processes))
        for link in self.links.values():
            await link.stop()
        await self.callbacks.stop()
        await self.generator.stop()
        await self.redis_proxy.stop()
        for listener in self._sockets:
            listener.close()
        if self.redis.process is not None:
            self.redis.process.send_signal(signal.SIGCONT)
        self.redis.stop()
        self.postgres.stop()

    async def _prepare_database(self) -> None:
        await self.postgres.ready()
        connection = await asyncpg.connect(self.postgres.url(SUPERUSER))
        await connection.execute(f"create database {DATABASE}")
        await connection.close()
        await migrate(self.postgres.url(DATABASE))
        connection = await self.admin()
        await create_login_role(connection)
        await connection.close()

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        self._sockets.append(listener)
        return listener

    async def _link(self, name: str, target: Path | tuple[str, int], listen: Path | None = None) -> None:
        link = Link(name, target, listen)
        await link.start()
        self.links[name] = link

    def _process(self, name: str, listener: socket.socket) -> Process:
        sockets = self.folder / "links" / name
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LOG_LEVEL": "info",
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": f"postgresql:///{DATABASE}?host={sockets}&user={LOGIN_ROLE}",
            "REDIS_URL": f"unix://{sockets / 'redis'}",
            "CALLBACK_URL": self.links["dispatcher-web"].origin,
            "QSTASH_URL": self.links["web-dispatcher"].origin,
            "QSTASH_TOKEN": TOKEN,
            "QSTASH_CURRENT_SIGNING_KEY": KEY,
            "GENERATOR_URL": f"{self.links['dispatcher-generator'].origin}/",
            "GENERATOR_TIMEOUT_SECONDS": str(round(2 * self.generator.seconds_max) + 6),
            "GENERATOR_RETRIES": "50",
            "GENERATOR_RETRY_DELAY": "200",
            "DISPATCHER_PARALLELISM": str(self._parallelism),
        }
        return Process(name, env, self.folder / "log" / f"{name}.log", listener)
