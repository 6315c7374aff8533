"""A run of the bench: the parts that were asked for, one after the other on one stage, and what is said of them."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import click
import msgspec

from server.bench import callbacks, machine, plot, push
from server.bench.contenders import PeerName
from server.bench.figures import Figures
from server.bench.frames import BadFrame
from server.bench.machine import CannotMeasure, Watch
from server.bench.polling import measure_polling
from server.bench.reconnect import measure_reconnect
from server.bench.rights import measure_rights
from server.bench.stage import Stage
from server.bench.table import command, table
from server.embedded.children import ChildFailed
from server.embedded.ending import Ending, Stopped

Part = Literal["push", "callbacks", "end-to-end", "polling", "rights", "reconnect"]
# The last one has Postgres write all that it is asked into its log.
PARTS: tuple[Part, ...] = ("push", "callbacks", "end-to-end", "polling", "rights", "reconnect")


class Asked(NamedTuple):
    """`streams` at once in each part; `seconds` of each round or load; `rate`: callbacks a second, end to end."""

    streams: int
    seconds: float
    rate: float = 200
    floor: bool = False
    against: tuple[PeerName, ...] = ()


def run_bench(parts: Sequence[Part], asked: Asked, *, as_json: bool, drawing: Path | None, words: Sequence[str]) -> int:
    """Measure and print; the exit code: 1 where an event was lost. `words` repeat it.

    Raises click.ClickException where it cannot be measured.
    """
    ending = Ending()
    try:
        ending.listen()
        figures = _measure(parts, asked)
    except Stopped:
        return 130
    except (CannotMeasure, ChildFailed, BadFrame) as error:
        raise click.ClickException(str(error)) from error
    click.echo(msgspec.json.encode(figures).decode() if as_json else table(figures, command(words)))
    if drawing is not None:
        try:
            drawing.write_text(plot.svg(figures))
        except OSError as error:
            raise click.ClickException(f"{drawing} cannot be written: {error.strerror}") from error
    return 1 if figures.lost else 0


def _measure(parts: Sequence[Part], asked: Asked) -> Figures:
    contenders = 1 + asked.floor + len(asked.against)
    machine.raise_file_limit(asked.streams * (contenders if "push" in parts else 1))
    with Stage() as stage:
        figures = Figures(
            durability=stage.durability(), machine=machine.describe(), versions=machine.versions() | stage.versions()
        )
        measure = _ways(stage, asked, figures)
        watch = Watch()
        for part in parts:
            measure[part]()
        figures.noise = watch.noise()
    return figures


def _ways(stage: Stage, asked: Asked, figures: Figures) -> Mapping[Part, Callable[[], None]]:
    web = functools.cache(stage.web)  # one for all parts that want a plain one, once it is wanted

    def pushed() -> None:
        plan = push.Plan(asked.streams, asked.seconds, asked.floor, asked.against)
        figures.push, figures.idle, figures.join = push.measure_push(stage, plan, say)

    def called() -> None:
        figures.callbacks = callbacks.measure_callbacks(stage, web(), asked.seconds, say)

    def followed() -> None:
        plan = callbacks.Plan(asked.streams, asked.seconds, asked.rate)
        figures.end_to_end = callbacks.measure_end_to_end(stage, web(), plan, say)

    def polled() -> None:
        figures.polling = measure_polling(stage, web(), say)

    def allowed() -> None:
        figures.rights = measure_rights(stage, say)

    def cut() -> None:
        figures.reconnect = measure_reconnect(stage, web(), asked.streams, say)

    return {
        "push": pushed,
        "callbacks": called,
        "end-to-end": followed,
        "polling": polled,
        "rights": allowed,
        "reconnect": cut,
    }


def say(text: str) -> None:
    """Progress, beside the figures."""
    click.echo(f"… {text}", err=True)
    sys.stderr.flush()
