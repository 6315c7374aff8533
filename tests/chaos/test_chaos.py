"""The chaos run itself, in its short form; the long one is for a quiet machine and a person (docs/chaos.md)."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from server.chaos.schedule import plan
from tests.deployment import COMMAND, clean_env

SHORT = ("--faults", "60", "--seed", "32587", "--minutes", "0.12", "--tasks", "60", "--followers", "150", "--json")


async def begin(folder: Path, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(COMMAND),
        "chaos",
        *options,
        env={**clean_env(), "TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def alive_below(folder: Path) -> list[str]:
    """Processes whose command line or environment names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in told:
                found.append(entry.name)
    return found


async def test_sixty_faults_and_nothing_is_lost(folder: Path) -> None:
    place = folder / "c"
    place.mkdir()
    process = await begin(place, *SHORT)
    out, err = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode == 0, err.decode()[-4_000:]
    figures = json.loads(out)
    assert figures["defects"] == dict.fromkeys(("lost", "repeated", "reordered", "untrue", "refused", "open"), 0)
    assert figures["faults"] == Counter(fault.kind for fault in plan(32587, 60, 7.2))
    # It shows something only where there was something to be lost.
    assert figures["tasks"] >= 60
    assert figures["follows"] >= 150
    assert figures["connections"] > 2 * figures["follows"]
    assert figures["events"] > 10 * figures["tasks"]
    assert figures["recovery_ms"]["count"] > 30
    assert list(place.iterdir()) == []
    assert alive_below(place) == []


async def test_ctrl_c_ends_all_of_it(folder: Path) -> None:
    place = folder / "i"
    place.mkdir()
    process = await begin(
        place, "--faults", "600", "--minutes", "1", "--seed", "3", "--tasks", "5", "--followers", "10"
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"all is up" not in await process.stderr.readline():
            pass
    await asyncio.sleep(2)  # until some faults are up
    assert len(alive_below(place)) > 5
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert out == b""
    assert err.decode().splitlines()[-1] == "Aborted!"
    assert list(place.iterdir()) == []
    assert alive_below(place) == []
