"""Structured logs: one JSON object a line (or a line for people), the same for our events and the libraries'.

Request and task ids travel in contextvars, so that a line deep in the store still says which request it was.
Values are shortened here, once, because a log line must stay one line however hostile its input.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

import structlog

from server.settings import Settings

VALUE_CHARACTERS_MAX = 2_000
WAITING_CHARACTERS_MAX = 65_536
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Stderr(io.TextIOBase):
    """Standard error. What is not urgent goes out in one write when this turn of the event loop is over.

    A line that cannot be written is dropped: the terminal may be gone, the pipe closed or the disk full, and no request
    may fail because of that.
    """

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._characters = 0
        self._due: asyncio.AbstractEventLoop | None = None  # where flush() will be called
        self._lock = threading.RLock()  # pictures are drawn in threads, which log too

    def write(self, text: str) -> int:
        """At once, after what waits."""
        with self._lock:
            self._waiting.append(text)
            self.flush()
        return len(text)

    def write_soon(self, text: str) -> None:
        """In its place among all lines: later in this turn of the loop, and at once where there is none."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.write(text)
            return
        with self._lock:
            self._waiting.append(text)
            self._characters += len(text)
            if self._characters > WAITING_CHARACTERS_MAX:
                self.flush()
            elif self._due is not loop:
                loop.call_soon(self.flush)
                self._due = loop

    def flush(self) -> None:
        """Write what waits, now."""
        with self._lock:
            rest = "".join(self._waiting).encode(errors="backslashreplace")
            self._waiting.clear()
            self._characters = 0
            self._due = None
            with contextlib.suppress(OSError):
                while rest:
                    rest = rest[os.write(2, rest) :]


class _Lines:
    """Where structlog's lines go, by their level."""

    def __init__(self, stderr: Stderr) -> None:
        self._stderr = stderr

    def info(self, line: str) -> None:
        self._stderr.write_soon(line + "\n")

    def error(self, line: str) -> None:
        self._stderr.write(line + "\n")

    debug = info
    warning = critical = error


def configure(settings: Settings, process: str) -> None:
    """Set up logging for this process; `process` is its name in every line (`web`, `dispatcher`, …)."""
    stderr = Stderr()
    level = _LEVELS[settings.log_level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _shorten,
    ]
    renderer: structlog.typing.Processor = (
        _json
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    _adopt_standard_logging(stderr, level, shared, renderer, process)


def _adopt_standard_logging(
    stderr: Stderr,
    level: int,
    shared: list[structlog.typing.Processor],
    renderer: structlog.typing.Processor,
    process: str,
) -> None:
    def named(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # A library may log from a thread or task that has none of our context.
        event.setdefault("process", process)
        return event

    handler = logging.StreamHandler(stderr)  # logging.shutdown(), which runs at the exit too, flushes it
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, named],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))  # libraries speak up only when something is wrong
    # Its pool tells each second, with a traceback, what our loops tell once and in a line: Postgres is away.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)


# Made once: json.dumps() makes one for each line where it has to be told of `default`.
_encode = json.JSONEncoder(default=repr).encode


def _json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return _encode(event)


def _shorten(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            short = value if len(value) <= VALUE_CHARACTERS_MAX else value[:VALUE_CHARACTERS_MAX] + "…"
            # JSON would escape what is not printable; a terminal would obey it.
            event[key] = short if short.isprintable() else "".join(map(_escaped, short))
    return event


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
