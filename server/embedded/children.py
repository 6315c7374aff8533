"""Child processes that cannot outlive us: spawned with a death signal, ended with a deadline.

Each gets a session of its own, so that a Ctrl-C in the terminal reaches the supervisor alone, which then ends
them in order.
"""

import contextlib
import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PR_SET_PDEATHSIG = 1
LOG_BYTES_KEPT = 5_000_000
WORDS_BYTES_MAX = 65_536
WORDS_CHARACTERS_MAX = 300
FULL = os.strerror(errno.ENOSPC)
COMPLAINT = re.compile(r"\b(?:PANIC|FATAL|ERROR|error):\s+|error while |# Fatal error|\bCan't ")
_prctl: Callable[..., int] | None = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


class ChildFailed(Exception):
    """A part did not start; the message is for the person at the terminal."""


def ours(name: str, *arguments: str) -> list[str]:
    """The command line of another process of ours, run as this one is."""
    return [sys.executable, str(Path(sys.argv[0]).absolute()), name, *arguments]


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
    death_signal: int = signal.SIGKILL,
    output: IO[Any] | int | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a process that gets `death_signal` when this one dies. Call it from the main thread only. Raises OSError.

    The kernel sends the signal when the spawning thread ends, and forgets it when the user id changes: so it is
    asked for after that, and the parent is looked at once more for the moment in between. `user` is a uid.
    """
    parent = os.getpid()

    def prepare() -> None:
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        if _prctl is not None:
            _prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        start_new_session=True,
        pass_fds=pass_fds,
        preexec_fn=prepare,  # noqa: PLW1509  (there are no other threads yet)
        cwd="/" if cwd is None and user is not None else cwd,
    )


def end(children: Sequence["subprocess.Popen[bytes]"], how: int, seconds: float) -> None:
    """Send `how` to all, wait, and kill what is left after `seconds`. Idempotent."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(how)
    deadline = time.monotonic() + seconds
    for child in children:
        try:
            child.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def run_to_end(argv: Sequence[str], log: Path, **options: Any) -> None:
    """spawn() and wait. What interrupts this ends the process, and those it has started. Raises ChildFailed, OSError.

    What it says is kept in the log too, if that can be written: it may just be the disk that is full.
    """
    child = spawn(argv, output=subprocess.PIPE, **options)
    try:
        said, _ = child.communicate()
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    with contextlib.suppress(OSError), open_log(log) as file:
        file.write(said)
    if child.returncode != 0:
        reason = _complaint(said) or f"exit code {child.returncode}"
        raise ChildFailed(f"{Path(argv[0]).name}: {reason}")


def open_log(path: Path) -> IO[bytes]:
    """A log to append to, begun anew when it has grown large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or path.stat().st_size > LOG_BYTES_KEPT
    return path.open("wb" if fresh else "ab")


def last_words(path: Path, since: int = 0) -> str:
    """Why it ended, by its log after the byte `since`: its last complaint; "" for none."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(since, path.stat().st_size - WORDS_BYTES_MAX))
        return _complaint(file.read())
    return ""


def _complaint(said: bytes) -> str:
    lines = said.decode(errors="replace").splitlines()
    complaints = [COMPLAINT.split(line, maxsplit=1)[1] for line in lines if COMPLAINT.search(line)]
    # Much else fails after a disk is full: that is no reason, but a consequence.
    full = [words for words in complaints if FULL in words]
    return (full or complaints or [""])[-1].strip()[:WORDS_CHARACTERS_MAX]
