"""The end by a signal: asked for once, whenever it comes, and never between a process and the note that it is ours."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked for the end. Of this kind, because an event loop passes no other on from its callbacks."""


class Ending:
    """`listen()` first. The first signal raises Stopped where the program is; those after it change nothing."""

    def __init__(self) -> None:
        self._asked = False
        self._held = False

    def listen(self) -> None:
        for signum in SIGNALS:
            # Who was started by nohup is to outlive its terminal.
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._come)

    def _come(self, _: int, __: FrameType | None) -> None:
        if self._asked:
            return
        self._asked = True
        if not self._held:
            raise Stopped

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal waits for the end of this block, which must be short."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise Stopped if it was asked for: an exception from a signal may be lost (in a destructor, say)."""
        if self._asked:
            raise Stopped

    def begin(self) -> None:
        """The end has begun, for whatever reason: from now on signals change nothing, to the very last moment."""
        self._asked = True
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
