"""Starts the processes that train together on this machine, by PyTorch's own launcher."""

import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.training import Launcher, TrainingJob
from yolo_distill.components.shared.worker import take_error

WORKER = "yolo_distill.components.shared.worker"


def job_kind(job: TrainingJob) -> str:
    """Return a job's class as the worker is told it."""
    return f"{type(job).__module__}:{type(job).__qualname__}"


def require_even_shares(batch: int, processes: int) -> None:
    """Refuse a batch that cannot be shared evenly.

    Raises:
        InputError: The batch is no multiple of the processes.
    """
    if batch % processes:
        raise InputError(
            f"batch={batch}",
            f"cannot be shared evenly by {processes} training processes",
            f"Give a multiple of {processes}",
        )


def local_launcher(processes: int) -> Launcher | None:
    """Return what starts a training's processes on this machine.

    Args:
        processes: How many; 0 for one a GPU.

    Returns:
        The launcher; ``None`` where this process trains by itself.

    Raises:
        InputError: There are fewer GPUs.
    """
    wanted = processes or max(torch.cuda.device_count(), 1)
    if wanted == 1:
        return None
    if (gpus := torch.cuda.device_count()) and wanted > gpus:
        raise InputError(f"processes={wanted}", f"there are {gpus} GPUs", f"Give at most {gpus}, or 0 for one a GPU")
    return LocalProcesses(wanted)


class LocalProcesses:
    """Processes of this machine, one a GPU where it has GPUs; a :class:`Launcher`.

    Attributes:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, job: TrainingJob) -> None:
        """Train, and end all processes when one of them fails or this one is ended.

        Raises:
            InputError: The batch cannot be shared evenly, or a process has refused the user's input.
            RuntimeError: A process failed; the message is its error.
        """
        require_even_shares(job.settings.batch, self.count)
        take_error(job.folder)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "job.json"
            write_text(file, job.model_dump_json())
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=self.count,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                # The step as a whole is retried, and its training resumes.
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
            )
            with _own_signals():
                try:
                    elastic_launch(config, sys.executable)("-m", WORKER, job_kind(job), str(file))
                except ChildFailedError as error:
                    if left := take_error(job.folder):
                        raise left.raised() from None
                    rank, failure = error.get_first_failure()
                    how = failure.signal_name() if failure.exitcode < 0 else f"status {failure.exitcode}"
                    raise RuntimeError(f"training process {rank} ended with {how}, see the log") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put signal handlers back, in whose place the launcher sets its own, and end as they would have."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in names}
    try:
        yield
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
