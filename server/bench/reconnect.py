"""A storm: all streams are cut at once, as by a proxy that is started again, and all come back with their cursor."""

import time
from pathlib import Path

from server.bench.contenders import our_opening
from server.bench.figures import Reconnect
from server.bench.lane import OPEN_SECONDS_MAX
from server.bench.push import Say
from server.bench.stage import Process, Stage, Task
from server.bench.viewers import Viewers

# More would not be a storm of clients but a test of the kernel's queue of connections.
AT_ONCE = 2_000
RELOAD_SECONDS = 0.5
VERSION = 1
OF_WEB = b"[taskbeam web] "


def measure_reconnect(stage: Stage, web: Process, streams: int, say: Say) -> Reconnect:
    """Twice: once by the clock, once with every statement logged, which takes longer. Raises CannotMeasure."""
    say(f"{streams} streams are cut at once")
    tasks = stage.people(streams)
    viewers = Viewers(web.address)
    viewers.open([our_opening(task, False) for task in tasks], OPEN_SECONDS_MAX)
    viewers.settle()
    try:
        seconds = _storm(viewers, tasks)
        viewers.settle()
        log, begin = _log_statements(stage)
        _storm(viewers, tasks)
        return Reconnect(streams, seconds, _count(log, begin))
    finally:
        viewers.close()
        stage.ask("alter system reset all")
        stage.ask("select pg_reload_conf()")


def _storm(viewers: Viewers, tasks: list[Task]) -> float:
    openings = [our_opening(task, False, VERSION) for task in tasks]
    viewers.cut()
    began = time.monotonic()
    viewers.open(openings, OPEN_SECONDS_MAX, AT_ONCE)
    return time.monotonic() - began


def _log_statements(stage: Stage) -> tuple[Path, int]:
    """From which byte of which file on."""
    for setting in ("log_line_prefix = '[%a] '", "log_statement = 'all'"):
        stage.ask(f"alter system set {setting}")
    stage.ask("select pg_reload_conf()")
    time.sleep(RELOAD_SECONDS)
    return stage.postgres_log, stage.postgres_log.stat().st_size


def _count(log: Path, begin: int) -> int:
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line for line in file if line.startswith(OF_WEB)]
    return sum(b"LOG:  execute " in line or b"LOG:  statement: " in line for line in lines)
