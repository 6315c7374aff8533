"""The bench itself, on real parts with tiny numbers: that it measures everything and nothing is lost. No times."""

import os
import shutil
import subprocess
import sys
from typing import Any

import msgspec

from tests.deployment import COMMAND, clean_env
from tests.supervised import of_folder

PROGRAM = """
import sys
from server.bench.run import Asked, run_bench
sys.argv = [{command!r}, "bench", "--json"]
parts = ("push", "callbacks", "end-to-end", "reconnect")
asked = Asked(streams=20, seconds=0.05, rate=100, floor={floor}, against=("sse-starlette",))
sys.exit(run_bench(parts, asked, as_json=True, drawing=None, words=()))
"""


def test_a_short_run_measures_all_of_it(tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("bench")
    folder.chmod(0o755)
    floor = shutil.which("cc") is not None
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(command=str(COMMAND), floor=floor)],
        env={**clean_env(), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout)
    for load in ("w1", "w2", "w2_coalesced"):
        push = found["push"][load]
        assert push["events"] > 0
        assert push["lost"] == 0
        assert push["us_per_event"] > 0
        assert push["peers"].keys() == ({"floor"} if floor else set()) | {"sse-starlette"}
        assert (push["floor_us"] is not None) == (push["ratio"] is not None) == floor
        assert push["checked_streams"] > 0
        assert push["p50_ms"] <= push["p99_ms"] <= push["p999_ms"]
    assert found["idle"]["ws_bytes"] > 0
    assert found["join"]["us"] > 0
    callbacks = found["callbacks"]
    counted = {callbacks[name] for name in ("sent", "committed", "ledgered", "published", "delivered")}
    assert len(counted) == 1
    assert callbacks["lost"] == 0
    assert callbacks["sent"] > 200
    assert found["end_to_end"]["callbacks"] == 5
    assert found["end_to_end"]["lost"] == 0
    assert found["reconnect"]["queries"] > 0
    assert found["durability"] == {"fsync": "on", "synchronous_commit": "on"}
    assert os.listdir(folder) == []
    assert of_folder(folder) == []
