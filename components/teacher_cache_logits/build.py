"""Builds the teacher cache, shard by shard."""

import contextlib
import os
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import require_classes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, require_free_space, sha256_file, write_text
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.views import Augmentation, View, ViewDataset
from yolo_distill.components.teacher_cache_logits.cache import (
    MANIFEST_NAME,
    SHARD_IMAGES,
    CacheManifest,
    ShardRecord,
    cache_key,
    shard_name,
)
from yolo_distill.components.teacher_cache_logits.teacher import (
    AnswerFormat,
    Teacher,
    sparse_answers,
)

_LIBRARIES = ("ultralytics", "opencv-python", "numpy")
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
    batch: int = 32

    @property
    def views(self) -> list[View]:
        """Every view that the teacher is shown."""
        return [View(n, closed=False) for n in range(self.open_views)] + [
            View(n, closed=True) for n in range(self.closed_views)
        ]


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
    return {**{f"{name} version": version(name) for name in _LIBRARIES}, **views.fingerprint()}


def build_cache(
    dataset: DetectionDataset,
    teacher_folder: Path,
    settings: CacheSettings,
    target: Path,
    work_root: Path | None = None,
) -> CacheManifest:
    """Ask the teacher about every view and keep its answers.

    Args:
        dataset: The dataset artifact.
        teacher_folder: The teacher's model artifact.
        settings: What is asked.
        target: Where the cache artifact goes.
        work_root: Folder of caches shared by all runs, by content: shards found there are not computed again, and a
            killed build goes on where it stopped. Without it the shards lie in the artifact.

    Returns:
        The cache's manifest.

    Raises:
        InputError: The teacher's classes are not the dataset's, or the disk is too full.
    """
    teacher = Teacher(teacher_folder)
    require_classes(teacher_folder, teacher.card, dataset.classes)
    views = ViewDataset(dataset, settings.augmentation)
    facts = fingerprint(views)
    digest = teacher.card.digests[teacher.card.file]
    key = cache_key(dataset.digest, digest, facts, settings.wanted)
    with new_directory(target) as folder:
        shards = work_root / "teacher-cache" / key if work_root else folder / "shards"
        shards.mkdir(parents=True, exist_ok=True)
        require_free_space(shards, _estimated_bytes(teacher, views, settings))
        records = _build_shards(teacher, views, settings, shards)
        manifest = CacheManifest(
            key=key,
            dataset=dataset.digest,
            teacher=digest,
            teacher_name=teacher.card.architecture,
            classes=dataset.classes,
            imgsz=settings.augmentation.imgsz,
            strides=teacher.strides,
            reg_max=teacher.reg_max,
            channels=teacher.channels,
            open_views=settings.open_views,
            closed_views=settings.closed_views,
            images=len(views.records),
            fingerprint=facts,
            answers=settings.wanted,
            shards_folder=str(shards.absolute()) if work_root else "shards",
            shards=records,
        )
        write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _build_shards(teacher: Teacher, views: ViewDataset, settings: CacheSettings, folder: Path) -> list[ShardRecord]:
    chunks = [
        range(start, min(start + SHARD_IMAGES, len(views.records)))
        for start in range(0, len(views.records), SHARD_IMAGES)
    ]
    records = []
    total = len(settings.views) * len(views.records)
    done = 0
    for view in settings.views:
        for number, images in enumerate(chunks):
            file = folder / shard_name(view, number)
            records.append(_finished(file) or _write_shard(teacher, views, view, images, settings, file))
            done += len(images)
            report_progress(done, total, "view", f"{sum(r.bytes for r in records) / 1e6:.0f} MB")
    return records


def _finished(file: Path) -> ShardRecord | None:
    """Return the record of a shard that an earlier build left whole, or ``None``."""
    record_file = file.with_suffix(".json")
    if not (file.is_file() and record_file.is_file()):
        return None
    record = ShardRecord.model_validate_json(record_file.read_text(encoding="utf-8"))
    return record if sha256_file(file) == record.sha256 else None


def _write_shard(
    teacher: Teacher, views: ViewDataset, view: View, images: range, settings: CacheSettings, file: Path
) -> ShardRecord:
    keys = [views.key(view, index) for index in images]
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
        views, batch_size=settings.batch, sampler=keys, collate_fn=views.collate_fn
    )
    kept: list[dict[str, torch.Tensor]] = []
    total_mass = kept_mass = 0.0
    for batch in loader:
        answers = teacher.answer(batch["img"])
        mask = teacher.select(answers, batch, settings.wanted)
        scores = answers.scores.float().sigmoid().sum(1)
        total_mass += float(scores.sum())
        kept_mass += float(scores[mask].sum())
        kept += [
            {name: tensor.cpu() for name, tensor in one.items()}
            for one in sparse_answers(answers, mask, settings.wanted)
        ]
    partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
    try:
        save_file(_ragged(kept), partial)
        _publish(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    # Described as it lies there: where two builders met, the first one's shard stands.
    record = ShardRecord(
        file=file.name,
        sha256=sha256_file(file),
        bytes=file.stat().st_size,
        score_mass=kept_mass / total_mass,
    )
    write_text(file.with_suffix(".json"), record.model_dump_json())
    return record


def _publish(partial: Path, file: Path) -> None:
    """Give a finished shard its name, unless another builder was faster."""
    if file.exists() and not file.with_suffix(".json").exists():
        # Linked by a builder that is about to describe it, or left so by one that was killed: either way whole.
        return
    file.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):
        file.hardlink_to(partial)


def _ragged(answers: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put the answers of a shard one after the other, with where each begins."""
    tensors = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    for name in answers[0]:
        lengths = torch.tensor([0] + [len(answer[name]) for answer in answers])
        tensors[f"{name}.offsets"] = lengths.cumsum(0)
    return tensors


def _estimated_bytes(teacher: Teacher, views: ViewDataset, settings: CacheSettings) -> int:
    numbers = len(teacher.card.classes) + 4 * teacher.reg_max + _FEATURES_PER_POINT
    return 2 * numbers * settings.wanted.top_k * len(views.records) * len(settings.views)
