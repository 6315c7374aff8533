"""The command `taskbeam`: one sub-command a process or chore. Imports what a sub-command needs only when it runs."""

import asyncio
import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from server.bench.command import bench
from server.settings import InvalidSettings, Settings


def _settings() -> Settings:
    try:
        return Settings.from_env()
    except InvalidSettings as error:
        _refuse(error)


def _refuse(error: InvalidSettings) -> NoReturn:
    for problem in error.problems:
        click.echo(f"taskbeam: {problem}", err=True)
    sys.exit(2)


FD = click.option("--fd", type=int, default=None, help="A listening socket that was handed on to this process.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Pushes the status of long-running tasks to browsers, so that nobody polls.

    `taskbeam settings` lists every environment variable.
    """


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Port of the web server.  [default: 8000]")
@click.option("--host", default=None, help="Address it listens on.  [default: 127.0.0.1]")
@click.option("--data", type=click.Path(path_type=Path), default=None, help="Folder for all data.")
@click.option("--processes", type=click.IntRange(1, 256), default=None, help="Web processes.  [default: 1]")
def up(port: int | None, host: str | None, data: Path | None, processes: int | None) -> None:
    """Run everything here: Postgres, Redis, web, dispatcher, generator. Ctrl-C ends it all.

    DATABASE_URL, REDIS_URL, QSTASH_TOKEN and GENERATOR_URL each replace one part by yours.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to end in order
    from server.up import run_up

    overrides = {"PORT": port, "HOST": host, "DATA_DIR": data, "WEB_PROCESSES": processes}
    try:
        sys.exit(run_up({name: str(value) for name, value in overrides.items() if value is not None}))
    except InvalidSettings as error:
        _refuse(error)


@main.command()
@click.option("--processes", type=click.IntRange(1, 256), default=None, help="How many.  [default: one a core]")
@FD
def serve(processes: int | None, fd: int | None) -> None:
    """Several web processes behind one port; SIGHUP replaces them one after the other, and no connection is lost."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to end in order
    from server.fleet.supervisor import run_serve

    try:
        sys.exit(run_serve(_settings(), processes, fd))
    except InvalidSettings as error:
        _refuse(error)


@main.command()
@FD
@click.option("--place", hidden=True, default=None, help="This process's place among those of `serve`.")
def web(fd: int | None, place: str | None) -> None:
    """One web process: API, streams and pages."""
    from server.fleet.board import Place
    from server.serve import run_web

    found = None if place is None else Place.parse(place)
    _run(lambda settings, fd: run_web(settings, fd, found), fd)


@main.command()
@FD
def dispatcher(fd: int | None) -> None:
    """Our own dispatcher, which speaks the QStash API."""
    from server.dispatch.process import run_dispatcher

    _run(run_dispatcher, fd)


@main.command()
@FD
def generator(fd: int | None) -> None:
    """The built-in image generator."""
    from server.generator.process import run_generator

    _run(run_generator, fd)


def _run(process: Callable[[Settings, int | None], None], fd: int | None) -> None:
    from server.db import DatabaseNotReady

    try:
        process(_settings(), fd)
    except InvalidSettings as error:
        _refuse(error)
    except DatabaseNotReady as error:
        click.echo(f"taskbeam: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@main.command()
def migrate() -> None:
    """Bring the database up to date; safe to run from many places at once.

    It is the one at DATABASE_URL, or at DATABASE_DIRECT_URL where that is set.
    """
    import asyncpg

    from server import migrate as migration
    from server.db import explain

    url = _settings().direct_url
    if url is None:
        _refuse(InvalidSettings(["DATABASE_URL is not set"]))
    try:
        applied = asyncio.run(migration.migrate(url))
    except migration.MigrationRefused as error:
        _refuse(InvalidSettings([str(error)]))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        _refuse(InvalidSettings([", ".join([explain(error, url), *getattr(error, "__notes__", ())])]))
    click.echo("applied " + ", ".join(applied) if applied else "nothing to do")


@main.command()
def settings() -> None:
    """Every setting: its variable, its default, what it means."""
    for field in dataclasses.fields(Settings):
        default = "" if field.default in (None, ()) else f"  [default: {field.default}]"
        click.echo(f"{field.metadata['env']}{default}\n    {field.metadata['doc']}")


main.add_command(bench)


@main.command()
@click.option("--faults", type=click.IntRange(1, 100_000), default=200, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=None, help="Repeats a schedule.  [default: a new one]")
@click.option("--minutes", type=click.FloatRange(0.1, 600), default=None, help="[default: a minute for 100 faults]")
@click.option("--tasks", type=click.IntRange(1, 5_000), default=100, show_default=True, help="Open at once.")
@click.option("--followers", type=click.IntRange(1, 5_000), default=300, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Figures for programs.")
def chaos(faults: int, seed: int | None, minutes: float | None, tasks: int, followers: int, as_json: bool) -> None:
    """Break every part and link on this machine, and prove that no client lost an update. Starts its own servers."""
    import secrets

    import msgspec

    from server.chaos.figures import spell_out, table
    from server.chaos.run import run_chaos

    seed = secrets.randbelow(1_000_000) if seed is None else seed
    click.echo(f"… seed {seed}", err=True)
    figures, defects, folder = run_chaos(faults, seed, minutes or faults / 100, tasks, followers)
    click.echo(msgspec.json.encode(figures).decode() if as_json else table(figures))
    if defects:
        click.echo(spell_out(defects, folder), err=True)
    sys.exit(1 if defects else 0)


@main.command()
@click.argument("url")
@click.option("--tasks", type=click.IntRange(1, 20), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(1, 3_600), default=120.0, show_default=True, help="For all of it.")
@click.option("--token", envvar="TASKBEAM_TOKEN", show_envvar=True, help="Sent as Authorization: Bearer.")
@click.option("--user", envvar="TASKBEAM_USER", show_envvar=True, help="NAME:PASSWORD, where a proxy asks for one.")
@click.option("--prompt", default="a red fox under the moon", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=None, help="Draws breaks and transports again.  [default: new]")
@click.option("--keep", is_flag=True, help="Do not delete the tasks at the end.")
@click.option("--json", "as_json", is_flag=True, help="The report for programs.")
def verify(
    url: str,
    tasks: int,
    seconds: float,
    token: str | None,
    user: str | None,
    prompt: str,
    seed: int | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Check a deployment from outside: start tasks at URL, follow them over every transport, judge what was seen.

    Each task is a run of the deployment's generator, at its price. Exit code 0: no defect; 1: defects; 2: not reached.
    """
    import secrets

    import msgspec

    from server.clients.origin import BadUrl, Origin, authorization
    from server.verify.reach import NotReached
    from server.verify.report import text
    from server.verify.run import Plan, run_verify

    seed = secrets.randbelow(1_000_000) if seed is None else seed
    try:
        origin = Origin.parse(url, authorization(token, user))
        report = run_verify(Plan(tasks, seconds, prompt, seed, keep), origin)
    except (BadUrl, NotReached) as error:
        click.echo(f"taskbeam: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    click.echo(msgspec.json.encode(report).decode() if as_json else text(report))
    sys.exit(1 if report.defects else 0)
