"""Trains a student on with simulated INT8, so that its weights bear the quantisation that follows."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolo_distill.components.distill_train.recipe import Recipe, RecipeTraining
from yolo_distill.components.distill_train.train import (
    AnyTeacher,
    DistillationTrainer,
    JobTypes,
    StudentJob,
    StudentResult,
    distill,
)
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.calibration import draw_calibration
from yolo_distill.components.quantize_aware_train.fake_quantization import (
    BATCH_NORMS,
    measured_ranges,
    simulate_int8,
    simulated_int8,
    stop_simulating,
)
from yolo_distill.components.shared.detector import preprocess, read_batches, require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.training import Launcher, TrainingJob, TrainSettings, ViewTrainer

# Images that ranges are measured on at the start of each epoch: the mean over them hardly changes with more.
_CALIBRATION_IMAGES, _CALIBRATION_BATCH = 128, 16


class QuantizationAwareTrainer(ViewTrainer):
    """Trains a network through the rounding of its INT8 export.

    Ranges are measured at the start of each epoch, on training images as they are, as the quantize step will do in the
    end. The moving average of the weights, which becomes the checkpoint, rounds only while it is validated. Batch norms
    keep their statistics: the export folds them.
    """

    def _model_train(self) -> None:
        network = unwrap_model(self.model)
        stop_simulating(network)
        ranges = measured_ranges(network, self._calibration())
        super()._model_train()
        for module in network.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        simulate_int8(network, ranges)

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Validate as INT8 will compute."""
        average = self.ema.ema
        with simulated_int8(average, measured_ranges(average, self._calibration())):
            return super().validate()

    def _calibration(self) -> Iterator[torch.Tensor]:
        """Yield the images that ranges are measured on, [B, 3, H, W] in 0..1."""
        drawn = draw_calibration(self.dataset, _CALIBRATION_IMAGES, self.settings.seed)
        paths = [self.dataset.image_path(record) for record in drawn]
        for batch in read_batches(paths, _CALIBRATION_BATCH):
            yield torch.from_numpy(preprocess(batch, self.settings.imgsz)[0]).to(self.device)


class QuantizationAwareDistillationTrainer(QuantizationAwareTrainer, DistillationTrainer):
    """The same with a teacher."""


class QuantizationAwareJob(TrainingJob):
    """A quantisation-aware training as processes of their own are told of it."""

    trainer_type: ClassVar[type[ViewTrainer]] = QuantizationAwareTrainer


class QuantizationAwareStudentJob(StudentJob):
    """A quantisation-aware distillation as processes of their own are told of it."""

    trainer_type: ClassVar[type[DistillationTrainer]] = QuantizationAwareDistillationTrainer


def student_card(dataset: DetectionDataset, model_folder: Path) -> ModelCard:
    """Return the card of a student that can be trained on.

    Args:
        dataset: The dataset artifact to train on.
        model_folder: The student's model artifact.

    Raises:
        InputError: The model is not one in PyTorch or was made for other classes, or the training split is empty.
    """
    card = read_card(model_folder)
    if card.format != "pytorch":
        raise InputError(model_folder, f"is in {card.format} format", "Give the PyTorch model that it was made from")
    require_classes(model_folder, card, dataset.classes)
    if not dataset.split("train"):
        raise InputError(dataset.root, "its train split is empty", "Prepare the data with training images")
    return card


def quantize_aware_train(
    dataset: DetectionDataset,
    model_folder: Path,
    settings: TrainSettings,
    target: Path,
    *,
    name: str,
    recipe: Recipe | None = None,
    teacher: AnyTeacher | None = None,
    work_root: Path | None = None,
    launcher: Launcher | None = None,
) -> StudentResult:
    """Train a student on with simulated INT8.

    Args:
        dataset: The dataset artifact.
        model_folder: The student, a PyTorch model artifact.
        settings: Length, size, seed and optimiser.
        target: Where the trained student's artifact goes.
        name: How it is called in tables and lineage.
        recipe: The distillation terms; used with a teacher only. What it says of the optimiser is left out: that is for
            students at their beginning.
        teacher: What the student learns from beside the labels, if anything.
        work_root: Folder for checkpoints of an unfinished training, which a later call resumes.
        launcher: What starts the processes that train; without it this process trains.

    Returns:
        The student; its weights are in floating point, as any other's.

    Raises:
        InputError: The model is not one in PyTorch or was made for other classes, the training split is empty, or the
            teacher's answers do not fit.
    """
    card = student_card(dataset, model_folder)
    if recipe is not None:
        kept = RecipeTraining(clip_norm=recipe.training.clip_norm)
        recipe = recipe.model_copy(update={"training": kept})
    return distill(
        dataset,
        "",
        settings,
        target,
        name=name,
        recipe=recipe,
        teacher=teacher,
        initial=model_folder,
        work_root=work_root,
        launcher=launcher,
        jobs=JobTypes(QuantizationAwareJob, QuantizationAwareStudentJob),
        told={"parent": card.digest, "simulated": "int8"},
    )
