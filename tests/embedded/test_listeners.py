"""Which sockets `up` listens on, and what it says of those it cannot have."""

import errno
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from server.embedded.listeners import CannotListen, open_listener


def found(*addresses: str) -> Any:
    """A resolver with this answer."""

    def resolve(_: str, port: int, **__: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        tails = [(port, 0, 0) if ":" in address else (port,) for address in addresses]
        return [(f, 1, 6, "", (a, *t)) for f, a, t in zip(families, addresses, tails, strict=True)]

    return resolve


def test_a_name_with_both_kinds_of_address_gets_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found("::1", "127.0.0.1"))
    with open_listener("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_name_with_the_new_kind_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found("::1"))
    said = ""
    try:
        with open_listener("localhost", 0) as listener:
            said = listener.getsockname()[0]
    except CannotListen as error:  # this machine has none
        said = str(error)
    assert said == "::1" or said.endswith("this machine has no such address; take --host 127.0.0.1")


def test_a_machine_without_the_new_kind_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = socket.socket

    def without(family: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return whole(family)

    monkeypatch.setattr(socket, "socket", without)
    with pytest.raises(CannotListen, match=r"^port 0 on ::1 cannot .* has no such address; take --host 127.0.0.1$"):
        open_listener("::1", 0)
    open_listener("127.0.0.1", 0).close()


def test_a_name_that_leads_off_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found("192.0.2.1"))
    with pytest.raises(CannotListen, match="is not an address of this machine alone"):
        open_listener("localhost", 0)


def test_who_has_a_port_is_named_without_what_it_was_started_with() -> None:
    code = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, "--password=secret"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with pytest.raises(CannotListen) as refused:
            open_listener("127.0.0.1", port)
        process.kill()
    assert f"process {process.pid} (python" in str(refused.value)
    assert "has it; choose another with --port" in str(refused.value)
    assert "secret" not in str(refused.value)
