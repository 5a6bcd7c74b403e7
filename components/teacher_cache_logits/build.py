"""Builds the teacher cache, shard by shard."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import cv2
import numpy as np
import torch
import ultralytics
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.views import Augmentation, ViewDataset
from yolo_distill.components.teacher_cache_logits.cache import (
    MANIFEST_NAME,
    CacheManifest,
    Piece,
    cache_key,
    pieces,
)
from yolo_distill.components.teacher_cache_logits.shards import ShardRecord, ShardStore, open_store, shards_address
from yolo_distill.components.teacher_cache_logits.stream import TeacherStream, open_stream
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher, sparse_answers

PART_NAME = "part.json"
# The modules that make views; the images get OpenCV from another package than a laptop does.
_LIBRARIES = (ultralytics, cv2, np)
# fp16 numbers kept at an anchor point, for the check that the cache will fit: logits and about this many features.
_FEATURES_PER_POINT = 256


@dataclass(frozen=True)
class CacheSettings:
    """What is asked of the teacher.

    Attributes:
        augmentation: How views are made.
        open_views: Number of views with mosaic.
        closed_views: Number of views without.
        wanted: What of the answers is kept.
        batch: Images a forward pass.
    """

    augmentation: Augmentation
    open_views: int
    closed_views: int
    wanted: AnswerFormat = field(default_factory=AnswerFormat)
    batch: int = 16


def cache_settings(
    *, augmentation: Augmentation, open_views: int, closed_views: int, wanted: AnswerFormat
) -> CacheSettings:
    """Check what a user asked of the teacher.

    Args:
        augmentation: How views are made.
        open_views: Number of views with mosaic.
        closed_views: Number of views without.
        wanted: What of the answers is kept.

    Raises:
        InputError: No view is asked for.
    """
    if open_views < 0 or closed_views < 0 or open_views + closed_views == 0:
        raise InputError(f"views={open_views}, closed_views={closed_views}", "no view is asked for", "Ask for some")
    return CacheSettings(augmentation, open_views, closed_views, wanted)


def require_mode(mode: str) -> str:
    """Return what the teacher is asked about: ``views`` or ``original``.

    Raises:
        InputError: It is neither.
    """
    if mode not in {"views", "original"}:
        raise InputError(f"mode={mode!r}", "the teacher can be asked about views or original", "Give one of these")
    return mode


def answer_format(**values: int | str) -> AnswerFormat:
    """Check what a user wants kept of the answers.

    Args:
        **values: Fields of :class:`AnswerFormat`.

    Raises:
        InputError: A value is out of range.
    """
    try:
        return AnswerFormat.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        raise InputError(f"{name}={first['input']!r}", first["msg"], f"Give another {name}") from error


def fingerprint(views: ViewDataset) -> dict[str, str]:
    """Return what the views depend on besides the dataset: settings, libraries and checksums of probe views."""
    return {**{f"{library.__name__} version": library.__version__ for library in _LIBRARIES}, **views.fingerprint()}


class CachePart(BaseModel):
    """What one of several builders has made; ``part.json`` of its artifact.

    Attributes:
        key: Key of the cache that it is a part of.
        part: Which part, 0..parts - 1.
        parts: How many there are.
        shards_folder: Where the shards lie; as in the cache's manifest.
        shards: Its shards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    key: str
    part: int
    parts: int
    shards_folder: str
    shards: list[ShardRecord]


def build_cache(
    dataset: DetectionDataset,
    teacher_folder: Path,
    settings: CacheSettings,
    target: Path,
    cache_root: str | Path = "",
    parts: Sequence[Path] = (),
) -> CacheManifest:
    """Ask the teacher about every view and keep its answers.

    Args:
        dataset: The dataset artifact.
        teacher_folder: The teacher's model artifact.
        settings: What is asked.
        target: Where the cache artifact goes.
        cache_root: Folder or ``s3://`` address of caches shared by all runs, by content: shards found there are not
            computed again, and a killed build goes on where it stopped. Without it the shards lie in the artifact.
        parts: What :func:`build_part` has made of the same cache, to be taken over.

    Returns:
        The cache's manifest.

    Raises:
        InputError: The teacher's classes are not the dataset's, a part is of another cache, the disk is too full, or
            the storage does not answer.
    """
    with new_directory(target) as folder:
        builder = _Builder(dataset, teacher_folder, settings)
        address = shards_address(cache_root, builder.key)
        store = open_store(address, folder)
        records = builder.build(store, builder.pieces, _offered(parts, builder.key))
        manifest = CacheManifest(
            key=builder.key,
            dataset=dataset.digest,
            teacher=builder.teacher_digest,
            teacher_name=builder.teacher.card.architecture,
            classes=dataset.classes,
            imgsz=settings.augmentation.imgsz,
            strides=builder.teacher.strides,
            reg_max=builder.teacher.reg_max,
            channels=builder.teacher.channels,
            open_views=settings.open_views,
            closed_views=settings.closed_views,
            images=len(builder.views.records),
            fingerprint=builder.fingerprint,
            answers=settings.wanted,
            shards_folder=address,
            shards=records,
        )
        write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def build_part(
    dataset: DetectionDataset,
    teacher_folder: Path,
    settings: CacheSettings,
    target: Path,
    part: int,
    parts: int,
    cache_root: str | Path = "",
) -> CachePart:
    """Build every ``parts``-th shard of a cache, for several machines to share the work.

    Args:
        dataset: The dataset artifact.
        teacher_folder: The teacher's model artifact.
        settings: What is asked.
        target: Where the artifact goes that :func:`build_cache` takes over.
        part: Which part, 0..parts - 1.
        parts: How many there are.
        cache_root: As for :func:`build_cache`; with one, the artifact holds no shards.

    Returns:
        What was made.

    Raises:
        InputError: There is no such part; and as :func:`build_cache`.
    """
    if not 0 <= part < parts:
        raise InputError(f"part={part}", f"is not one of {parts} parts", f"Count parts from 0 to {parts - 1}")
    with new_directory(target) as folder:
        builder = _Builder(dataset, teacher_folder, settings)
        address = shards_address(cache_root, builder.key)
        records = builder.build(open_store(address, folder), builder.pieces[part::parts])
        made = CachePart(key=builder.key, part=part, parts=parts, shards_folder=address, shards=records)
        write_text(folder / PART_NAME, made.model_dump_json(indent=1) + "\n")
    return made


class _Builder:
    """A teacher and the views that it is asked about."""

    def __init__(self, dataset: DetectionDataset, teacher_folder: Path, settings: CacheSettings) -> None:
        self.teacher = Teacher(teacher_folder)
        require_classes(teacher_folder, self.teacher.card, dataset.classes)
        self.teacher_digest = self.teacher.card.digests[self.teacher.card.file]
        self.views = ViewDataset(dataset, settings.augmentation)
        self.fingerprint = fingerprint(self.views)
        self.key = cache_key(dataset.digest, self.teacher_digest, self.fingerprint, settings.wanted)
        self.pieces = pieces(settings.open_views, settings.closed_views, len(self.views.records))
        self._settings = settings

    @cached_property
    def _stream(self) -> TeacherStream:
        # Opened when a shard has to be computed: a complete cache costs no conversion.
        return open_stream(self.teacher, self._settings.augmentation.imgsz)

    def build(
        self, store: ShardStore, wanted: Sequence[Piece], offered: dict[str, ShardStore] | None = None
    ) -> list[ShardRecord]:
        """Find, take over or compute shards, in this order."""
        total = sum(len(piece.images) for piece in wanted)
        store.require_room(self._estimated_bytes(total))
        records: list[ShardRecord] = []
        done = 0
        for piece in wanted:
            records.append(
                store.find(piece.shard)
                or _taken_over(store, piece.shard, (offered or {}).get(piece.shard))
                or self._computed(store, piece)
            )
            done += len(piece.images)
            report_progress(done, total, "view", f"{sum(r.bytes for r in records) / 1e6:.0f} MB")
        return records

    def _computed(self, store: ShardStore, piece: Piece) -> ShardRecord:
        keys = [self.views.key(piece.view, index) for index in piece.images]
        loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            self.views, batch_size=self._settings.batch, sampler=keys, collate_fn=self.views.collate_fn
        )
        kept: list[dict[str, torch.Tensor]] = []
        total_mass = kept_mass = 0.0
        for batch, answers in self._stream.answers(loader):
            mask = self.teacher.select(answers, batch, self._settings.wanted)
            scores = answers.scores.float().sigmoid().sum(1)
            total_mass += float(scores.sum())
            kept_mass += float(scores[mask].sum())
            kept += [
                {name: tensor.cpu() for name, tensor in one.items()}
                for one in sparse_answers(answers, mask, self._settings.wanted)
            ]
        return store.add(piece.shard, kept_mass / total_mass, lambda file: save_file(_ragged(kept), file))

    def _estimated_bytes(self, views: int) -> int:
        numbers = len(self.teacher.card.classes) + 4 * self.teacher.reg_max + _FEATURES_PER_POINT
        return 2 * numbers * self._settings.wanted.top_k * views


def _offered(parts: Sequence[Path], key: str) -> dict[str, ShardStore]:
    """Return where the shards of parts lie, by shard name."""
    offered: dict[str, ShardStore] = {}
    for folder in parts:
        try:
            part = CachePart.model_validate_json((folder / PART_NAME).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise InputError(folder, "is no part of a teacher cache", "Build it with teacher-cache-shards") from error
        if part.key != key:
            raise InputError(
                folder,
                "holds answers to other views or of another teacher",
                "Build parts and cache with equal settings",
            )
        store = open_store(part.shards_folder, folder)
        offered |= {record.file: store for record in part.shards}
    return offered


def _taken_over(store: ShardStore, name: str, source: ShardStore | None) -> ShardRecord | None:
    """Copy a shard that another builder has made, or return ``None`` where it is damaged or there is none."""
    record = source.find(name) if source else None
    if not (source and record):
        return None
    file = source.files([record])[name]
    return store.add(name, record.score_mass, lambda partial: _link_or_copy(file, partial))


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        target.hardlink_to(file)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(file, target)


def _ragged(answers: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put the answers of a shard one after the other, with where each begins."""
    tensors = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    for name in answers[0]:
        lengths = torch.tensor([0] + [len(answer[name]) for answer in answers])
        tensors[f"{name}.offsets"] = lengths.cumsum(0)
    return tensors
