"""Makes the teacher: trained, fine-tuned, or taken as it is."""

from dataclasses import dataclass
from pathlib import Path

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file
from yolo_distill.components.shared.model_card import ModelCard
from yolo_distill.components.shared.training import (
    Launcher,
    TrainingJob,
    TrainSettings,
    last_checkpoint,
    read_epochs,
    resolve_model,
    training_folder,
)
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact


@dataclass(frozen=True)
class TeacherResult:
    """A teacher and how it came to be.

    Attributes:
        card: The card of its model artifact.
        history: One record an epoch; empty for a teacher that was taken as it is.
    """

    card: ModelCard
    history: list[dict[str, float]]


def train_teacher(
    dataset: DetectionDataset,
    model: str,
    settings: TrainSettings,
    target: Path,
    work_root: Path | None = None,
    *,
    may_train: bool = True,
    launcher: Launcher | None = None,
) -> TeacherResult:
    """Make a teacher for a dataset.

    A checkpoint whose classes are the dataset's is taken as it is, one with other classes is fine-tuned, and a model
    YAML is trained from random weights.

    Args:
        dataset: The dataset artifact.
        model: A model YAML by name or path, or the path of a checkpoint.
        settings: Length, size, seed and optimiser of the training.
        target: Where the model artifact goes.
        work_root: Folder for checkpoints of an unfinished training, which a later call resumes.
        may_train: Whether the teacher is trained where it does not fit as it is.
        launcher: What starts the processes that train; without it this process trains.

    Returns:
        The teacher.

    Raises:
        InputError: There is no such model, it holds no detection network, or it would have to be trained and may not.
    """
    source = resolve_model(model)
    lineage = {"dataset": dataset.digest, "seed": str(settings.seed), "epochs": str(settings.epochs)}
    architecture = Path(model).name
    if Path(source).suffix == ".pt":
        lineage["pretrained"] = sha256_file(Path(source))
        known = checkpoint_classes(Path(source))
        if known != dataset.classes and not may_train:
            raise InputError(
                model,
                f"its {len(known)} classes ({', '.join(known[:3])}, ...) are not the data's "
                f"{len(dataset.classes)} ({', '.join(dataset.classes[:3])}, ...)",
                "Give it epochs to be fine-tuned in, or give a teacher of the data's classes, in their order",
            )
        if known == dataset.classes:
            del lineage["seed"], lineage["epochs"]
            card = write_checkpoint_artifact(
                target,
                Path(source),
                name="teacher",
                imgsz=settings.imgsz,
                architecture=architecture,
                lineage=lineage,
            )
            return TeacherResult(card, [])
    elif not may_train:
        raise InputError(model, "has no weights and is given no epochs", "Give it epochs, or give a checkpoint")
    with training_folder(work_root, target, [lineage, architecture, settings.model_dump()]) as folder:
        job = TrainingJob(dataset=dataset.root, model=source, settings=settings, folder=folder)
        if launcher is not None:
            launcher(job)
        else:
            job.trainer().train()
        history = read_epochs(folder)
        card = write_checkpoint_artifact(
            target,
            last_checkpoint(folder),
            name="teacher",
            imgsz=settings.imgsz,
            architecture=architecture,
            lineage=lineage,
        )
    return TeacherResult(card, history)


def checkpoint_classes(checkpoint: Path) -> list[str]:
    """Return a checkpoint's class names by class index."""
    names = load_network(checkpoint).names
    return [str(names[index]) for index in range(len(names))]
