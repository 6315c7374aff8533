"""A cluster of an older Postgres is brought over by pg_upgrade, which needs the older binaries too.

The old one stays beside the new one, as it was. A cluster of a newer Postgres is refused.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from server.embedded.children import ChildFailed, run_to_end

# Where Debian, and the packages of the Postgres project, put the binaries of each version.
INSTALLED = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin")


def differing_versions(cluster: Path, binaries: Path) -> tuple[int, int] | None:
    """The major versions of the cluster and of the binaries; None where they are one. Raises ChildFailed, OSError."""
    ours = _number(r"PostgreSQL\) (\d+)", [str(binaries / "postgres"), "--version"])
    text = (cluster / "PG_VERSION").read_text(errors="replace").strip()
    if not text.isdecimal():
        raise ChildFailed(f"{cluster} is no Postgres cluster of ours: its PG_VERSION names no version")
    return None if int(text) == ours else (int(text), ours)


def bring_over(
    cluster: Path,
    binaries: Path,
    create: Callable[..., None],
    *,
    user: int | None,
    superuser: str,
    sockets: Path,
    log: Path,
) -> Path:
    """Upgrade a cluster that no server runs on, under its own name; where the old one is kept.

    `create(path, *options)` makes an empty one. Raises ChildFailed with what to do, and OSError; the cluster is then
    what it was.
    """
    old, ours = differing_versions(cluster, binaries) or (0, 0)
    if old > ours:
        raise ChildFailed(
            f"the database in {cluster} is of Postgres {old}, newer than the {ours} of this Taskbeam: "
            "use the newer one again, or choose another folder with --data"
        )
    places = [Path(place.format(old)) for place in INSTALLED]
    older = next((place for place in places if os.access(place / "pg_ctl", os.X_OK)), None)
    if older is None:
        raise ChildFailed(
            f"the database in {cluster} is of Postgres {old}, and this Taskbeam brings {ours}: install Postgres {old} "
            f"(Debian: postgresql-{old}) and start again, and it is brought over; nothing was touched"
        )
    new = _brought_over(cluster)
    shutil.rmtree(new, ignore_errors=True)
    options = [] if _has_checksums(cluster, older) else ["--no-data-checksums"]
    create(new, *options)

    try:
        # What a crash left is for the older one to recover: it has nothing to read, and ends.
        run_to_end([str(older / "postgres"), "--single", "-D", str(cluster), "postgres"], log, user=user)
        argv = [str(binaries / "pg_upgrade"), f"--username={superuser}", f"--socketdir={sockets}", "--no-sync"]
        argv += [
            f"--old-bindir={older}",
            f"--new-bindir={binaries}",
            f"--old-datadir={cluster}",
            f"--new-datadir={new}",
        ]
        run_to_end(argv, log, user=user, cwd=sockets)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    os.sync()  # once for all of it
    kept = cluster.with_name(f"{cluster.name}.{old}")
    cluster.rename(kept)
    finish(cluster)
    return kept


def finish(cluster: Path) -> None:
    """Give the new cluster the name of the old one, which was put aside: also after a crash in between."""
    if not cluster.exists() and _brought_over(cluster).exists():
        _brought_over(cluster).rename(cluster)


def _brought_over(cluster: Path) -> Path:
    return cluster.with_name(f"{cluster.name}.upgraded")


def _has_checksums(cluster: Path, binaries: Path) -> bool:
    return _number(r"checksum version:\s+(\d+)", [str(binaries / "pg_controldata"), "-D", str(cluster)]) > 0


def _number(pattern: str, argv: list[str]) -> int:
    env = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env, timeout=30)
    match = re.search(pattern, done.stdout)
    if match is None:
        raise ChildFailed(f"{argv[0]} does not work here: {(done.stderr or done.stdout).strip()[:300]}")
    return int(match[1])
