"""A failover of a real Sentinel: the bus and the publisher find the new master by themselves."""

import contextlib
import random
from pathlib import Path

import pytest
import redis

from server.push.publisher import Channels
from server.push.redis_link import UNAVAILABLE, open_link
from tests.push.heard import Heard, change, send
from tests.redis_servers import alone, free_port, redis_process

LOGIN = ["--requirepass", "hunter2", "--masterauth", "hunter2"]
SENTINEL = """port {sentinel}
bind 127.0.0.1
dir {folder}
requirepass of-the-sentinel
sentinel monitor mymaster 127.0.0.1 {master} 1
sentinel auth-pass mymaster hunter2
sentinel down-after-milliseconds mymaster 300
sentinel failover-timeout mymaster 2000
"""


async def test_after_a_failover_the_new_master_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "sample", lambda urls, _: urls)  # the one that is not there first
    master, replica, sentinel, nobody = (free_port() for _ in range(4))
    file = tmp_path / "sentinel.conf"
    file.write_text(SENTINEL.format(sentinel=sentinel, folder=tmp_path, master=master))
    url = (
        f"redis+sentinel://:hunter2@127.0.0.1:{nobody},127.0.0.1:{sentinel}/2"
        "?service=mymaster&sentinel_password=of-the-sentinel"
    )
    quick = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
    of_master = ["--replicaof", "127.0.0.1", str(master)]
    with (
        redis_process(master, *alone(master, tmp_path), *LOGIN, *quick) as process,
        redis_process(replica, *alone(replica, tmp_path), *LOGIN, *of_master),
        redis_process(sentinel, str(file), "--sentinel"),
        redis.Redis(port=sentinel, password="of-the-sentinel") as asked,
        redis.Redis(port=replica, password="hunter2") as second,
    ):
        out = Channels(url, "")
        async with Heard(url).running() as heard:
            heard.bus.subscribe("task:a")
            await heard.bus.subscribed("task:a", 5)
            await send(out, change("a"))
            await heard.until(lambda: len(heard.items) == 1)
            for wrong in ("mymaster", "of-the-sentinel"), ("of-the-sentinel", "wrong"):
                with pytest.raises(UNAVAILABLE):
                    await open_link(url.replace(*wrong), lambda replies: None)
            await heard.until(lambda: second.info("replication")["master_link_status"] == "up")
            await heard.until(lambda: len(asked.sentinel_slaves("mymaster")) == 1)

            process.kill()
            await heard.until(lambda: heard.times_connected == 2, 20)
            assert second.info("replication")["role"] == "master"
            await heard.bus.subscribed("task:a", 5)
            assert dict(second.pubsub_numsub("task:a")) == {b"task:a": 1}
            with contextlib.suppress(*UNAVAILABLE):
                await send(out, change("a", 2))  # over the link to the old one, perhaps
            await send(out, change("a", 3))
            await heard.until(lambda: heard.items[-1][1].position == 3)
        await out.close()


async def test_a_server_that_is_no_master_any_more_is_not_taken(tmp_path: Path) -> None:
    """What a Sentinel says may be old; the server itself is asked."""
    replica, sentinel = free_port(), free_port()
    file = tmp_path / "sentinel.conf"
    file.write_text(SENTINEL.format(sentinel=sentinel, folder=tmp_path, master=replica))
    with (
        redis_process(replica, *alone(replica, tmp_path), *LOGIN, "--replicaof", "127.0.0.1", "1"),
        redis_process(sentinel, str(file), "--sentinel"),
    ):
        url = f"redis+sentinel://:hunter2@127.0.0.1:{sentinel}?service=mymaster&sentinel_password=of-the-sentinel"
        with pytest.raises(UNAVAILABLE, match="not the master any more"):
            await open_link(url, lambda replies: None)
