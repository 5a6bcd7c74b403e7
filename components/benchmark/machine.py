"""Describes the machine that a benchmark runs on."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil

from yolo_distill.components.benchmark.results import Machine
from yolo_distill.components.shared.lineage import library_versions

# Integer and bfloat16 dot products make the largest difference, wide vectors the next.
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")


def describe_machine(threads: int) -> Machine:
    """Return what models run on.

    Args:
        threads: Threads that each model is given.
    """
    cpu = _cpu_info()
    # ARM has no model name there, and calls flags features.
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return Machine(
        cpu=cpu.get("model name") or platform.machine(),
        instructions=[name for name in _INSTRUCTIONS if name in flags],
        cores=os.cpu_count() or 1,
        threads=threads,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        versions={"python": platform.python_version()} | library_versions(),
    )


class Disturbance:
    """Watches how much of the machine other processes take.

    Args:
        own: The processes whose work is not counted.
    """

    def __init__(self, own: Iterable[int]) -> None:
        self._own = [psutil.Process(pid) for pid in (os.getpid(), *own)]
        self._start = self._read()

    def share(self) -> float:
        """Return the share of all core time since the start that others took, 0..1."""
        total, busy = self._read() - self._start
        return float(round(min(max(busy / total, 0), 1), 3))

    def _read(self) -> np.ndarray:
        """Return seconds of core time so far: all there were, and those that others worked."""
        times = psutil.cpu_times()
        idle = times.idle + times.iowait
        # Guests' time is already within user and nice.
        total = sum(times) - times.guest - times.guest_nice
        own = sum(used.user + used.system for used in (process.cpu_times() for process in self._own))
        return np.array([total, total - idle - own])


def peak_memory_bytes() -> int:
    """Return the largest resident memory that this process has had.

    ``ru_maxrss`` would not do: across fork and exec it keeps the parent's peak.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(dict(line.split(":", 1) for line in status.splitlines())["VmHWM"].split()[0]) * 1024


def gpu_memory_in_use() -> int | None:
    """Return how many bytes of the machine's NVIDIA GPUs are in use, by whomever; ``None`` without such a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    # Images for GPUs hold the tool where there is no GPU, too.
    return sum(map(int, answer.stdout.split())) * 2**20 if answer.returncode == 0 else None


def _cpu_info() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
