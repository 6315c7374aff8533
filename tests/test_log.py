"""Lines of the log go out together, in their order, and none is kept when the process ends."""

import json
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.pure

BEGIN = """
import asyncio, logging, os, signal, sys, threading
import structlog
from server.log import WAITING_CHARACTERS_MAX, configure
from server.settings import Settings
configure(Settings.from_env({}), "web")
log = structlog.get_logger()
"""


def lines_of(program: str, *, ended_by: int = 0) -> list[dict[str, Any]]:
    """What a process of this program logs."""
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(program)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert ran.returncode == ended_by, ran.stderr
    return [json.loads(line) for line in ran.stderr.splitlines()]


def test_lines_keep_their_order_and_the_last_is_there_at_the_exit() -> None:
    found = lines_of(
        """
        async def main():
            for n in range(50):
                log.info("told", n=n)
                if n % 10 == 4:
                    log.warning("urgent", n=n)
                    logging.getLogger("library").warning("its own")
                if n == 30:
                    await asyncio.to_thread(log.info, "drawn")
                if n % 7 == 0:
                    await asyncio.sleep(0)
            log.info("last")
            asyncio.get_running_loop().stop()  # ends in this very turn
        log.info("before")
        try:
            asyncio.run(main())
        except RuntimeError:
            log.info("after")
        """
    )
    events = [line["event"] for line in found]
    assert [line["n"] for line in found if line["event"] == "told"] == list(range(50))
    assert events[0] == "before"
    assert events[-2:] == ["last", "after"]
    for at, event in enumerate(events):
        if event == "urgent":
            assert found[at - 1]["n"] == found[at]["n"]
            assert events[at + 1] == "its own"
    assert found[events.index("drawn") - 1]["n"] == 30
    assert all(line["process"] == "web" for line in found)


def test_many_lines_of_one_turn_are_few_writes() -> None:
    (line,) = lines_of(
        """
        written, write = [], os.write
        os.write = lambda fd, data: written.append(len(data)) or len(data)
        async def main():
            for _ in range(2_000):
                log.info("told", text="x" * 100)
            waiting = 2_000 * 200 - sum(written)
            await asyncio.sleep(0)
            return waiting
        waiting = asyncio.run(main())
        os.write = write
        log.info("counted", writes=len(written), waiting=waiting, most=max(written), limit=WAITING_CHARACTERS_MAX)
        """
    )
    assert 2 <= line["writes"] <= 20
    assert line["most"] <= line["limit"] + 1_000, "what waits is bounded"


def test_a_server_that_a_signal_ends_has_said_all() -> None:
    found = lines_of(
        """
        from server.serve import run_app

        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            os.kill(os.getpid(), signal.SIGTERM)
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            log.info("ended")  # in the turn in which the signal is raised again

        run_app(app, host="127.0.0.1", port=0)
        """,
        ended_by=-signal.SIGTERM,
    )
    assert [line["event"] for line in found] == ["ended"]


def test_a_line_that_cannot_be_written_is_dropped() -> None:
    (line,) = lines_of(
        """
        other = os.dup(2)
        os.close(2)
        async def main():
            log.info("lost")
            log.warning("lost")
            await asyncio.sleep(0)
        asyncio.run(main())
        os.dup2(other, 2)
        log.info("found")
        """
    )
    assert line["event"] == "found"
