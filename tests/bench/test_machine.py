"""What the machine cannot do is said at once, and what it did is taken from the kernel's account."""

import os
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest

from server.bench import contenders, machine
from server.bench.machine import CannotMeasure
from server.bench.stage import Stage

pytestmark = pytest.mark.pure


def test_too_few_files_are_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    raised: list[tuple[int, int]] = []
    machine.raise_file_limit(500)
    machine.raise_file_limit(3_000)
    assert raised == [(3_500, 4_096)]
    with pytest.raises(CannotMeasure, match=r"10500 files .* limit is 4096: raise it \(ulimit -Hn\).*--streams"):
        machine.raise_file_limit(10_000)


def test_processor_time_is_that_of_all_threads() -> None:
    worked, seen = threading.Barrier(3), threading.Event()

    def work() -> None:
        while time.thread_time() < 0.02:
            pass
        worked.wait(10)
        seen.wait(10)  # who has ended is no longer in the account

    used, before = time.process_time(), machine.cpu_seconds(os.getpid())
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    worked.wait(10)
    counted = machine.cpu_seconds(os.getpid()) - before
    whole = time.process_time() - used
    seen.set()
    for thread in threads:
        thread.join()
    assert 0.038 < counted < whole + 0.01  # of a thread that runs, the account may be a tick behind


def test_an_nchan_that_is_not_there_is_said_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    stage = Stage.__new__(Stage)  # nothing of it is touched
    with pytest.raises(CannotMeasure, match="apt-get install nginx libnginx-mod-nchan"):
        contenders.nchan(stage)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/sbin/nginx")
    monkeypatch.setattr(contenders, "NGINX_MODULES", (tmp_path,))
    with pytest.raises(CannotMeasure, match="apt-get install nginx libnginx-mod-nchan"):
        contenders.nchan(stage)
