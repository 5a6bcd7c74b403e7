"""Checks a cache against the teacher itself."""

import math
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.views import Augmentation, ViewDataset
from yolo_distill.components.teacher_cache_logits.cache import (
    CacheManifest,
    Piece,
    TeacherCache,
    pieces,
    read_manifest,
)
from yolo_distill.components.teacher_cache_logits.stream import open_stream
from yolo_distill.components.teacher_cache_logits.teacher import Teacher

_LEAST_CORRELATION = 0.999
_LEAST_VIEWS = 4
_BATCH = 16


def require_fraction(fraction: float) -> float:
    """Return which fraction of a cache is to be checked, 0 for none.

    Raises:
        InputError: It is not in 0..1.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"verify_fraction={fraction}", "is not in 0..1", "Give 0.01 for one view in a hundred")
    return fraction


def verify_cache(
    cache_folder: Path, dataset: DetectionDataset, teacher_folder: Path, fraction: float = 0.01, seed: int = 0
) -> float:
    """Ask the teacher again about a sample of the views and compare its logits with those that were kept.

    Args:
        cache_folder: The cache artifact.
        dataset: The dataset artifact that it was built on.
        teacher_folder: The teacher's model artifact that it was built with.
        fraction: How many of the views are looked at, above 0 and up to 1; four at least. They come from as small a
            part of the shards, so that no more than that is fetched from object storage.
        seed: Chooses the sample.

    Returns:
        The least correlation of kept and new logits, of classes or boxes, over the views of the sample, -1..1.

    Raises:
        InputError: Dataset or teacher are others, or a view's logits differ: their correlation is 0.999 or less.
    """
    manifest = read_manifest(cache_folder)
    teacher = Teacher(teacher_folder)
    _require_same(manifest, dataset, teacher)
    sample = _sample(manifest, fraction, seed)
    cache = TeacherCache(cache_folder, [piece for piece, _ in sample])
    views = ViewDataset(dataset, _augmentation(manifest))
    keys = [views.key(piece.view, index) for piece, index in sample]
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
        views, batch_size=_BATCH, sampler=keys, collate_fn=views.collate_fn
    )
    least = 1.0
    done = 0
    # By the engine that builds caches: the logits of a teacher that has learnt little are nearly constant, so that
    # another way of rounding would already be a difference.
    for _, answers in open_stream(teacher, manifest.imgsz).answers(loader):
        for scores, boxes in zip(answers.scores.float().cpu(), answers.boxes.float().cpu(), strict=True):
            piece, index = sample[done]
            kept = cache.read(piece.view, index)
            correlation = min(
                _correlation(kept["scores"], scores[:, kept["points"]]),
                _correlation(kept["boxes"], boxes[:, kept["points"]]),
            )
            if not correlation > _LEAST_CORRELATION:
                raise InputError(
                    f"view {piece.view} of image {index}",
                    f"the teacher answers otherwise than the cache says (correlation {correlation:.4f})",
                    f"Delete {piece.shard} in {manifest.shards_folder} and build the cache again",
                )
            least = min(least, correlation)
            done += 1
        report_progress(done, len(sample), "view", "verified")
    return least


def _require_same(manifest: CacheManifest, dataset: DetectionDataset, teacher: Teacher) -> None:
    for name, built, given in (
        ("dataset", manifest.dataset, dataset.digest),
        ("teacher", manifest.teacher, teacher.card.digests[teacher.card.file]),
    ):
        if built != given:
            raise InputError("teacher cache", f"was built with {name} {built[:12]}, not {given[:12]}", "Build it again")


def _sample(manifest: CacheManifest, fraction: float, seed: int) -> list[tuple[Piece, int]]:
    """Choose shards, then images in each."""
    random = np.random.default_rng(seed)
    shards = pieces(manifest.open_views, manifest.closed_views, manifest.images)
    count = min(max(math.ceil(fraction * len(shards)), _LEAST_VIEWS), len(shards))
    views = max(math.ceil(fraction * sum(len(piece.images) for piece in shards)), _LEAST_VIEWS)
    return [
        (shards[n], int(index))
        for n in random.permutation(len(shards))[:count]
        for index in random.permutation(shards[n].images)[: math.ceil(views / count)]
    ]


def _augmentation(manifest: CacheManifest) -> Augmentation:
    return Augmentation.model_validate({name: manifest.fingerprint[name] for name in Augmentation.model_fields})


def _correlation(then: torch.Tensor, now: torch.Tensor) -> float:
    """Correlate kept logits [n, c], NaN where none was kept, with the teacher's [c, n].

    A cosine would be high for any two answers, as logits have a large mean in common.
    """
    known = ~then.isnan()
    return float(torch.corrcoef(torch.stack([then.float()[known], now.T[known]]))[0, 1])
