"""What a chaos run has measured, for programs and for people."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from server.chaos.faults import Faults
from server.chaos.parts import COUNT, Process
from server.chaos.recovery import Arrivals
from server.chaos.schedule import Fault
from server.clients.judge import KINDS, Defect
from server.clients.times import Times, times_of
from server.clients.views import Follow, Log

DEFECTS_SHOWN = 10


class Figures(msgspec.Struct):
    """`defects` by kind; recovery from the end of a fault to the first sight of a later change, by kind of fault."""

    seed: int
    seconds: float
    faults: dict[str, int]
    failpoints: dict[str, int]
    tasks: int
    changes: int
    follows: int
    connections: int
    events: int
    defects: dict[str, int]
    recovery_ms: Times
    recovery_by_kind_ms: dict[str, Times]
    to_client_ms: Times
    memory_mb: dict[str, list[float]]


class Tally:
    """Collects while the run goes on."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._arrivals = Arrivals(COUNT)
        self._memory: dict[str, list[float]] = {}
        self._follows = self._connections = self._events = 0

    def memory(self, _when: str, processes: Sequence[Process]) -> None:
        """Once at the start and once at the end."""
        for process in processes:
            self._memory.setdefault(process.name, []).append(round(_resident_bytes(process.pid) / 1e6, 1))

    def note(self, follow: Follow) -> None:
        self._follows += 1
        self._connections += len(follow.legs)
        self._events += len(follow.seen)
        for seen in follow.seen:
            self._arrivals.note(follow.legs[seen.leg], seen)

    def figures(
        self, schedule: Sequence[Fault], faults: Faults, log: Log, defects: Sequence[Defect], seconds: float
    ) -> Figures:
        recovery = self._arrivals.after(faults.heals, log.changes)
        counted = Counter(defect.kind for defect in defects)
        return Figures(
            seed=self._seed,
            seconds=round(seconds, 1),
            faults=dict(sorted(Counter(fault.kind for fault in schedule).items())),
            failpoints=dict(sorted(faults.reached.items())),
            tasks=len(log.tasks),
            changes=len(log.changes),
            follows=self._follows,
            connections=self._connections,
            events=self._events,
            defects={kind: counted.get(kind, 0) for kind in KINDS},
            recovery_ms=times_of([seconds for kind in recovery.values() for seconds in kind]),
            recovery_by_kind_ms={kind: times_of(recovery[kind]) for kind in sorted(recovery)},
            to_client_ms=times_of(self._arrivals.lateness(log.changes)),
            memory_mb=self._memory,
        )


def table(f: Figures) -> str:
    """For people."""
    lines = [
        f"{sum(f.faults.values())} faults in {f.seconds:.0f} s, seed {f.seed}; {f.tasks} tasks, {f.changes} changes",
        f"{f.events} events delivered to {f.follows} follows over {f.connections} connections",
        "  ".join(f"{kind} {count}" for kind, count in f.defects.items()),
        _line("change → a client that was there", f.to_client_ms),
        _line("end of a fault → a later change seen", f.recovery_ms),
        *(
            _line(f"  {kind} ({count})", f.recovery_by_kind_ms.get(kind, Times(0, 0, 0, 0)))
            for kind, count in f.faults.items()
        ),
        "failpoints reached: "
        + (", ".join(f"{place} {count}" for place, count in f.failpoints.items()) or "none armed"),
        "memory at the start and at the end, MB: "
        + ", ".join(f"{name} {' → '.join(map(str, sizes))}" for name, sizes in sorted(f.memory_mb.items())),
    ]
    return "\n".join(lines)


def spell_out(defects: Sequence[Defect], folder: Path | None) -> str:
    """The first few, of as many followers, and where the rest of the story is; "" where there are none."""
    if not defects:
        return ""
    first = {(defect.follow, defect.kind): defect for defect in reversed(defects)}
    shown = [str(defect) for defect in list(first.values())[: -DEFECTS_SHOWN - 1 : -1]]
    more = len(defects) - len(shown)
    return "\n".join([*shown, *([f"and {more} more"] if more > 0 else []), f"all logs and views: {folder}"])


def _line(name: str, times: Times) -> str:
    if not times.count:
        return f"{name:<40}none seen"
    return f"{name:<40}p50 {times.p50:.0f} ms  p99 {times.p99:.0f} ms  max {times.max:.0f} ms"


def _resident_bytes(pid: int) -> int:
    """proc(5); 0 where the process is not there."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)
