"""Structured logs: one JSON object a line (or a line for people), the same for our events and the libraries'.

Request and task ids travel in contextvars, so that a line deep in the store still says which request it was.
Values are shortened here, once, because a log line must stay one line however hostile its input.
"""

import contextlib
import io
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

from server.settings import Settings

VALUE_CHARACTERS_MAX = 2_000
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class _Stderr(io.TextIOBase):
    """Standard error without a buffer, a line at a time. A line that cannot be written is dropped.

    The terminal may be gone, the pipe closed or the disk full: no request may fail because of that.
    """

    def write(self, text: str) -> int:
        rest = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(2, rest) :]
        return len(text)


def configure(settings: Settings, process: str) -> None:
    """Set up logging for this process; `process` is its name in every line (`web`, `dispatcher`, …)."""
    level = _LEVELS[settings.log_level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _shorten,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    _adopt_standard_logging(level, shared, renderer, process)


def _adopt_standard_logging(
    level: int, shared: list[structlog.typing.Processor], renderer: structlog.typing.Processor, process: str
) -> None:
    def named(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # A library may log from a thread or task that has none of our context.
        event.setdefault("process", process)
        return event

    handler = logging.StreamHandler(_Stderr())
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


def _shorten(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            short = value if len(value) <= VALUE_CHARACTERS_MAX else value[:VALUE_CHARACTERS_MAX] + "…"
            # JSON would escape what is not printable; a terminal would obey it.
            event[key] = short if short.isprintable() else "".join(map(_escaped, short))
    return event


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
