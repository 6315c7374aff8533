"""Who is measured in the same rounds: the web process of ours, the floor, and peers. Each is asked in its own way."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from server.bench.feed import Feed, NchanFeed, RedisFeed
from server.bench.machine import CannotMeasure
from server.bench.stage import ROOT, Process, Stage, Task
from server.bench.viewers import Opening
from server.embedded.children import ChildFailed, run_to_end
from server.push import hub

PeerName = Literal["nchan", "sse-starlette"]
PEERS: tuple[PeerName, ...] = ("nchan", "sse-starlette")
NGINX_MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/share/nginx/modules"), Path("/usr/lib64/nginx/modules"))
NCHAN_CHANNEL_MAX = 128


class Contender(NamedTuple):
    """A server with what it takes to follow a task (or, `many`, all of its user's) there, and to publish to it."""

    name: str
    process: Process
    opening: Callable[[Task, bool], Opening]
    feed: Callable[[], Feed]
    pid: Callable[[], int]
    version: str = ""


def ours(stage: Stage, name: str = "taskbeam", **settings: str) -> Contender:
    process = stage.web(**settings)
    return Contender(name, process, our_opening, lambda: RedisFeed(stage.redis_port), lambda: process.pid)


def our_opening(task: Task, many: bool, after: int | None = None) -> Opening:
    """A stream of server-sent events, `after` a version where it is opened again."""
    query = "" if many else f"?taskId={task.id}"
    last = "" if after is None else f"Last-Event-ID: {after}\r\n"
    request = (
        f"GET /api/generate/events{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        f"Authorization: Bearer {task.token}\r\n{last}\r\n"
    )
    return Opening(request.encode(), b"event: sync\n")


def floor(stage: Stage) -> Contender | None:
    """None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = stage.folder / "floor"
    source = Path(__file__).with_name("floor.c")
    run_to_end([compiler, "-O2", "-o", str(program), str(source)], stage.folder / "log" / "cc.log")
    listener = stage.listener()
    process = stage.start("floor", [str(program), str(listener.fileno()), str(stage.redis_port)], listener)
    return _by_channel("floor", stage, process)


def sse_starlette(stage: Stage) -> Contender:
    listener = stage.listener()
    argv = [sys.executable, "-m", "server.bench.usual", str(listener.fileno())]
    env = {"REDIS_URL": f"redis://127.0.0.1:{stage.redis_port}", "PYTHONPATH": str(ROOT), "PATH": os.defpath}
    process = stage.start("sse-starlette", argv, listener, env)
    stage.await_ready(process, "/ready")
    return _by_channel("sse-starlette", stage, process, version("sse-starlette"))


def _by_channel(name: str, stage: Stage, process: Process, of: str = "") -> Contender:
    def opening(task: Task, many: bool) -> Opening:
        return Opening(_channel_request("/", task, many), b"event: sync\n")

    return Contender(name, process, opening, lambda: RedisFeed(stage.redis_port), lambda: process.pid, of)


def nchan(stage: Stage) -> Contender:
    """Two of nginx over the same Redis: one is published to, the other is followed and measured.

    Raises CannotMeasure where it is not installed.
    """
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    module = next(
        (path / "ngx_nchan_module.so" for path in NGINX_MODULES if (path / "ngx_nchan_module.so").exists()), None
    )
    if binary is None or module is None:
        raise CannotMeasure("--against nchan needs nginx with its module: apt-get install nginx libnginx-mod-nchan")
    followed = _nginx(stage, "nchan", binary, module, stage.server_cores)
    published = _nginx(stage, "nchan-publisher", binary, module, stage.other_cores)

    def opening(task: Task, many: bool) -> Opening:
        return Opening(_channel_request("/sub", task, many), b"\r\n\r\n")

    return Contender(
        "nchan",
        followed,
        opening,
        lambda: NchanFeed(published.address),
        lambda: _only_child(followed.child.pid),
        _nginx_version(binary),
    )


def _channel_request(path: str, task: Task, many: bool) -> bytes:
    channel = hub.user_topic(task.user) if many else hub.task_topic(task.id)
    return (f"GET {path}?channel={channel} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n").encode()


def _nginx(stage: Stage, name: str, binary: str, module: Path, cores: set[int]) -> Process:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    folder = stage.folder / name
    folder.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"""load_module {module}; {user}
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error; worker_rlimit_nofile 65536;
events {{ worker_connections 60000; multi_accept on; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 1h;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  nchan_max_reserved_memory 256M;
  upstream redis {{ nchan_redis_server redis://127.0.0.1:{stage.redis_port}; nchan_redis_storage_mode nostore; }}
  server {{
    listen {address[0]}:{address[1]} backlog=4096;
    location = /ready {{ return 200; }}
    location = /sub {{
      nchan_subscriber eventsource; nchan_channel_id $arg_channel; nchan_redis_pass redis;
      nchan_subscriber_first_message newest;
    }}
    location = /pub {{
      nchan_publisher; nchan_channel_id $arg_channel; nchan_redis_pass redis; nchan_message_buffer_length 1;
    }}
  }}
}}
"""
    )
    process = stage.start_apart(name, [binary, "-p", str(folder), "-c", str(config)], address, cores)
    stage.await_ready(process, "/ready")
    return process


def _only_child(pid: int) -> int:
    """The worker of an nginx."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        raise ChildFailed(f"nginx has {len(children)} workers, and should have one")
    return int(children[0])


def _nginx_version(binary: str) -> str:
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10, check=False).stderr
    return f"nginx {said.strip().rpartition('/')[2]}"


def peers(stage: Stage, names: Sequence[PeerName]) -> list[Contender]:
    """Raises CannotMeasure where one is not installed."""
    start = {"nchan": nchan, "sse-starlette": sse_starlette}
    return [start[name](stage) for name in dict.fromkeys(names)]
