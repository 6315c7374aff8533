"""The command `taskbeam bench` and its sub-commands. Imports what measures only when it runs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import click
from click.core import ParameterSource

STREAMS_MAX = 15_000

Options: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def _where_it_can_be_written(_: click.Context, __: click.Parameter, file: Path | None) -> Path | None:
    """Asked before what takes minutes, not after."""
    if file is not None and not (file.parent.is_dir() and os.access(file if file.exists() else file.parent, os.W_OK)):
        raise click.BadParameter(f"{str(file)!r} cannot be written")
    return file


def _streams(default: int) -> Options:
    of = click.IntRange(10, STREAMS_MAX)
    return click.option("--streams", type=of, default=default, show_default=True, help="Open at once.")


def _seconds(default: float) -> Options:
    of = click.FloatRange(0.1, 60)
    return click.option("--seconds", type=of, default=default, show_default=True, help="Of each round, or load.")


def _options(*options: Options) -> Options:
    as_json: Options = click.option("--json", "as_json", is_flag=True, help="Figures for programs.")

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (as_json, *reversed(options)):
            function = option(function)
        return function

    return add


RATE = click.option(
    "--rate", type=click.IntRange(1, 5_000), default=200, show_default=True, help="Callbacks a second, end to end."
)
PUSHING = (
    click.option(
        "--svg",
        "drawing",
        type=click.Path(dir_okay=False, path_type=Path),
        default=None,
        callback=_where_it_can_be_written,
        help="A plot, to this file.",
    ),
    click.option("--floor", is_flag=True, help="Beside the least it can cost: a program in C (where there is `cc`)."),
    click.option(
        "--against",
        type=click.Choice(["nchan", "sse-starlette"]),
        multiple=True,
        help="Beside this peer, in the same rounds; may be repeated.",
    ),
)


@click.group(invoke_without_command=True)
@_options(_streams(1_000), _seconds(1.0), RATE, *PUSHING)
@click.pass_context
def bench(context: click.Context, /, **options: Any) -> None:
    """Measure this machine: what an event, a stream and a callback cost. Starts its own servers.

    Without a sub-command all parts, in a short form.
    """
    if context.invoked_subcommand is None:
        from server.bench.run import PARTS

        _run(PARTS, **options)
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{given[0]} would have no effect here: put it after {context.invoked_subcommand!r}")


@bench.command()
@_options(_streams(2_000), _seconds(1.0), *PUSHING)
def push(**options: Any) -> None:
    """An event pushed, a stream opened, a stream kept open."""
    _run(("push",), **options)


@bench.command()
@_options(_seconds(4.0))
def callbacks(**options: Any) -> None:
    """Signed callbacks, as many as it takes: committed, published, delivered."""
    _run(("callbacks",), **options)


@bench.command("end-to-end")
@_options(_streams(10_000), _seconds(10.0), RATE)
def end_to_end(**options: Any) -> None:
    """From the callback to the client's socket, at a rate."""
    _run(("end-to-end",), **options)


@bench.command()
@_options(_streams(10_000))
def reconnect(**options: Any) -> None:
    """All streams are cut at once, and come back."""
    _run(("reconnect",), **options)


@bench.command()
@_options()
def polling(**options: Any) -> None:
    """What is replaced: clients that ask once a second."""
    _run(("polling",), **options)


@bench.command()
@_options()
def rights(**options: Any) -> None:
    """Row level security and access tokens."""
    _run(("rights",), **options)


def _run(
    parts: tuple[Any, ...],
    *,
    as_json: bool,
    streams: int = 0,
    seconds: float = 0.0,
    rate: int = 200,
    floor: bool = False,
    against: tuple[Any, ...] = (),
    drawing: Path | None = None,
) -> None:
    if sys.platform != "linux":
        raise click.ClickException("the bench reads the kernel's account in /proc, so it runs on Linux only")
    from server.bench.run import Asked, run_bench

    words = sys.argv[sys.argv.index("bench") + 1 :] if "bench" in sys.argv else []
    asked = Asked(streams, seconds, rate, floor, against)
    sys.exit(run_bench(parts, asked, as_json=as_json, drawing=drawing, words=words))
