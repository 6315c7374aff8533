"""A process of ours that is started again when it ends: after a pause that grows while it does not last.

It has no loop of its own: the supervisor looks at it, ten times a second, and says what it is told.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from server.embedded.children import ChildFailed, last_words

PAUSE_SECONDS_MIN = 0.25
PAUSE_SECONDS_MAX = 10.0
# Who has lasted this long begins anew with the shortest pause.
STEADY_SECONDS = 30.0


class Part:
    """`begin` starts the process; what it writes to `log`, if that is not the terminal, is told when it ends."""

    def __init__(self, name: str, begin: Callable[[], "subprocess.Popen[bytes]"], log: Path | None = None) -> None:
        self.name = name
        self.failures = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._begin = begin
        self._log = log
        self._log_from = 0
        self._began = 0.0
        self._again_at: float | None = None

    def start(self) -> None:
        """Raises what `begin` raises."""
        self._began = time.monotonic()
        if self._log is not None:
            self._log_from = self._log.stat().st_size if self._log.exists() else 0
        self.process = self._begin()

    def look(self, now: float) -> str | None:
        """See whether it runs, start it again when its pause is over; what there is to say, in one line.

        `now` is time.monotonic().
        """
        if self._again_at is not None:
            if now < self._again_at:
                return None
            self._again_at = None
            try:
                self.start()
            except (OSError, ChildFailed) as error:
                return self._pause(now, f"could not be started ({error})")
            return None
        if self.process is None or self.process.poll() is None:
            return None
        return self._pause(now, f"ended ({self._how(self.process.returncode)})")

    def _pause(self, now: float, what: str) -> str:
        self.failures = 1 if now - self._began > STEADY_SECONDS else self.failures + 1
        pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2.0 ** min(self.failures - 1, 10))
        self._again_at = now + pause
        return f"{self.name} {what}; again in {pause:g} s"

    def _how(self, code: int) -> str:
        if code < 0:
            return signal.Signals(-code).name
        said = "" if self._log is None else last_words(self._log, self._log_from)
        return f"exit code {code}: {said}" if said else f"exit code {code}"
