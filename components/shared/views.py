"""Replayable augmentation: a view of an image that any process can make again, bit for bit.

Augmentation is ultralytics' own, but where ultralytics draws from random state that depends on what was loaded before
(its mosaic takes partners from a rolling buffer), a view here is a pure function of dataset digest, augmentation
settings, view number and image index. A teacher can so be asked once for its answer to a view and the student can train
on exactly that view later, in any order and with any number of workers; consistent views are what distillation lives on
(Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022).
"""

import hashlib
import random
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.utils.data import Sampler
from ultralytics.data.augment import Compose, Mosaic
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import DEFAULT_CFG, IterableSimpleNamespace

from yolo_distill.components.prepare_data.dataset import DetectionDataset, ImageRecord, Split
from yolo_distill.components.shared.errors import InputError


class Augmentation(BaseModel):
    """How views are made; the fields are ultralytics' hyperparameters of the same names, with its defaults.

    Attributes:
        imgsz: Side of the square view in pixels, a multiple of 32.
        mosaic: Probability of a 2x2 mosaic, 0..1; 0 in closed views.
        mixup: Probability of MixUp, 0..1; 0 in closed views.
        cutmix: Probability of CutMix, 0..1; 0 in closed views.
        degrees: Largest rotation in degrees.
        translate: Largest shift as a fraction of the side.
        scale: Largest change of scale, as a fraction.
        shear: Largest shear in degrees.
        perspective: Largest perspective coefficient, 0..0.001.
        hsv_h: Largest change of hue, as a fraction.
        hsv_s: Largest change of saturation, as a fraction.
        hsv_v: Largest change of value, as a fraction.
        flipud: Probability of a vertical flip.
        fliplr: Probability of a horizontal flip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    imgsz: int = Field(multiple_of=32, gt=0)
    mosaic: float = Field(default=DEFAULT_CFG.mosaic, ge=0, le=1)
    mixup: float = Field(default=DEFAULT_CFG.mixup, ge=0, le=1)
    cutmix: float = Field(default=DEFAULT_CFG.cutmix, ge=0, le=1)
    degrees: float = DEFAULT_CFG.degrees
    translate: float = DEFAULT_CFG.translate
    scale: float = DEFAULT_CFG.scale
    shear: float = DEFAULT_CFG.shear
    perspective: float = DEFAULT_CFG.perspective
    hsv_h: float = DEFAULT_CFG.hsv_h
    hsv_s: float = DEFAULT_CFG.hsv_s
    hsv_v: float = DEFAULT_CFG.hsv_v
    flipud: float = Field(default=DEFAULT_CFG.flipud, ge=0, le=1)
    fliplr: float = Field(default=DEFAULT_CFG.fliplr, ge=0, le=1)

    def hyperparameters(self, *, closed: bool) -> IterableSimpleNamespace:
        """Return ultralytics' configuration for these views.

        Args:
            closed: Whether images are left unmixed, as in the last epochs of a training (``close_mosaic``).
        """
        mixing = {"mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0} if closed else {}
        return IterableSimpleNamespace(**{**vars(DEFAULT_CFG), **self.model_dump(), **mixing})


def parse_augmentation(imgsz: int, text: str) -> Augmentation:
    """Read what a user changes of the augmentation.

    Args:
        imgsz: Side of the square view in pixels.
        text: Hyperparameters of ultralytics, such as ``fliplr=0,degrees=10``; the others keep their defaults.

    Raises:
        InputError: A hyperparameter is unknown or out of range.
    """
    values: dict[str, object] = {"imgsz": imgsz}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        values[name.strip()] = value.strip()
    try:
        return Augmentation.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(name for name in Augmentation.model_fields if name != "imgsz")
        raise InputError(
            f"{first['loc'][0]}={first['input']}", first["msg"], f"The augmentation knows {known}"
        ) from error


@dataclass(frozen=True)
class View:
    """One way to augment the whole training set.

    Attributes:
        number: Counts the views of a kind, from 0.
        closed: Whether images are left unmixed (no mosaic, MixUp or CutMix).
    """

    number: int
    closed: bool

    def __str__(self) -> str:
        return f"{'closed' if self.closed else 'open'}-{self.number:04d}"


@dataclass(frozen=True)
class ViewSchedule:
    """Which view each epoch trains on.

    Attributes:
        epochs: Length of the training.
        close_mosaic: How many epochs at the end use closed views.
        open_views: Number of open views to cycle through, or ``None`` for a fresh one every epoch.
        closed_views: The same for closed views.
    """

    epochs: int
    close_mosaic: int
    open_views: int | None = None
    closed_views: int | None = None

    def view(self, epoch: int) -> View:
        """Return the view of an epoch, counted from 0."""
        first_closed = max(self.epochs - self.close_mosaic, 0)
        closed = epoch >= first_closed
        number = epoch - first_closed if closed else epoch
        limit = self.closed_views if closed else self.open_views
        return View(number % limit if limit else number, closed)


class AnswerSource(Protocol):
    """Where a teacher's answers to views come from."""

    def read(self, view: View, index: int) -> dict[str, torch.Tensor]:
        """Return the answer to one view of one image, as tensors by name."""
        ...


@dataclass(frozen=True)
class SoftBoxes:
    """A teacher's boxes in the original images, to be carried into every view.

    Attributes:
        boxes: For each image of the training split, boxes as normalised centre x, y, width, height, float32 [n, 4].
        scores: For each image, the boxes' class logits, fp16 [n, nc].
    """

    boxes: list[np.ndarray]
    scores: list[torch.Tensor]


class ManifestDataset(YOLODataset):  # type: ignore[misc]
    """A split of a dataset artifact as ultralytics reads it, with labels from the artifact's manifest.

    Ultralytics would scan every label again and leave a pickled ``.cache`` file in the artifact.
    """

    def __init__(self, dataset: DetectionDataset, split: Split, **kwargs: Any) -> None:
        """Open a split.

        Args:
            dataset: The dataset artifact.
            split: Which of its splits.
            **kwargs: What ``ultralytics.data.dataset.YOLODataset`` takes.
        """
        self.artifact = dataset
        self.records: list[ImageRecord] = dataset.split(split)
        data = {"names": dict(enumerate(dataset.classes)), "nc": len(dataset.classes), "channels": 3}
        super().__init__(img_path=str(dataset.root / "images" / split), data=data, task="detect", **kwargs)

    def get_img_files(self, img_path: str) -> list[str]:
        """Return the image files in the manifest's order."""
        return [str(self.artifact.image_path(record)) for record in self.records]

    def get_labels(self) -> list[dict[str, Any]]:
        """Return ultralytics' label dictionaries, one an image."""
        return [self._label(record) for record in self.records]

    def _label(self, record: ImageRecord) -> dict[str, Any]:
        rows = self.artifact.labels(record).astype(np.float32)
        return {
            "im_file": str(self.artifact.image_path(record)),
            "shape": (record.height, record.width),
            "cls": rows[:, :1],
            "bboxes": rows[:, 1:],
            "segments": [],
            "keypoints": None,
            "normalized": True,
            "bbox_format": "xywh",
        }


class ViewDataset(ManifestDataset):
    """The training split under replayable augmentation.

    Items are addressed by :meth:`key`, which holds the view and the image, so that a worker that prefetches across an
    epoch's end still makes the right view. Images without labels are mixed with their like only, so that every view is
    either labelled throughout or not at all; its ``labelled`` entry says which.

    Attributes:
        augmentation: How views are made.
        answers: Where a teacher's answers are read from, or ``None``.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        augmentation: Augmentation,
        answers: AnswerSource | SoftBoxes | None = None,
    ) -> None:
        """Open the training split.

        Args:
            dataset: The dataset artifact.
            augmentation: How views are made.
            answers: Where a teacher's answers to the views come from, or its boxes in the original images, which the
                augmentation moves along with the labels; each item gets them as its ``answer``.
        """
        self.augmentation = augmentation
        self.answers = answers
        self._soft_scores = torch.cat(answers.scores) if isinstance(answers, SoftBoxes) else None
        super().__init__(
            dataset,
            "train",
            imgsz=augmentation.imgsz,
            # Decoded images are kept in memory when they fit; ultralytics falls back to reading files when not.
            cache="ram",
            augment=True,
            hyp=augmentation.hyperparameters(closed=False),
        )
        self._closed_transforms = self.build_transforms(copy(augmentation.hyperparameters(closed=True)))
        labelled = np.array([record.labelled for record in self.records])
        self._pools = {True: np.flatnonzero(labelled), False: np.flatnonzero(~labelled)}
        self._pool = self._pools[True]

    def key(self, view: View, index: int) -> int:
        """Return the item key of one view of one image."""
        return (2 * view.number + view.closed) * len(self.records) + index

    def __getitem__(self, key: int) -> dict[str, Any]:
        """Make one view of one image.

        Args:
            key: What :meth:`key` returns.

        Returns:
            Ultralytics' training item, with ``labelled`` and the teacher's answer added, and ``object``, which says of
            which of the split's labelled boxes each box is a view, int64 [n].
        """
        view_code, index = divmod(key, len(self.records))
        view = View(view_code // 2, bool(view_code % 2))
        record = self.records[index]
        self._pool = self._pools[record.labelled]
        with _seeded(f"{self.artifact.digest}/{view}/{record.file}"):
            transforms = self._closed_transforms if view.closed else self.transforms
            item: dict[str, Any] = transforms(super().get_image_and_label(index))
        item["labelled"] = record.labelled
        self._name_rows(item)
        if self.answers is not None and not isinstance(self.answers, SoftBoxes):
            item["answer"] = self.answers.read(view, index)
        return item

    def get_labels(self) -> list[dict[str, Any]]:
        """Return ultralytics' label dictionaries, with numbers for classes and the teacher's boxes added as rows.

        The number of a row is its box's place among all labelled boxes, then among all of the teacher's: by it a box is
        known again after the augmentation.
        """
        labels = super().get_labels()
        self._classes = torch.from_numpy(np.concatenate([label["cls"] for label in labels]))
        first = 0
        for label in labels:
            first = _number(label, first)
        if isinstance(self.answers, SoftBoxes):
            for label, boxes in zip(labels, self.answers.boxes, strict=True):
                rows = {"cls": np.zeros((len(boxes), 1), np.float32), "bboxes": boxes.astype(np.float32)}
                first = _number(rows, first)
                for name, values in rows.items():
                    label[name] = np.concatenate([label[name], values])
        return labels

    def _name_rows(self, item: dict[str, Any]) -> None:
        """Put classes back in place of numbers, and take the teacher's boxes out of the labels."""
        numbers = item["cls"][:, 0].long()
        soft = numbers >= len(self._classes)
        if self._soft_scores is not None:
            scores = self._soft_scores[numbers[soft] - len(self._classes)]
            item["answer"] = {"soft_boxes": item["bboxes"][soft], "scores": scores}
        for name in ("bboxes", "batch_idx"):
            item[name] = item[name][~soft]
        item["object"] = numbers[~soft]
        item["cls"] = self._classes[item["object"]]

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return a partner for mosaic or MixUp, from the images labelled as the current one is."""
        label: dict[str, Any] = super().get_image_and_label(int(self._pool[index % len(self._pool)]))
        return label

    def build_transforms(self, hyp: IterableSimpleNamespace | None = None) -> Compose:
        """Build ultralytics' transforms, with mosaic partners drawn from the whole split and not from its buffer."""
        transforms = super().build_transforms(hyp)
        for mosaic in _mosaics(transforms):
            mosaic.buffer_enabled = False
        return transforms

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate views into ultralytics' batch; ``labelled`` becomes bool [B], answers stay a list of B."""
        answers = [item.pop("answer") for item in batch if "answer" in item]
        labelled = torch.tensor([item.pop("labelled") for item in batch])
        objects = torch.cat([item.pop("object") for item in batch])
        collated: dict[str, Any] = YOLODataset.collate_fn(batch)
        collated |= {"labelled": labelled, "object": objects}
        if answers:
            collated["answer"] = answers
        return collated

    def fingerprint(self, probes: int = 4) -> dict[str, str]:
        """Return what the views depend on besides the dataset, so that a changed library is noticed.

        Args:
            probes: How many views to make and take a checksum of.

        Returns:
            The augmentation settings and a checksum of probe views, by name.
        """
        views = [View(number, closed) for number in (0, 1) for closed in (False, True)]
        settings = {name: str(value) for name, value in self.augmentation.model_dump().items()}
        for n in range(probes):
            view, index = views[n % len(views)], n * len(self.records) // probes
            item = self[self.key(view, index)]
            content = hashlib.sha256(item["img"].numpy().tobytes() + item["bboxes"].numpy().tobytes())
            settings[f"view {view} of image {index}"] = content.hexdigest()[:16]
        return settings


class ViewSampler(Sampler[int]):
    """Draws every image once an epoch, in an order that depends on seed and epoch alone, as keys of the epoch's view.

    Attributes:
        epoch: The epoch that the next iteration draws; advances by itself.
    """

    def __init__(
        self, dataset: ViewDataset, schedule: ViewSchedule, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Set up the order.

        Args:
            dataset: What is drawn from.
            schedule: Which view each epoch uses.
            seed: Seed of the order.
            rank: This process among ``world_size`` ones, which share the images evenly.
            world_size: Number of processes.
        """
        self.dataset = dataset
        self.schedule = schedule
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.dataset.records) // self.world_size)

    def __iter__(self) -> Iterator[int]:
        view = self.schedule.view(self.epoch)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset.records))
        self.epoch += 1
        # As in torch's DistributedSampler, the first images fill up so that every process has equally many.
        order = np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size]
        return (self.dataset.key(view, int(index)) for index in order)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: loaders prefetch across the epoch's end, so the sampler counts by itself."""


class _seeded:
    """Seeds Python's and NumPy's global generators, which ultralytics' transforms draw from, and puts them back."""

    def __init__(self, name: str) -> None:
        self._seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")

    def __enter__(self) -> None:
        self._states = random.getstate(), np.random.get_state()
        random.seed(self._seed)
        np.random.seed(self._seed)

    def __exit__(self, *_: object) -> None:
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])


def _number(rows: dict[str, Any], first: int) -> int:
    """Write consecutive numbers in place of the classes of some rows and return the next number."""
    end = first + len(rows["cls"])
    rows["cls"] = np.arange(first, end, dtype=np.float32)[:, None]
    return end


def _mosaics(transform: Any) -> Iterator[Mosaic]:
    if isinstance(transform, Mosaic):
        yield transform
    for inner in getattr(transform, "transforms", []):
        yield from _mosaics(inner)
    if (before := getattr(transform, "pre_transform", None)) is not None:
        yield from _mosaics(before)
