"""Named places where a test may end this process, as a crash would: between a commit and what follows it.

A random kill hardly ever lands there. Off unless TASKBEAM_FAILPOINTS names the place, for the sake of the tests and
of `taskbeam chaos` only; it is not a setting.
"""

import os

_ARMED = frozenset(filter(None, os.environ.get("TASKBEAM_FAILPOINTS", "").split(",")))


def reached(name: str) -> None:
    """End the process at once, without any clean-up, if `name` is armed."""
    if name in _ARMED:
        os._exit(86)
