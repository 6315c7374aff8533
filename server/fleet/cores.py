"""How many processes may compute at once: the cores that we may use, by the scheduler and by the container's quota."""

import contextlib
import math
import os
import sys
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cores(quota_file: Path = CPU_MAX) -> int:
    """At least 1. `quota_file` is a cgroup's (version 2): microseconds in each period, or `max`."""
    known = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = quota_file.read_text().split()
        if quota != "max":
            return max(1, min(known, math.ceil(int(quota) / int(period))))
    return known
