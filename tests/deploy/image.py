"""The Dockerfile of docs/deploy/, taken apart, and its steps carried out without an engine, in a folder of the test's.

What that leaves out: the base image, its user, and the separation of the stages. The steps are run as they are
written, with another place for /opt/taskbeam, this Python, and uv, where `./run` has it, for pip: it is faster.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.proxies import FILES
from tests.deployment import clean_env

ROOT = FILES.parents[1]
PREFIX = "/opt/taskbeam"
UV = shutil.which("uv", path=f"{os.environ.get('PATH', '')}:{Path(sys.prefix).parent / '.tools' / 'bin'}")
STEP_SECONDS_MAX = 120


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    @property
    def argv(self) -> list[str]:
        """Of the exec form. Raises ValueError for the shell form, whose shell would take the signals."""
        argv: list[str] = json.loads(self.text.partition("CMD ")[2] if self.name == "HEALTHCHECK" else self.text)
        return argv


def instructions() -> list[Instruction]:
    text = re.sub(r"^#.*\n", "", (FILES / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [Instruction(*line.split(" ", 1)) for line in lines if line]


def context(folder: Path) -> None:
    """What an engine is given of the repository: .dockerignore names what is let in, and nothing else is."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out, but for what follows"
    assert lines[-1] == "**/__pycache__"
    for line in lines[1:-1]:
        assert line.startswith("!")
        source = ROOT / line[1:]
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / source.name)


class Image:
    """Build it in `folder`, which is empty; then `run` gives what `docker run` would start."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "empty"
        self.home.mkdir()
        self._prefix = folder / "taskbeam"
        self._context = folder / "context"
        self._context.mkdir()
        context(self._context)
        steps = instructions()
        stages = [n for n, step in enumerate(steps) if step.name == "FROM"]
        for step in steps[stages[0] : stages[1]]:
            if step.name == "RUN":
                self._run(step.text)
        self._last = {step.name: step for step in steps[stages[1] :]}

    @property
    def env(self) -> dict[str, str]:
        """That of its processes: ENV, and nothing of ours."""
        env = clean_env()
        env.pop("VIRTUAL_ENV", None)
        for name, value in re.findall(r"(\w+)=(\S+)", self._last["ENV"].text):
            env[name] = value.replace(PREFIX, str(self._prefix)).replace("$PATH", env["PATH"])
        return {**env, "DATA_DIR": str(self.home / "data")}

    @property
    def command(self) -> list[str]:
        return self._last["CMD"].argv

    @property
    def health(self) -> list[str]:
        return self._last["HEALTHCHECK"].argv

    def _run(self, text: str) -> None:
        text = re.sub(r"--mount=\S+\s+", "", text)
        if UV is not None:
            text = text.replace(f"{PREFIX}/bin/pip", f"{UV} pip").replace("python -m venv", f"{UV} venv")
        text = text.replace("python -m venv", f"{sys.executable} -m venv").replace(PREFIX, str(self._prefix))
        env = {**os.environ, "VIRTUAL_ENV": str(self._prefix)}
        done = subprocess.run(
            ["/bin/sh", "-ec", text],
            cwd=self._context,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=STEP_SECONDS_MAX,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
