"""Where a training is done: in this process, by several of this machine, or on several nodes."""

from pathlib import Path

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.launch import local_launcher
from yolo_distill.components.shared.train_job.settings import TrainJobSettings
from yolo_distill.components.shared.training import Launcher


def training_launcher(processes: int, work_root: Path | None, *, shareable: bool = True) -> Launcher | None:
    """Return what has a training done: a TrainJob where the cluster file asks for it, else processes of this machine.

    Args:
        processes: How many processes of this machine; 0 for one a GPU.
        work_root: Folder that outlives a killed task, or ``None``.
        shareable: Whether several processes can do it; otherwise 0 processes stand for one.

    Returns:
        The launcher; ``None`` where this process trains by itself.

    Raises:
        InputError: There are fewer GPUs, or nodes have no folder to share.
    """
    settings = TrainJobSettings.given()
    if settings is None:
        return local_launcher(processes if shareable else processes or 1)
    if work_root is None:
        raise InputError("train_job", "its nodes share no folder", "Set work_root in the cluster file")
    from yolo_distill.components.shared.train_job.launcher import TrainJobLauncher

    return TrainJobLauncher(settings, work_root)
