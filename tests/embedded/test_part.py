"""A part that keeps ending is started less and less often; time comes from the test, the processes are real."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.embedded.children import ChildFailed
from server.embedded.part import PAUSE_SECONDS_MAX, STEADY_SECONDS, Part


def begin(code: str, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=output, stderr=output)
    process.wait()
    return process


def pauses_of(one: Part, count: int) -> tuple[list[float], list[str]]:
    """Look at it as often as there is something to say; the pauses, and the lines."""
    now = time.monotonic()
    pauses: list[float] = []
    lines: list[str] = []
    while len(lines) < count:
        text = one.look(now)
        if text is None:
            now += 0.05
            continue
        lines.append(text)
        found = re.search(r"; again in (\S+) s$", text)
        assert found is not None
        pauses.append(float(found[1]))
        # Not a moment earlier.
        assert one.look(now + pauses[-1] - 0.01) is None
        now += pauses[-1]
    return pauses, lines


def test_the_pauses_grow_and_its_last_words_are_told(tmp_path: Path) -> None:
    starts = []

    def fail() -> "subprocess.Popen[bytes]":
        starts.append(1)
        return begin(
            f"print('2026 FATAL:  no luck {len(starts)}'); print('hint'); raise SystemExit(3)", tmp_path / "log"
        )

    one = Part("it", fail, tmp_path / "log")
    one.start()
    pauses, lines = pauses_of(one, 8)
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX]
    assert lines[0] == "it ended (exit code 3: no luck 1); again in 0.25 s"
    assert lines[7] == "it ended (exit code 3: no luck 8); again in 10 s"
    assert len(starts) == 8


def test_one_that_cannot_even_be_started_ends_nothing(tmp_path: Path) -> None:
    tries = []

    def fail() -> "subprocess.Popen[bytes]":
        tries.append(1)
        if len(tries) == 1:
            return begin("pass", tmp_path / "log")
        raise ChildFailed("its folder is gone") if len(tries) == 2 else FileNotFoundError(2, "no such program", "x")

    one = Part("it", fail)
    one.start()
    _, lines = pauses_of(one, 3)
    assert lines[1] == "it could not be started (its folder is gone); again in 0.5 s"
    assert lines[2].startswith("it could not be started ([Errno 2] no such program: 'x'); again in 1 s")


def test_one_that_lasted_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Part("it", lambda: begin("pass", tmp_path / "log"))
    one.start()
    assert pauses_of(one, 4)[0] == [0.25, 0.5, 1, 2]
    one.look(time.monotonic() + 100)  # started again
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    one.start()
    text = one.look(STEADY_SECONDS + 1)
    assert text is not None
    assert text.endswith("again in 0.25 s")
