"""Says in time that the disk of the data folder is filling up, and when there is room again: once each."""

import os
from pathlib import Path

# A few segments of Postgres' log, and some pictures.
LOW_BYTES = 32 * 1024 * 1024
LOOK_SECONDS = 1.0


class Space:
    """`look()` often; it asks the disk once a second."""

    def __init__(self, folder: Path, low_bytes: int = LOW_BYTES) -> None:
        self._folder = folder
        self._low_bytes = low_bytes
        self._low = False
        self._due = 0.0

    def look(self, now: float) -> str | None:
        """What there is to say, in one line; `now` is time.monotonic()."""
        if now < self._due:
            return None
        self._due = now + LOOK_SECONDS
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            return self._turn(True, f"the data folder {self._folder} cannot be seen: {error.strerror}")
        free = disk.f_bavail * disk.f_frsize
        # Not to and fro at the edge.
        if free < self._low_bytes * (2 if self._low else 1):
            left = f"{free / 1e6:.0f} MB left on the disk of {self._folder}"
            return self._turn(True, f"{left}: when it is full nothing new is taken until there is room")
        return self._turn(False, f"there is room again on the disk of {self._folder}")

    def _turn(self, low: bool, text: str) -> str | None:
        turned, self._low = low != self._low, low
        return text if turned else None
