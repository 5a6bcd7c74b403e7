"""Trains the student: with a teacher's cached answers, or plainly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.distill_train.criterion import DistillationLoss
from yolo_distill.components.distill_train.recipe import Recipe
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file
from yolo_distill.components.shared.model_card import ModelCard
from yolo_distill.components.shared.training import TrainSettings, ViewTrainer, resolve_model, training_folder
from yolo_distill.components.shared.views import Augmentation, ViewDataset, ViewSchedule
from yolo_distill.components.teacher_cache_logits.build import fingerprint
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact

STUDENTS_FOLDER = Path(__file__).parent / "students"
_PROJECTORS_NAME = "projectors.safetensors"


@dataclass(frozen=True)
class StudentResult:
    """A student and how it was trained.

    Attributes:
        card: The card of its model artifact.
        history: One record an epoch, with every loss by name.
    """

    card: ModelCard
    history: list[dict[str, float]]


class DistillationTrainer(ViewTrainer):
    """Trains a student on cached answers; projectors train along and are left out of every checkpoint.

    Attributes:
        recipe: The distillation terms.
        cache: The teacher's answers.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        settings: TrainSettings,
        model: str,
        run_folder: Path,
        *,
        recipe: Recipe,
        cache: TeacherCache,
        device: str | None = None,
    ) -> None:
        """Set up a training.

        Args:
            dataset: The dataset artifact that the answers are about.
            settings: Length, size, seed and optimiser.
            model: The student: a model YAML or a checkpoint.
            run_folder: Where checkpoints go.
            recipe: The distillation terms.
            cache: The teacher's answers.
            device: What ultralytics takes; a GPU when there is one.
        """
        self.recipe = recipe
        self.cache = cache
        manifest = cache.manifest
        super().__init__(
            dataset,
            settings,
            model,
            run_folder,
            schedule=ViewSchedule(
                settings.epochs,
                settings.closing_epochs if manifest.closed_views else 0,
                manifest.open_views,
                manifest.closed_views,
            ),
            answers=cache,
            device=device,
        )
        self.add_callback("on_train_start", DistillationTrainer._install_criterion)
        self.add_callback("on_train_batch_start", DistillationTrainer._tell_progress)

    def get_model(
        self, cfg: str | dict[str, Any] | None = None, weights: nn.Module | None = None, verbose: bool = True
    ) -> DetectionModel:
        """Build the student, with projectors beside it where the recipe compares features."""
        network = super().get_model(cfg, weights, verbose)
        require_same_head(network, self.cache)
        if self.recipe.uses_features:
            network.projectors = nn.ModuleList(
                nn.Linear(student, teacher)
                for student, teacher in zip(_neck_channels(network), self.cache.manifest.channels, strict=True)
            )
        return network

    def save_model(self) -> bool:
        """Write the checkpoint without projectors, which go into a file of their own for resuming."""
        ema = self.ema.ema
        projectors = ema._modules.pop("projectors", None)
        try:
            saved = super().save_model()
        finally:
            if projectors is not None:
                ema.projectors = projectors
        if projectors is not None:
            save_file(projectors.state_dict(), self.wdir / _PROJECTORS_NAME)
        return saved

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        if self.recipe.uses_features:
            weights = load_file(self.wdir / _PROJECTORS_NAME)
            self.model.projectors.load_state_dict(weights)
            ckpt["ema"].projectors = self.model.projectors
        super()._load_checkpoint_state(ckpt)

    def _install_criterion(self) -> None:
        # Set after the EMA copy was made, which must not carry it into checkpoints.
        self.model.criterion = DistillationLoss(self.model, self.recipe, getattr(self.model, "projectors", None))

    def _tell_progress(self) -> None:
        self.model.criterion.progress = self.epoch / max(self.epochs - 1, 1)


def distill(
    dataset: DetectionDataset,
    model: str,
    settings: TrainSettings,
    target: Path,
    *,
    name: str,
    recipe: Recipe | None = None,
    cache: TeacherCache | None = None,
    work_root: Path | None = None,
) -> StudentResult:
    """Train a student.

    Args:
        dataset: The dataset artifact.
        model: The student: a model YAML by name or path, a slim one that comes with this step, or a checkpoint.
        settings: Length, size, seed and optimiser.
        target: Where the model artifact goes.
        name: How the student is called in tables and lineage.
        recipe: The distillation terms; used with a cache only.
        cache: The teacher's answers. Without it the student is trained plainly, the fair arm of a comparison: same
            data, augmentation, epochs, optimiser and seed.
        work_root: Folder for checkpoints of an unfinished training, which a later call resumes.

    Returns:
        The student.

    Raises:
        InputError: There is no such model, or the cache is about other data, another size or made by other libraries.
    """
    source = resolve_model(model, STUDENTS_FOLDER)
    lineage = {"dataset": dataset.digest, "seed": str(settings.seed), "epochs": str(settings.epochs)}
    if Path(source).suffix == ".pt":
        lineage["pretrained"] = sha256_file(Path(source))
    if cache is not None and recipe is not None:
        require_same_views(cache, dataset, settings.augmentation)
        lineage |= {"teacher": cache.manifest.teacher, "cache": cache.manifest.key, "recipe": recipe.name}
    identity = [lineage, model, settings.model_dump(), recipe and recipe.model_dump()]
    with training_folder(work_root, target, identity) as folder:
        trainer = (
            DistillationTrainer(dataset, settings, source, folder, recipe=recipe, cache=cache)
            if cache is not None and recipe is not None
            else ViewTrainer(dataset, settings, source, folder)
        )
        trainer.train()
        card = write_checkpoint_artifact(
            target,
            trainer.last,
            name=name,
            imgsz=settings.imgsz,
            architecture=Path(model).name,
            lineage=lineage,
        )
    return StudentResult(card, trainer.history)


def require_same_views(cache: TeacherCache, dataset: DetectionDataset, augmentation: Augmentation) -> None:
    """Refuse a cache whose answers are not about the views that the student would see.

    Raises:
        InputError: Dataset, size, augmentation or a library differ; the message names what.
    """
    manifest = cache.manifest
    remedy = "Build the teacher cache again with teacher-cache-logits"
    if manifest.dataset != dataset.digest:
        raise InputError(
            "teacher cache", f"is about dataset {manifest.dataset[:12]}, not {dataset.digest[:12]}", remedy
        )
    now = fingerprint(ViewDataset(dataset, augmentation))
    differing = [
        f"{name} was {manifest.fingerprint.get(name)}, is {now.get(name)}"
        for name in sorted(manifest.fingerprint.keys() | now.keys())
        if manifest.fingerprint.get(name) != now.get(name)
    ]
    if differing:
        raise InputError("teacher cache", f"was built for other views: {'; '.join(differing)}", remedy)


def require_same_head(student: DetectionModel, cache: TeacherCache) -> None:
    """Refuse a student whose anchor points or box bins are not the teacher's.

    Raises:
        InputError: Strides or ``reg_max`` differ.
    """
    head = student.model[-1]
    strides = [int(stride) for stride in student.stride]
    manifest = cache.manifest
    if (strides, head.reg_max) != (manifest.strides, manifest.reg_max):
        raise InputError(
            "student",
            f"has strides {strides} and {head.reg_max} DFL bins, "
            f"the teacher has {manifest.strides} and {manifest.reg_max}",
            "Choose a student with the teacher's detection head layout",
        )


def _neck_channels(network: DetectionModel) -> list[int]:
    """Return the channels of the Detect head's inputs, by level."""
    return [branch[0].conv.in_channels for branch in network.model[-1].cv2]
