"""The listening sockets of `up`, on loopback only, and who has a port that is taken."""

import contextlib
import errno
import ipaddress
import os
import pwd
import socket
from pathlib import Path

BACKLOG = 4096
LISTEN = "0A"


class CannotListen(Exception):
    """In one line: which address, why, what to do."""


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens on the loopback address `host` (or a name for one: IPv4 first). Raises CannotListen."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CannotListen(f"{host} cannot be resolved: {error.strerror}; take --host 127.0.0.1") from None
    reason = f"{host} is not an address of this machine alone; take --host 127.0.0.1"
    for family, _, _, _, address in sorted(found, key=lambda entry: entry[0] != socket.AF_INET):
        if ipaddress.ip_address(str(address[0])).is_loopback:
            try:
                return _listen(family, address)
            except OSError as error:
                reason = f"port {port} on {host} cannot be used: {error.strerror}; {_advice(error, port)}"
    raise CannotListen(reason)


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _advice(error: OSError, port: int) -> str:
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return "this machine has no such address; take --host 127.0.0.1"
    who = holder(port) if error.errno == errno.EADDRINUSE else None
    return f"{who} has it; choose another with --port" if who else "choose another with --port"


def holder(port: int) -> str | None:
    """Who listens on a TCP port of this machine, for a person; None where that cannot be seen."""
    owners = dict(_listening(port))
    pids = sorted(int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    for pid in pids:  # a supervisor is older than those it hands its sockets to
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                if os.readlink(fd).removeprefix("socket:[").removesuffix("]") in owners:
                    return f"process {pid} ({_name(pid)})"
    for uid in owners.values():
        with contextlib.suppress(KeyError):
            return f"a process of {pwd.getpwuid(uid).pw_name}'s"
    return None


def _listening(port: int) -> list[tuple[str, int]]:
    """Inode and user id of each socket that listens on the port."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append((fields[9], int(fields[7])))
    return found


def _name(pid: int) -> str:
    """What it is, without its arguments: those may hold what is not for everybody."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    ours = [number for number, word in enumerate(words[:3]) if Path(word).name == "taskbeam"]
    if ours:
        return " ".join(["taskbeam", *words[ours[0] + 1 : ours[0] + 2]])
    return Path(f"/proc/{pid}/comm").read_text().strip()
