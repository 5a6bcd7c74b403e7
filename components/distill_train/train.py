"""Trains the student: with a teacher's cached answers, or plainly."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

from safetensors.torch import load_file, save_file
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import torch_distributed_zero_first, unwrap_model

from yolo_distill.components.distill_train.adapters import build_adapters
from yolo_distill.components.distill_train.criterion import Distillation, DistillationLoss
from yolo_distill.components.distill_train.layers import LayerPair, layer_pairs, neck_pairs
from yolo_distill.components.distill_train.losses.stable_targets import StableTargets
from yolo_distill.components.distill_train.online import OnlineTeacher
from yolo_distill.components.distill_train.recipe import PLAIN, Recipe, value_at
from yolo_distill.components.distill_train.weight_selection import select_weights
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import require_classes
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.distributed import local_rank
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.training import (
    Launcher,
    TrainingJob,
    TrainSettings,
    ViewTrainer,
    last_checkpoint,
    read_epochs,
    resolve_model,
    training_folder,
)
from yolo_distill.components.shared.views import Augmentation, ViewDataset, ViewSchedule
from yolo_distill.components.teacher_cache_logits.build import fingerprint
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.teacher_cache_logits.originals import MANIFEST_NAME as ORIGINALS_NAME
from yolo_distill.components.teacher_cache_logits.originals import OriginalAnswers
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact

# Where a student's targets come from: answers to its views, to the original images, or the teacher at every step.
AnyTeacher = TeacherCache | OriginalAnswers | OnlineTeacher

STUDENTS_FOLDER = Path(__file__).parent / "students"
_BUILD_AGAIN = "Build the teacher cache again with teacher-cache-logits"
_ADAPTERS_NAME = "adapters.safetensors"


class TeacherHead(Protocol):
    """The layout of a teacher's detection head.

    Attributes:
        strides: Pixels between anchor points, by level.
        reg_max: Bins of a box side's distribution.
        channels: Channels of the neck features, by level.
    """

    @property
    def strides(self) -> list[int]: ...  # noqa: D102
    @property
    def reg_max(self) -> int: ...  # noqa: D102
    @property
    def channels(self) -> list[int]: ...  # noqa: D102


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
    """Trains a student on a teacher's answers; adapters train along and are left out of every checkpoint.

    Attributes:
        recipe: The distillation terms.
        teacher: The cache of the teacher's answers, or the teacher itself, asked at every step.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        settings: TrainSettings,
        model: str,
        run_folder: Path,
        *,
        recipe: Recipe,
        teacher: AnyTeacher,
        donor: Path | None = None,
        device: str | None = None,
    ) -> None:
        """Set up a training.

        Args:
            dataset: The dataset artifact that the answers are about.
            settings: Length, size, seed and optimiser.
            model: The student: a model YAML or a checkpoint.
            run_folder: Where checkpoints go.
            recipe: The distillation terms.
            teacher: The cache of the teacher's answers, or the teacher itself, asked at every step about fresh views.
            donor: The model artifact that the student's first weights are selected from, unless it is a checkpoint.
            device: What ultralytics takes; a GPU when there is one.
        """
        self.recipe = recipe
        self._donor = donor
        self.teacher = teacher
        self._pairs: list[LayerPair] = []
        cache = teacher.without(*recipe.unread) if isinstance(teacher, TeacherCache) else None
        schedule = cached_schedule(cache, settings) if cache else None
        answers = teacher.soft_boxes if isinstance(teacher, OriginalAnswers) else cache
        super().__init__(dataset, settings, model, run_folder, schedule=schedule, answers=answers, device=device)
        self.add_callback("on_train_start", DistillationTrainer._install_criterion)
        self.add_callback("on_train_batch_start", DistillationTrainer._tell_progress)

    def get_model(
        self, cfg: str | dict[str, Any] | None = None, weights: nn.Module | None = None, verbose: bool = True
    ) -> DetectionModel:
        """Build the student, with what trains beside it as its ``adapters``."""
        network = super().get_model(cfg, weights, verbose)
        if self._donor is not None and weights is None:
            taken = select_weights(network, load_network(self._donor / read_card(self._donor).file))
            LOGGER.info(f"{taken:.1%} of the student's weights are selected from the teacher's")
        head = teacher_head(self.teacher)
        if head is not None:
            require_same_head(network, head)
            teacher = self.teacher.teacher.network if isinstance(self.teacher, OnlineTeacher) else None
            self._pairs = neck_pairs(network, head.channels, teacher)
            layers = sorted({layer for term in self.recipe.terms for layer in getattr(term, "layers", [])})
            if layers and teacher is not None:
                self._pairs += layer_pairs(network, teacher, layers)
        adapters = build_adapters(self.recipe, self._pairs)
        if self.recipe.views_momentum:
            boxes = sum(record.boxes for record in self.dataset.split("train"))
            adapters["stable_targets"] = StableTargets(boxes, self.data["nc"], self.recipe.views_momentum)
        network.adapters = adapters
        return network

    def save_model(self) -> bool:
        """Write the checkpoint without adapters, which go into a file of their own for resuming."""
        ema = self.ema.ema
        adapters = ema._modules.pop("adapters")
        try:
            saved = super().save_model()
        finally:
            ema.adapters = adapters
        save_file(unwrap_model(self.model).adapters.state_dict(), self.wdir / _ADAPTERS_NAME)
        return saved

    def optimizer_step(self) -> None:
        """Clip the gradients as the recipe says, then as ultralytics does, and update the weights."""
        if limit := self.recipe.training.clip_norm:
            # Gradients are still multiplied by the scale of mixed precision.
            nn.utils.clip_grad_norm_(self.model.parameters(), limit * self.scaler.get_scale())
        super().optimizer_step()

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        adapters = unwrap_model(self.model).adapters
        adapters.load_state_dict(load_file(self.wdir / _ADAPTERS_NAME))
        ckpt["ema"].adapters = adapters
        super()._load_checkpoint_state(ckpt)

    def _install_criterion(self) -> None:
        # Set after the EMA copy was made, which must not carry it into checkpoints.
        network = unwrap_model(self.model)
        network.criterion = DistillationLoss(
            network,
            Distillation(
                recipe=self.recipe,
                pairs=self._pairs,
                adapters=network.adapters,
                online=self.teacher if isinstance(self.teacher, OnlineTeacher) else None,
                average=lambda: self.ema.ema,
                seed=self.settings.seed,
            ),
        )

    def _tell_progress(self) -> None:
        unwrap_model(self.model).criterion.progress = self._progress

    @property
    def _progress(self) -> float:
        return float(self.epoch / max(self.epochs - 1, 1))

    def _record_epoch(self) -> None:
        super()._record_epoch()
        for term in self.recipe.terms:
            if value_at(term.weight, self._progress) > 0 and self.history[-1][f"train/kd_{term.loss}"] == 0:
                LOGGER.warning(f"{term.loss} was 0 throughout epoch {self.epoch + 1}: it teaches the student nothing")


class StudentJob(TrainingJob):
    """A distillation as processes of their own are told of it.

    Attributes:
        trainer_type: What trains.
        recipe: The distillation terms.
        cache: The cache of the teacher's answers, or ``None``.
        teacher: The teacher's model artifact, to ask it at every step, or ``None``.
        donor: The model artifact that the student's first weights are selected from, or ``None``.
    """

    trainer_type: ClassVar[type[DistillationTrainer]] = DistillationTrainer

    recipe: Recipe
    cache: Path | None = None
    teacher: Path | None = None
    donor: Path | None = None

    def trainer(self) -> ViewTrainer:
        """Set the training up, or what an earlier process has left of it."""
        dataset = DetectionDataset.open(self.dataset)
        # The first process of a machine fetches what lies in object storage, the others find it.
        with torch_distributed_zero_first(local_rank()):
            teacher = choose_teacher(self.recipe, self.cache, self.teacher)
        assert teacher is not None
        return self.trainer_type(
            dataset, self.settings, self.model, self.folder, recipe=self.recipe, teacher=teacher, donor=self.donor
        )


class JobTypes(NamedTuple):
    """How a student is trained.

    Attributes:
        plain: Without a teacher.
        distilling: With one.
    """

    plain: type[TrainingJob] = TrainingJob
    distilling: type[StudentJob] = StudentJob


_STOCK = JobTypes()


def distill(
    dataset: DetectionDataset,
    model: str,
    settings: TrainSettings,
    target: Path,
    *,
    name: str,
    recipe: Recipe | None = None,
    teacher: AnyTeacher | None = None,
    teacher_model: Path | None = None,
    initial: Path | None = None,
    work_root: Path | None = None,
    launcher: Launcher | None = None,
    jobs: JobTypes = _STOCK,
    told: Mapping[str, str] | None = None,
) -> StudentResult:
    """Train a student.

    Args:
        dataset: The dataset artifact.
        model: The student: a model YAML by name or path, a slim one that comes with this step, or a checkpoint.
        settings: Length, size, seed and optimiser.
        target: Where the model artifact goes.
        name: How the student is called in tables and lineage.
        recipe: The distillation terms; used with a teacher only.
        teacher: The cache of the teacher's answers, or the teacher itself, asked at every step. Without it the student
            is trained plainly, the fair arm of a comparison: same data, augmentation, epochs, optimiser and seed.
        teacher_model: The teacher's model artifact, for recipes that start the student from its weights; not needed
            with the teacher itself.
        initial: A PyTorch model artifact to go on training, such as a pruned one, in place of ``model``.
        work_root: Folder for checkpoints of an unfinished training, which a later call resumes.
        launcher: What starts the processes that train; without it this process trains.
        jobs: How it is trained, where a step of its own departs from this one's way.
        told: What such a step adds to the lineage.

    Returns:
        The student.

    Raises:
        InputError: There is no such model, the cache is about other data, another size or made by other libraries, or
            the recipe needs one process and several are to train.
    """
    source, architecture = _student(model, initial)
    if recipe is not None and teacher is not None:
        settings = settings.model_copy(update=recipe.training.model_dump(exclude_none=True, exclude={"clip_norm"}))
    lineage = {"dataset": dataset.digest, "seed": str(settings.seed), "epochs": str(settings.epochs), "recipe": PLAIN}
    if Path(source).suffix == ".pt":
        lineage["pretrained"] = sha256_file(Path(source))
    lineage |= told or {}
    donor = None
    if teacher is not None and recipe is not None:
        lineage |= _teacher_lineage(teacher, dataset, settings, recipe) | {"recipe": recipe.name}
        if launcher is not None:
            _require_shareable(recipe)
        if recipe.initial == "teacher" and Path(source).suffix != ".pt":
            online = teacher.folder if isinstance(teacher, OnlineTeacher) else None
            donor = _donor(recipe, teacher_model or online, lineage["teacher"])
            lineage["initial"] = "teacher"
    identity = [lineage, model, settings.model_dump(), recipe and recipe.model_dump()]
    with training_folder(work_root, target, identity) as folder:
        if launcher is not None:
            launcher(_job(jobs, dataset, source, settings, folder, recipe, teacher, donor))
        elif teacher is not None and recipe is not None:
            trainer = jobs.distilling.trainer_type
            trainer(dataset, settings, source, folder, recipe=recipe, teacher=teacher, donor=donor).train()
        else:
            jobs.plain.trainer_type(dataset, settings, source, folder).train()
        history = read_epochs(folder)
        card = write_checkpoint_artifact(
            target,
            last_checkpoint(folder),
            name=name,
            imgsz=settings.imgsz,
            architecture=architecture,
            lineage=lineage,
        )
    return StudentResult(card, history)


def choose_teacher(recipe: Recipe, cache: Path | None, teacher: Path | None, *, here: bool = True) -> AnyTeacher | None:
    """Open what the student learns from: the cache, unless there is a teacher and the recipe has losses that need it.

    Args:
        recipe: The distillation terms.
        cache: A teacher cache, or ``None``.
        teacher: The model artifact of a teacher to ask at every step, or ``None``.
        here: Whether this process trains. Otherwise shards are not fetched, and a teacher does not take up a GPU.

    Raises:
        InputError: What is chosen cannot be opened.
    """
    if teacher is not None and (cache is None or recipe.needs_online):
        return OnlineTeacher(Teacher(teacher, None if here else "cpu"), AnswerFormat())
    if cache is None:
        return None
    if (cache / ORIGINALS_NAME).is_file():
        return OriginalAnswers(cache)
    return TeacherCache(cache, None if here else ())


def _student(model: str, initial: Path | None) -> tuple[str, str]:
    """Return what ultralytics opens as the student, and what it is called."""
    if initial is None:
        return resolve_model(model, STUDENTS_FOLDER), Path(model).name
    card = read_card(initial)
    if card.format != "pytorch":
        raise InputError(initial, f"is in {card.format} format", "Give a PyTorch model artifact")
    return str(initial / card.file), card.architecture


def _job(
    jobs: JobTypes,
    dataset: DetectionDataset,
    source: str,
    settings: TrainSettings,
    folder: Path,
    recipe: Recipe | None,
    teacher: AnyTeacher | None,
    donor: Path | None,
) -> TrainingJob:
    plain = {"dataset": dataset.root, "model": source, "settings": settings, "folder": folder}
    if recipe is None or teacher is None:
        return jobs.plain.model_validate(plain)
    kind = "teacher" if isinstance(teacher, OnlineTeacher) else "cache"
    return jobs.distilling.model_validate({**plain, "recipe": recipe, "donor": donor, kind: teacher.folder})


def _require_shareable(recipe: Recipe) -> None:
    """Refuse a recipe whose state is that of one process."""
    if needed := recipe.needs_one_process:
        raise InputError(
            f"recipe {recipe.name}",
            f"sets {' and '.join(needed)}, which is kept by one process and not shared among several",
            "Train in one process, or choose another recipe",
        )


def _teacher_lineage(
    teacher: AnyTeacher, dataset: DetectionDataset, settings: TrainSettings, recipe: Recipe
) -> dict[str, str]:
    """Check that a teacher fits the training and return what identifies it."""
    if recipe.needs_online and not isinstance(teacher, OnlineTeacher):
        raise InputError(
            f"recipe {recipe.name}",
            f"has losses that need more of the teacher than a cache keeps: {', '.join(recipe.needs_online)}",
            "Ask the teacher online, or choose another recipe",
        )
    if isinstance(teacher, OnlineTeacher):
        card = teacher.teacher.card
        require_classes(Path(card.architecture), card, dataset.classes)
        return {"teacher": card.digest}
    if isinstance(teacher, OriginalAnswers):
        if recipe.needs_same_view:
            raise InputError(
                f"recipe {recipe.name}",
                f"has losses that need the teacher to see the student's views: {', '.join(recipe.needs_same_view)}",
                "Choose a recipe of binary_kl and box_iou, such as original, or build the cache of views",
            )
        _require_same_dataset(teacher.manifest.dataset, dataset)
        return {"teacher": teacher.manifest.teacher, "cache": teacher.manifest.sha256}
    require_same_views(teacher, dataset, settings.augmentation)
    if recipe.uses_point_features and teacher.manifest.answers.features == "none":
        raise InputError(
            f"recipe {recipe.name}",
            "compares neck features, which the teacher cache was built without",
            "Build the cache with features, ask the teacher online, or choose another recipe",
        )
    return {"teacher": teacher.manifest.teacher, "cache": teacher.manifest.key}


def _donor(recipe: Recipe, model: Path | None, teacher: str) -> Path:
    """Return the model artifact that the student's first weights are selected from.

    Args:
        recipe: A recipe that asks for it.
        model: The teacher's model artifact.
        teacher: Digest of the teacher that the student learns from.
    """
    if model is None:
        raise InputError(
            f"recipe {recipe.name}",
            "starts the student from the teacher's weights, which are not given",
            "Give the teacher's model artifact beside its answers, or choose a recipe with initial: random",
        )
    if read_card(model).digest != teacher:
        raise InputError(model, "is not the teacher whose answers are given", _BUILD_AGAIN)
    return model


def cached_schedule(cache: TeacherCache, settings: TrainSettings) -> ViewSchedule:
    """Return which of a cache's views each epoch trains on."""
    manifest = cache.manifest
    closing = settings.closing_epochs if manifest.closed_views else 0
    if not manifest.open_views:
        closing = settings.epochs
    return ViewSchedule(settings.epochs, closing, manifest.open_views, manifest.closed_views)


def teacher_head(teacher: AnyTeacher) -> TeacherHead | None:
    """Return the layout of a teacher's detection head, or ``None`` where only its boxes are known."""
    if isinstance(teacher, OriginalAnswers):
        return None
    return teacher.teacher if isinstance(teacher, OnlineTeacher) else teacher.manifest


def require_same_views(cache: TeacherCache, dataset: DetectionDataset, augmentation: Augmentation) -> None:
    """Refuse a cache whose answers are not about the views that the student would see.

    Raises:
        InputError: Dataset, size, augmentation or a library differ; the message names what.
    """
    manifest = cache.manifest
    _require_same_dataset(manifest.dataset, dataset)
    now = fingerprint(ViewDataset(dataset, augmentation))
    differing = [
        f"{name} was {manifest.fingerprint.get(name)}, is {now.get(name)}"
        for name in sorted(manifest.fingerprint.keys() | now.keys())
        if manifest.fingerprint.get(name) != now.get(name)
    ]
    if differing:
        raise InputError("teacher cache", f"was built for other views: {'; '.join(differing)}", _BUILD_AGAIN)


def _require_same_dataset(answered: str, dataset: DetectionDataset) -> None:
    if answered != dataset.digest:
        raise InputError("teacher cache", f"is about dataset {answered[:12]}, not {dataset.digest[:12]}", _BUILD_AGAIN)


def require_same_head(student: DetectionModel, teacher: TeacherHead) -> None:
    """Refuse a student whose anchor points or box bins are not the teacher's.

    Raises:
        InputError: Strides or ``reg_max`` differ.
    """
    head = student.model[-1]
    strides = [int(stride) for stride in student.stride]
    if (strides, head.reg_max) != (teacher.strides, teacher.reg_max):
        raise InputError(
            "student",
            f"has strides {strides} and {head.reg_max} DFL bins, "
            f"the teacher has {teacher.strides} and {teacher.reg_max}",
            "Choose a student with the teacher's detection head layout",
        )
