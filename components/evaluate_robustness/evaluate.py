"""Evaluating how robust a model is on one split of a dataset."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from yolo_distill.components.evaluate_map.coco import coco_metrics
from yolo_distill.components.evaluate_map.evaluate import (
    BATCH,
    SETTINGS,
    coco_ground_truth,
    coco_results,
    labelled_images,
    require_size,
)
from yolo_distill.components.evaluate_map.evaluation import EvaluatedModel
from yolo_distill.components.evaluate_robustness.attacks import Attacker
from yolo_distill.components.evaluate_robustness.corruptions import LEAST_SIDE, corrupt, image_seed
from yolo_distill.components.evaluate_robustness.report import report
from yolo_distill.components.evaluate_robustness.robustness import (
    ATTACKS,
    REPORT_NAME,
    Accuracy,
    Attack,
    AttackResult,
    AttackSource,
    CorruptionResult,
    Robustness,
    RobustnessSettings,
    write_robustness,
)
from yolo_distill.components.prepare_data.dataset import DetectionDataset, ImageRecord
from yolo_distill.components.shared.detector import (
    Detector,
    Placement,
    open_detector,
    postprocess,
    preprocess,
    read_batches,
    require_classes,
)
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.progress import report_progress

# From images as they were read to the network's input, and where each image lies in it.
_Condition = Callable[[Sequence[ImageRecord], Sequence[np.ndarray]], tuple[np.ndarray, list[Placement]]]


def evaluate_robustness(
    dataset: DetectionDataset,
    model_folder: Path,
    split: str,
    settings: RobustnessSettings,
    output: Path,
    source_folder: Path | None = None,
) -> Robustness:
    """Measure a model's mean average precision on clean, corrupted and attacked images.

    Corruptions are made on the images as they are, attacks on the network's input.

    Args:
        dataset: The dataset artifact.
        model_folder: The model artifact, of any format.
        split: ``train``, ``val`` or ``test``.
        settings: What to measure.
        output: Where the robustness artifact appears.
        source_folder: PyTorch model artifact that is attacked in the model's place.

    Returns:
        The figures, as written.

    Raises:
        InputError: There is no such split, too few of its images were drawn to hold a labelled box, an image is too
            small to be corrupted, the classes of a model and of the dataset differ, the model to be attacked is not a
            PyTorch one, or an image or a model cannot be read.
    """
    records = draw_images(dataset, split, settings)
    card = read_card(model_folder)
    require_classes(model_folder, card, dataset.classes)
    source = _attacked(source_folder or model_folder, dataset) if settings.epsilons else None
    runner = _Runner(dataset, records, open_detector(model_folder), settings)
    attacker = Attacker(load_network(source[0]), settings.pgd_steps) if source else None
    robustness = Robustness(
        model=EvaluatedModel.of(card),
        dataset=dataset.digest,
        split=records[0].split,
        images=[record.file for record in records],
        boxes=sum(record.boxes for record in records),
        measured=settings,
        settings=SETTINGS,
        clean=runner.measure("clean", runner.clean),
        corruptions=[runner.corruption(name) for name in settings.corruptions],
        attacks=[runner.attack(name, attacker) for name in ATTACKS] if attacker else [],
        source=source[1] if source else None,
    )
    page = report({robustness.model.name: robustness})
    with new_directory(output) as folder:
        write_robustness(folder, robustness)
        write_text(folder / REPORT_NAME, page)
    return robustness


def draw_images(dataset: DetectionDataset, split: str, settings: RobustnessSettings) -> list[ImageRecord]:
    """Draw the images to measure on, in the order of the dataset.

    Args:
        dataset: The dataset artifact.
        split: ``train``, ``val`` or ``test``; its unlabelled images do not count.
        settings: How many and by which seed.

    Raises:
        InputError: There is no such split, no labelled box in what was drawn, or an image is too small.
    """
    records = labelled_images(dataset, split)
    if 0 < settings.images < len(records):
        drawn = random.Random(settings.seed).sample(range(len(records)), settings.images)
        records = [records[index] for index in sorted(drawn)]
    if not any(record.boxes for record in records):
        raise InputError(f"images {settings.images}", "drew none with a labelled box", "Draw more, or by another seed")
    small = [record for record in records if min(record.width, record.height) < LEAST_SIDE]
    if small and settings.corruptions:
        raise InputError(
            dataset.image_path(small[0]),
            f"is {small[0].width}x{small[0].height} pixels, and corruptions need {LEAST_SIDE} on each side",
            "Leave such images out, or ask for no corruptions",
        )
    return records


def _attacked(folder: Path, dataset: DetectionDataset) -> tuple[Path, AttackSource]:
    card: ModelCard = read_card(folder)
    if card.format != "pytorch":
        raise InputError(
            folder,
            f"is in {card.format} format, through which no gradient flows",
            "Name a PyTorch model as source of the attacks, or ask for no epsilons",
        )
    require_classes(folder, card, dataset.classes)
    return folder / card.file, AttackSource(name=card.name, architecture=card.architecture, digest=card.digest)


class _Runner:
    """Measures one model under one condition after another."""

    def __init__(
        self, dataset: DetectionDataset, records: list[ImageRecord], detector: Detector, settings: RobustnessSettings
    ) -> None:
        self._dataset = dataset
        self._records = records
        self._detector = detector
        self._settings = settings
        self._truth = coco_ground_truth(dataset, records)
        attacks = len(ATTACKS) * len(settings.epsilons)
        conditions = 1 + len(settings.corruptions) * len(settings.severities) + attacks
        self._done, self._total = 0, conditions * len(records)

    def corruption(self, name: str) -> CorruptionResult:
        severities = {
            severity: self.measure(f"{name} {severity}", partial(self._corrupted, name, severity))
            for severity in self._settings.severities
        }
        return CorruptionResult(corruption=name, by_severity=severities)

    def attack(self, name: Attack, attacker: Attacker) -> AttackResult:
        epsilons = {
            epsilon: self.measure(f"{name} {epsilon:g}/255", partial(self._attacked, attacker, name, epsilon))
            for epsilon in self._settings.epsilons
        }
        return AttackResult(attack=name, by_epsilon=epsilons)

    def measure(self, name: str, condition: _Condition) -> Accuracy:
        results: list[dict[str, Any]] = []
        seen = 0
        for images in read_batches([self._dataset.image_path(record) for record in self._records], BATCH):
            records = self._records[seen : seen + len(images)]
            for record, image in zip(records, images, strict=True):
                require_size(self._dataset, record, image)
            batch, placements = condition(records, images)
            answers = self._detector.infer(batch)
            for found in postprocess(answers, placements, SETTINGS.confidence, SETTINGS.iou, SETTINGS.max_detections):
                seen += 1
                results += coco_results(seen, found)
            self._done += len(images)
            report_progress(self._done, self._total, "image", name)
        figures = coco_metrics(self._truth, results, self._dataset.classes)
        return Accuracy(map=figures.map or 0.0, map50=figures.map50 or 0.0)

    def clean(
        self, _records: Sequence[ImageRecord], images: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, list[Placement]]:
        return preprocess(images, self._detector.imgsz)

    def _corrupted(
        self, name: str, severity: int, records: Sequence[ImageRecord], images: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, list[Placement]]:
        seeds = [image_seed(self._settings.seed, record.sha256, name, severity) for record in records]
        corrupted = [corrupt(image, name, severity, seed) for image, seed in zip(images, seeds, strict=True)]
        return preprocess(corrupted, self._detector.imgsz)

    def _attacked(
        self,
        attacker: Attacker,
        name: Attack,
        epsilon: float,
        records: Sequence[ImageRecord],
        images: Sequence[np.ndarray],
    ) -> tuple[np.ndarray, list[Placement]]:
        batch, placements = preprocess(images, self._detector.imgsz)
        labels = [self._dataset.boxes(record) for record in records]
        # The same start for every epsilon, so that a larger one is not a luckier one.
        seeds = [image_seed(self._settings.seed, record.sha256, name) for record in records]
        return attacker.attack(name, epsilon / 255, batch, placements, labels, seeds), placements
