"""The verdict, for programs and for a ticket. Pure."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from server.clients.judge import Defect
from server.clients.times import Times

DEFECTS_SHOWN = 20
TEXT = {
    "changes": "changes, each above the cursor and no change of status skipped",
    "connections": "connections",
    "resumed": "of them from a cursor, after a break or a change of transport",
    "streams": "streams that began at once",
    "heartbeats": "heartbeats heard",
    "joins": "joins that said how (sync)",
    "agreed": "final snapshots compared over all transports",
    "304": "answers 304 to an ETag",
    "204": "answers 204 to a cursor at the end",
    "deleted": "tasks deleted, and gone",
}


class Report(msgspec.Struct):
    """`tasks` by how they ended; `checks` counts what was looked at; `late_ms` is by transport, from the first sight of
    the end of a task to that of others who were connected."""

    url: str
    version: str
    seed: int
    seconds: float
    tasks: dict[str, int]
    checks: dict[str, int]
    first_bytes_ms: Times
    late_ms: dict[str, Times]
    defects: list[Defect]
    notes: list[str]


def text(report: Report) -> str:
    """To be pasted into a ticket."""
    ended = ", ".join(f"{count} {how}" for how, count in report.tasks.items() if count)
    lines = [
        f"{report.url}: Taskbeam {report.version}, seed {report.seed}, {report.seconds:.1f} s",
        f"{sum(report.tasks.values())} tasks: {ended}",
        *(f"{report.checks.get(name, 0):>7} {about}" for name, about in TEXT.items()),
        f"first bytes of a stream: p50 {report.first_bytes_ms.p50:.0f} ms  max {report.first_bytes_ms.max:.0f} ms",
        "the end of a task, seen after the first follower saw it:",
        *(f"  {transport:<24}{_times(times)}" for transport, times in report.late_ms.items()),
        *(f"note: {note}" for note in report.notes),
        *_defects(report.defects),
    ]
    return "\n".join(lines)


def _times(times: Times) -> str:
    return f"p50 {times.p50:.0f} ms  max {times.max:.0f} ms  ({times.count})" if times.count else "none was connected"


def _defects(defects: Sequence[Defect]) -> list[str]:
    """One of each kind over each transport, and how many are like it."""
    if not defects:
        return ["no defect"]
    alike = Counter((defect.kind, defect.transport) for defect in defects)
    first = {(defect.kind, defect.transport): defect for defect in reversed(defects)}
    shown = list(first.items())[::-1][:DEFECTS_SHOWN]
    more = [f" (and {alike[key] - 1} like it)" if alike[key] > 1 else "" for key, _ in shown]
    kinds = Counter(defect.kind for defect in defects)
    return [
        f"{len(defects)} defects: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}",
        *(f"  {defect}{rest}" for (_, defect), rest in zip(shown, more, strict=True)),
    ]
