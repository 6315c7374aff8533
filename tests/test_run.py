"""The bootstrap `./run`, where it cannot set anything up: it says what to do, and does not wait."""

import os
import subprocess
from pathlib import Path

RUN = Path(__file__).parent.parent / "run"


def test_a_place_that_cannot_be_written_is_named_with_the_way_out() -> None:
    env = {**os.environ, "TASKBEAM_ENV": "/proc/sys/env"}
    done = subprocess.run([RUN, "--help"], env=env, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 1
    assert done.stderr == (
        "run: /proc/sys cannot be written: "
        "set TASKBEAM_ENV=/a/folder/of/yours/env, where the environment is to be kept\n"
    )
