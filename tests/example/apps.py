"""The example before and after the change, as folders that are built and run: packages from npm, the patch, Next.js.

The packages are installed once into a folder of the machine's temporary files; an app has hard links to them, since
Next.js takes none from outside its folder.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from server.embedded.children import end, spawn
from tests.deploy.proxies import free_port
from tests.deployment import clean_env

ROOT = Path(__file__).parent.parent.parent
BEFORE = ROOT / "docs/example/before"
PATCH = ROOT / "docs/example/after.patch"
NEXT = "node_modules/next/dist/bin/next"
NODE_MIN = (20, 9)
INSTALL_SECONDS_MAX = 120
RUN_SECONDS_MAX = 30
BUILD_SECONDS_MAX = 180
READY_SECONDS_MAX = 30
# What a reader who tries it leaves behind.
MADE = shutil.ignore_patterns("node_modules", ".next", ".env", ".env.local", "*.tgz")


def installed() -> Path:
    """The folder `node_modules` of the example. Skips where it cannot be had."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("NODE IS ABSENT: the way from polling to push is not tested")
    version = _run(node, "--version").strip()
    if tuple(map(int, version.removeprefix("v").split(".")[:2])) < NODE_MIN:
        pytest.skip(f"NODE {version} IS TOO OLD for Next.js: the way from polling to push is not tested")
    digest = hashlib.sha256((BEFORE / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"taskbeam-npm-{os.getuid()}-{digest}"
    if not folder.exists():
        # Whole or not there, also where two runs begin at once.
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as making:
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(BEFORE / name, making)
            argv = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(
                argv, cwd=making, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
            )
            if done.returncode != 0:
                pytest.skip(
                    f"THE NPM REGISTRY REFUSES: the way from polling to push is not tested ({done.stderr[-300:]})"
                )
            made = Path(making, "installed")
            made.mkdir(mode=0o700)
            Path(making, "node_modules").rename(made / "node_modules")
            with contextlib.suppress(OSError):  # another run was quicker
                made.rename(folder)
    return folder / "node_modules"


def before(folder: Path) -> Path:
    """A copy of the app that polls."""
    return Path(shutil.copytree(BEFORE, folder, ignore=MADE))


def after(folder: Path) -> Path:
    """A copy of it that the patch was applied to."""
    before(folder)
    _run("git", "apply", str(PATCH), cwd=folder)
    return folder


def difference(one: Path, other: Path) -> list[str]:
    """The lines of a real diff of the two folders, without those around a change."""
    argv = ["git", "diff", "--no-index", "--no-color", "--unified=0", str(one), str(other)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)
    assert done.returncode == 1, done.stderr
    return done.stdout.splitlines()


def packages(app: Path, node_modules: Path) -> None:
    """Give an app its packages; `taskbeam` as well, where it asks for that, as `npm pack` makes it."""
    shutil.copytree(node_modules, app / "node_modules", symlinks=True, copy_function=os.link)
    if '"taskbeam"' in (app / "package.json").read_text():
        packed = _run("npm", "pack", "--silent", "--pack-destination", str(app), cwd=ROOT / "static").strip()
        with tarfile.open(app / packed) as archive:
            archive.extractall(app, filter="data")
        (app / "package").rename(app / "node_modules/taskbeam")


class NextApp:
    """One of them; `url` is known before it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "next.log"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._env = {**clean_env(), "NEXT_TELEMETRY_DISABLED": "1", "APP_URL": self.url}
        self._process: subprocess.Popen[bytes] | None = None

    def _next(self, *argv: str) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as output:
            return spawn(["node", NEXT, *argv], env=self._env, output=output, cwd=self.folder)

    async def build(self, env: Mapping[str, str]) -> None:
        """`next build`; what it and the app take from the environment is in `env`."""
        self._env |= env
        building = self._process = self._next("build")
        code = await asyncio.to_thread(building.wait, BUILD_SECONDS_MAX)
        assert code == 0, self._log.read_text()

    async def start(self) -> None:
        """`next start`, until it answers."""
        self._process = self._next("start", "--hostname", "127.0.0.1", "--port", str(self._port))
        async with asyncio.timeout(READY_SECONDS_MAX), httpx.AsyncClient(trust_env=False) as client:
            while True:
                assert self._process.poll() is None, self._log.read_text()
                try:
                    if (await client.get(f"{self.url}/login")).status_code == 200:
                        return
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            end([self._process], signal.SIGKILL, 5)  # asked kindly, it waits for streams to end


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
