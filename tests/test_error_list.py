"""Runs every row of docs/errors.md: the settings with the command itself, the requests against a real server."""

import asyncio
import dataclasses
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from server.cli import main
from server.dispatch.token import make_token
from server.settings import InvalidSettings, Settings
from tests import curl
from tests.conftest import Connection, Deploy
from tests.deployment import COMMAND, clean_env

ERRORS = Path(__file__).parent.parent / "docs" / "errors.md"
# What the page presupposes: all else is right.
RIGHT = {
    "DATABASE_URL": "postgres://app:hunter2@127.0.0.1:9/app",
    "GENERATOR_URL": "https://images.example.com/generate",
    "QSTASH_URL": "http://127.0.0.1:8080",
    "QSTASH_TOKEN": "hunter2" * 5,
    "QSTASH_CURRENT_SIGNING_KEY": "hunter2" * 5,
}
UNSET = {field.metadata["env"]: None for field in dataclasses.fields(Settings)}
PROCESSES_AT_ONCE = 2


def rows(heading: str) -> list[list[str]]:
    """The cells below a heading; of a cell in backquotes what stands between them."""
    _, _, rest = ERRORS.read_text().partition(f"\n## {heading}\n")
    found = []
    for line in rest.partition("\n## ")[0].splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r" \| ", line.removeprefix("| ").removesuffix(" |"))]
            found.append([re.sub(r"^(`+) ?(.*?) ?\1$", r"\2", cell) for cell in cells])
    return found


SETTINGS, CHECKS, REQUESTS = rows("Settings"), rows("Checking a deployment"), rows("Requests")


def command(line: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the arguments of a line such as `PORT=x taskbeam web`."""
    words = shlex.split(line)
    env = dict(RIGHT)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    assert words[0] == "taskbeam"
    return env, words[1:]


def refused_by_settings(env: Mapping[str, str]) -> bool:
    try:
        Settings.from_env(env)
    except InvalidSettings:
        return True
    return False


ALONE = [row for row in SETTINGS if refused_by_settings(command(row[0])[0])]
# Refused later, where a process is put together: only the process itself shows that.
BY_PROCESS = [row for row in SETTINGS if row not in ALONE]


@pytest.mark.pure
def test_the_lists_are_long_enough_and_each_row_says_what_to_do() -> None:
    assert len(SETTINGS) >= 20
    assert len(REQUESTS) >= 20
    assert len({row[0] for row in SETTINGS + REQUESTS}) == len(SETTINGS + REQUESTS)
    for row in SETTINGS + REQUESTS:
        assert len(row) == (3 if row in SETTINGS else 4), row
        assert row[-1].endswith((".", "?")), row


@pytest.mark.pure
@pytest.mark.parametrize(("line", "said", "advice"), ALONE, ids=[row[0][:50] for row in ALONE])
def test_a_setting_is_refused_as_the_page_says(line: str, said: str, advice: str) -> None:
    env, arguments = command(line)
    done = CliRunner().invoke(main, arguments, env={**UNSET, **env}, catch_exceptions=False)
    assert done.stderr.splitlines() == [said]
    assert done.exit_code == 2
    assert "hunter2" not in done.output


@pytest.mark.parametrize(("line", "said", "advice"), CHECKS, ids=[row[0][:50] for row in CHECKS])
def test_an_address_is_refused_as_the_page_says(line: str, said: str, advice: str) -> None:
    _, arguments = command(line)
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.stderr.splitlines() == [said]
    assert done.exit_code == 2
    assert "hunter2" not in done.output


async def run(env: Mapping[str, str], arguments: list[str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(COMMAND),
        *arguments,
        env={**clean_env(), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_and_so_does_the_process_in_these_lines_and_no_other() -> None:
    """Those that only it can refuse; and one with several of the others, which are all said at once."""
    turn = asyncio.Semaphore(PROCESSES_AT_ONCE)
    several = {
        name: value for row in ALONE[:4] for name, value in command(row[0])[0].items() if value != RIGHT.get(name)
    }
    assert len(several) > 2

    async def hold(env: Mapping[str, str], arguments: list[str], lines: set[str]) -> None:
        async with turn:
            code, output = await run(env, arguments)
        assert set(output.splitlines()) == lines, arguments
        assert code in (1, 2)
        assert "hunter2" not in output

    each = [hold(*command(line), {said}) for line, said, _ in BY_PROCESS]
    everything = {said for line, said, _ in ALONE[:4]}
    await asyncio.gather(*each, hold({**RIGHT, **several}, ["web"], everything))


async def test_a_request_is_answered_as_the_page_says_and_leaves_nothing(deploy: Deploy, owner: Connection) -> None:
    here = await deploy(dispatchers=0, generator=False)
    secret = await owner.fetchval("select value from taskbeam.secrets where name = 'progress_token'")
    async with here.client() as client:
        accepted = await client.post("/api/generate", json={"prompt": "a test"})
        task_id = accepted.json()["taskId"]
        before = await owner.fetch("select * from public.image_generations")
        events = await owner.fetchval("select count(*) from public.task_events")
        wrong = []
        for line, answer, detail, _ in REQUESTS:
            real = line.replace("TOKEN", make_token(secret, task_id, 1)).replace("TASK", task_id)
            asked = curl.read(real)
            got = await client.request(asked.method, asked.target, headers=asked.headers, content=asked.data)
            problem = got.json()
            assert got.headers["content-type"] == "application/problem+json"
            said = f"{got.status_code} {problem['code']}", problem["detail"]
            if said != (answer, detail):
                wrong.append((line, said))
        assert not wrong, wrong
        assert await owner.fetch("select * from public.image_generations") == before, "no row came, none changed"
        assert await owner.fetchval("select count(*) from public.task_events") == events
