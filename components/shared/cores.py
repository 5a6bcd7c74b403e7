"""How many processor cores there are to work with."""

import math
import os
from pathlib import Path


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use, by its affinity, its container's limit and ``OMP_NUM_THREADS``.

    Args:
        quota_file: Where the kernel tells the limit, in microseconds of core time per microseconds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        cores = min(cores, int(wanted))
    if not quota_file.is_file():
        return cores
    quota, period = quota_file.read_text(encoding="ascii").split()
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))
