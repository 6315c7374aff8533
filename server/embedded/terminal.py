"""What `up` says to the person who started it. It never fails: nobody has to be reading.

Straight to the file descriptors, since a buffer that could not be written would be tried again, and complained of,
when the process ends. A closed pipe, a terminal that is gone or a full disk costs the words and nothing else.
"""

import contextlib
import os

STDOUT, STDERR = 1, 2


def occupy_standard_files() -> None:
    """Open what was closed (`>&-`): else the first socket would become our standard output, and our children's."""
    for fd in (0, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one


def say(text: str) -> None:
    """On standard output."""
    _write(STDOUT, f"{text}\n")


def warn(text: str) -> None:
    """On standard error, in one line, with our name."""
    _write(STDERR, f"taskbeam: {' '.join(text.split())}\n")


def _write(fd: int, text: str) -> None:
    rest = text.encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(fd, rest) :]
