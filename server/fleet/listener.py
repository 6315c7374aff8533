"""The listening socket of a process, or of several that share it."""

import socket

from server.settings import InvalidSettings

BACKLOG = 4096


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises InvalidSettings, in one line."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidSettings([f"port {port} on {host} cannot be used: {error.strerror}"]) from None
    return listener


def inherit_listener(fd: int) -> socket.socket:
    """The one that was handed on as `fd`, by a supervisor or systemd. Raises InvalidSettings."""
    try:
        listener = socket.socket(fileno=fd)
        listener.listen(BACKLOG)
    except OSError as error:
        raise InvalidSettings([f"--fd {fd} is no listening socket: {error.strerror}"]) from None
    return listener
