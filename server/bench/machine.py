"""What the bench has to know of the machine: processor time by the kernel's account, memory, cores, limits, noise."""

import contextlib
import os
import platform
import resource
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from server.bench.figures import Noise

TICKS = os.sysconf("SC_CLK_TCK")
NOISE_SHARE_MAX = 0.10
LOOP_COUNT = 200_000
LOOPS = 7
FILES_BESIDES = 500


class CannotMeasure(Exception):
    """The machine cannot do what is asked; in one line, with what to do."""


def raise_file_limit(streams: int) -> None:
    """Let this process and those it starts open so many connections. Raises CannotMeasure."""
    wanted = streams + FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise CannotMeasure(
            f"{wanted} files have to be open at once, but the limit is {hard}: raise it (ulimit -Hn), or take fewer"
            " with --streams"
        )
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def cores() -> tuple[set[int], set[int]]:
    """For the server under test and for all else; the same where there is but one."""
    mine = sorted(os.sched_getaffinity(0))
    return ({mine[0]}, set(mine[1:])) if len(mine) > 1 else (set(mine), set(mine))


def pin(pid: int, to: set[int]) -> None:
    """All threads of a process, and those it starts from now on."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), to)


def cpu_seconds(pid: int) -> float:
    """What the threads of a process have run, to the nanosecond (/proc/PID/task/*/schedstat); else by ticks."""
    try:
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except FileNotFoundError:
        user, system, *_ = _times(pid)
        return (user + system) / TICKS


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


class Watch:
    """Looks at the machine from here on; `noise()` says what others took meanwhile."""

    def __init__(self) -> None:
        self._loop = _loop_seconds()
        self._began = _machine_ticks()
        self._ours = _family_ticks()

    def noise(self) -> Noise:
        busy, steal, whole = (now - then for now, then in zip(_machine_ticks(), self._began, strict=True))
        others = max(0, busy - (_family_ticks() - self._ours)) / max(1, whole)
        drift = abs(_loop_seconds() / self._loop - 1)
        shares = (round(others, 3), round(steal / max(1, whole), 3), round(drift, 3))
        return Noise(*shares, noisy=max(shares) > NOISE_SHARE_MAX)


def describe() -> dict[str, str | int]:
    """The machine, for a reader of the figures elsewhere."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": model,
        "cores": os.cpu_count() or 1,
        "memory_bytes": memory,
    }


def versions() -> dict[str, str]:
    """Of what is measured; the services add theirs."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("uvicorn", "uvloop", "asyncpg", "hiredis", "msgspec", "sse-starlette")
    }


def _loop_seconds() -> float:
    """The best of a few times that fixed work takes: slower when others hold the core or its clock is turned down."""
    best = float("inf")
    for _ in range(LOOPS):
        began = time.perf_counter()
        for _ in range(LOOP_COUNT):
            pass
        best = min(best, time.perf_counter() - began)
    return best


def _machine_ticks() -> tuple[int, int, int]:
    """Busy, stolen and all time of all cores (proc_stat(5)); stolen is not busy here."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    user, nice, system, idle, waiting, interrupts, soft, steal = fields
    return user + nice + system + interrupts + soft, steal, sum(fields) if idle + waiting else 0


def _times(pid: int) -> tuple[int, int, int, int]:
    """User and system ticks of a process, and of its children that were waited for (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12]), int(fields[13]), int(fields[14])


def _family_ticks() -> int:
    """Of this process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    return sum(_ticks_of(pid) for pid in parents if os.getpid() in _line(pid, parents))


def _ticks_of(pid: int) -> int:
    try:
        return sum(_times(pid))
    except OSError:
        return 0


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid > 1:
        yield pid
        pid = parents.get(pid, 0)
