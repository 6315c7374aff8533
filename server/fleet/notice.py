"""Tells systemd that we are ready (sd_notify(3), Type=notify). Its address is no setting: systemd puts it there."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Such as `READY=1`. Where nobody asked for it, nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(address)
        to.send(state.encode())
