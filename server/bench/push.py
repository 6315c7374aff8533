"""`taskbeam bench`: what a callback costs and how long it takes to the client, on this machine.

Starts a private Postgres and Redis and one web process, plays QStash and the browsers from this process, over
loopback. Each stream follows a task of its own; each callback is signed, verified, committed with fsync,
published and streamed. The peer in the same run is what is replaced: clients that ask once a second.
"""

import asyncio
import math
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable
from pathlib import Path

import click
import msgspec

from server.bench.clients import Callbacks, Clients, Poller, Publisher
from server.bench.rights import measure_rights
from server.embedded.children import ChildFailed
from server.embedded.ending import Ending
from server.embedded.listeners import CannotListen
from server.settings import Settings
from server.up import CannotStart, Supervisor

TOKEN, KEY = "token-of-the-bench-0123456789", "sig_benchbenchbenchbenchbenchben"
POLLERS_MAX = 200
POLL_SECONDS = 6.0
SETTLE_SECONDS = 1.0
IDLE_SECONDS = 5.0


class Figures(msgspec.Struct):
    """Milliseconds from sending a callback to the client's socket; bytes of the web process a stream; CPU times."""

    streams: int
    callbacks: int
    rate: float
    lost: int
    to_client_ms: dict[str, float]
    answer_ms: dict[str, float]
    bytes_a_stream: int
    cpu_us_a_callback: float
    idle_cpu_us_a_stream_second: float
    polling_clients: int
    polling_cpu_us_a_client_second: float
    polling_seen_after_ms: dict[str, float]
    read_bare_ms: dict[str, float]
    read_as_caller_ms: dict[str, float]
    users: int
    joins_ms: float
    token_first_us: float
    token_again_us: float


def run_bench(streams: int, rate: int, seconds: float, as_json: bool) -> int:
    """Measure and print; the exit code, 1 when an update was lost."""
    soft = streams + 1_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < soft:
        raise click.ClickException(f"{streams} streams need {soft} open files, but the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    folder = Path(tempfile.mkdtemp(prefix="taskbeam-bench-"))
    folder.chmod(0o755)  # root's Postgres runs as another user and must reach what is below
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        supervisor = _supervisor(folder / "data", listener.getsockname()[1])
        try:
            supervisor.start()
            figures = asyncio.run(_measure(supervisor, listener, streams, rate, seconds))
        except (CannotListen, CannotStart, ChildFailed) as error:
            raise click.ClickException(str(error)) from error
        finally:
            supervisor.stop()
            shutil.rmtree(folder, ignore_errors=True)
    click.echo(msgspec.json.encode(figures).decode() if as_json else _table(figures))
    return 1 if figures.lost else 0


def _supervisor(folder: Path, port: int) -> Supervisor:
    env = {
        "PORT": "0",
        "DATA_DIR": str(folder),
        "LOG_LEVEL": "warning",
        "QSTASH_URL": f"http://127.0.0.1:{port}",
        "QSTASH_TOKEN": TOKEN,
        "QSTASH_CURRENT_SIGNING_KEY": KEY,
        "GENERATOR_URL": f"http://127.0.0.1:{port}/",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    return Supervisor(Settings.from_env(env), env, Ending())


async def _measure(supervisor: Supervisor, listener: socket.socket, streams: int, rate: int, seconds: float) -> Figures:
    publisher = await Publisher.start(listener)
    callbacks = Callbacks(supervisor.origin, KEY)
    pid = supervisor.pid("web")
    count = min(streams, max(1, round(rate * seconds)))
    say(f"creating {streams} tasks")
    tasks = await callbacks.create(streams)
    await publisher.wait_for(streams)
    await asyncio.sleep(SETTLE_SECONDS)
    memory = _resident_bytes(pid)
    say(f"opening {streams} streams")
    clients = Clients(supervisor.origin)
    await clients.follow(tasks)
    await asyncio.sleep(SETTLE_SECONDS)
    bytes_a_stream = (_resident_bytes(pid) - memory) // streams
    idle = await _cpu_seconds_during(pid, asyncio.sleep(IDLE_SECONDS)) / IDLE_SECONDS
    say(f"sending {count} callbacks at {rate}/s")
    cpu = await _cpu_seconds_during(pid, callbacks.complete(tasks[:count], rate))
    arrived = await clients.arrived(tasks[:count])
    to_client = [arrived[task] - callbacks.sent[task] for task in tasks[:count] if task in arrived]
    await clients.close()
    poller, polling_cpu, seen = await _polling(supervisor, publisher, callbacks, min(POLLERS_MAX, streams), streams)
    await callbacks.close()
    await publisher.close()
    say("reads, joins and tokens of 10,000 users")
    rights = await measure_rights(*supervisor.database_urls)
    return Figures(
        streams=streams,
        callbacks=count,
        rate=rate,
        lost=count - len(to_client),
        to_client_ms=_percentiles(to_client),
        answer_ms=_percentiles(list(callbacks.answered.values())[:count]),
        bytes_a_stream=bytes_a_stream,
        cpu_us_a_callback=(cpu - idle * count / rate) / count * 1e6,
        idle_cpu_us_a_stream_second=idle / streams * 1e6,
        polling_clients=poller,
        polling_cpu_us_a_client_second=polling_cpu / POLL_SECONDS / poller * 1e6,
        polling_seen_after_ms=_percentiles(seen),
        read_bare_ms=_percentiles(rights.read_bare),
        read_as_caller_ms=_percentiles(rights.read_as_caller),
        users=rights.users,
        joins_ms=rights.joins * 1000,
        token_first_us=rights.token_first * 1e6,
        token_again_us=rights.token_again * 1e6,
    )


async def _polling(
    supervisor: Supervisor, publisher: Publisher, callbacks: Callbacks, clients: int, before: int
) -> tuple[int, float, list[float]]:
    """The replaced way: ask once a second. How many asked, the server's CPU seconds, how late they saw the end."""
    say(f"{clients} clients asking once a second, for comparison")
    tasks = await callbacks.create(clients)
    await publisher.wait_for(before + clients)
    poller = Poller(supervisor.origin, tasks)
    cpu = await _cpu_seconds_during(supervisor.pid("web"), poller.run(POLL_SECONDS))
    finishing = asyncio.create_task(callbacks.complete(tasks, clients / 2))
    await poller.run(4.0)
    await finishing
    return clients, cpu, [poller.seen[task] - callbacks.sent[task] for task in tasks if task in poller.seen]


async def _cpu_seconds_during(pid: int, work: Awaitable[None]) -> float:
    before = _cpu_seconds(pid)
    await work
    return _cpu_seconds(pid) - before


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and max in milliseconds; {} of nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[max(0, math.ceil(len(ordered) * share) - 1)] * 1000, 2) for name, share in at.items()}


def say(text: str) -> None:
    """Progress, beside the figures."""
    click.echo(f"… {text}", err=True)
    sys.stderr.flush()


def _line(name: str, times: dict[str, float]) -> str:
    return f"{name:<44}" + "  ".join(f"{key} {value:.1f} ms" for key, value in times.items())


def _table(f: Figures) -> str:
    return "\n".join(
        [
            f"{f.streams} streams, {f.callbacks} callbacks at {f.rate:g}/s, one web process; lost: {f.lost}",
            _line("callback sent → client's socket", f.to_client_ms),
            _line("callback sent → its answer", f.answer_ms),
            f"{'memory of the web process, a stream':<44}{f.bytes_a_stream / 1000:.1f} kB",
            f"{'CPU of the web process, a callback':<44}{f.cpu_us_a_callback:.0f} µs (verify, commit, publish, send)",
            f"{'CPU of an idle stream':<44}{f.idle_cpu_us_a_stream_second:.1f} µs a second",
            f"{f'peer: {f.polling_clients} clients asking once a second':<44}"
            f"{f.polling_cpu_us_a_client_second:.0f} µs of CPU a client and second",
            _line("peer: callback sent → client has asked", f.polling_seen_after_ms),
            _line("a read as the server", f.read_bare_ms),
            _line("the same as its caller", f.read_as_caller_ms)
            + f"  ({f.read_as_caller_ms['p50'] / f.read_bare_ms['p50']:.1f} times, p50)",
            f"{f'{f.users} users join at once':<44}{f.joins_ms / 1000:.2f} s",
            f"{'an access token, new and known':<44}{f.token_first_us:.0f} µs, {f.token_again_us:.1f} µs",
        ]
    )
