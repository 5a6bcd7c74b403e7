"""The teacher cache: what the teacher said about every view, for whoever trains on those views.

Layout::

    manifest.json            what was asked of whom, and the digest of every shard
    shards/                  unless they lie in a cache root, as the module ``shards`` describes
        open-0003-00000.safetensors
        open-0003-00000.json

A shard holds the answers to one view of up to :data:`SHARD_IMAGES` images as ragged arrays: for each tensor of
:func:`~yolo_distill.components.teacher_cache_logits.teacher.sparse_answers` the rows of one image after the other, and
``<name>.offsets`` int64 [images + 1], where each image begins. Shards are memory-mapped; nothing in
them is executable.
"""

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from yolo_distill.components.shared.records import read_record
from yolo_distill.components.shared.views import View
from yolo_distill.components.teacher_cache_logits.shards import ShardRecord, open_store
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, dense_answer

MANIFEST_NAME = "manifest.json"
SHARD_IMAGES = 256


@dataclass(frozen=True)
class Piece:
    """The part of a cache that a shard holds.

    Attributes:
        view: The view.
        images: Which images, by their places in the training split.
    """

    view: View
    images: range

    @property
    def shard(self) -> str:
        """The shard's file name."""
        return shard_name(self.view, self.images.start // SHARD_IMAGES)


def pieces(open_views: int, closed_views: int, images: int) -> list[Piece]:
    """Return what the shards of a cache hold, in their order.

    Args:
        open_views: Number of open views.
        closed_views: Number of closed views.
        images: Number of images of the training split.
    """
    views = [View(n, closed=False) for n in range(open_views)] + [View(n, closed=True) for n in range(closed_views)]
    chunks = [range(start, min(start + SHARD_IMAGES, images)) for start in range(0, images, SHARD_IMAGES)]
    return [Piece(view, chunk) for view in views for chunk in chunks]


class CacheManifest(BaseModel):
    """What a cache holds.

    Attributes:
        key: Digest of everything that the answers depend on.
        dataset: Digest of the dataset.
        teacher: Digest of the teacher's checkpoint.
        teacher_name: What the teacher is called.
        classes: Class names by class index.
        imgsz: Side of the views in pixels.
        strides: Pixels between anchor points, by level.
        reg_max: Bins of a box side's distribution.
        channels: Channels of the neck features, by level.
        open_views: Number of open views.
        closed_views: Number of closed views.
        images: Number of images of the training split.
        fingerprint: What the views depend on besides the dataset.
        answers: What of the answers was kept.
        shards_folder: Where the shards lie; relative to the manifest, or a folder or ``s3://`` address in a cache root.
        shards: Every shard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    key: str
    dataset: str
    teacher: str
    teacher_name: str
    classes: list[str]
    imgsz: int
    strides: list[int]
    reg_max: int
    channels: list[int]
    open_views: int
    closed_views: int
    images: int
    fingerprint: dict[str, str]
    answers: AnswerFormat
    shards_folder: str
    shards: list[ShardRecord]

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def score_mass(self) -> float:
        """Mean fraction of the teacher's class scores that the kept points hold."""
        return sum(shard.score_mass for shard in self.shards) / len(self.shards)


def cache_key(dataset: str, teacher: str, fingerprint: dict[str, str], wanted: AnswerFormat) -> str:
    """Return the digest under which answers are kept: equal keys mean equal answers.

    Args:
        dataset: Digest of the dataset.
        teacher: Digest of the teacher's checkpoint.
        fingerprint: What the views depend on besides the dataset.
        wanted: What of the answers is kept.
    """
    content = json.dumps([2, dataset, teacher, fingerprint, wanted.model_dump(), SHARD_IMAGES], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def shard_name(view: View, chunk: int) -> str:
    """Return the file name of the shard that holds a chunk of a view."""
    return f"{view}-{chunk:05d}.safetensors"


def read_manifest(folder: Path) -> CacheManifest:
    """Return what a cache holds.

    Args:
        folder: The cache artifact.

    Raises:
        InputError: The folder is no cache.
    """
    return read_record(
        folder,
        MANIFEST_NAME,
        CacheManifest,
        artifact="a teacher cache",
        record="cache manifest",
        origin="Build the cache again",
        again="Build the cache again",
    )


class TeacherCache:
    """A cache opened for reading; an :class:`~yolo_distill.components.shared.views.AnswerSource`.

    Attributes:
        folder: The cache artifact.
        manifest: What it holds.
        files: Its shards on this machine, by name.
    """

    def __init__(self, folder: Path, chosen: Sequence[Piece] | None = None) -> None:
        """Open a cache, fetch what lies in object storage and check every shard against its digest.

        Args:
            folder: The cache artifact.
            chosen: What is going to be read; by default all.

        Raises:
            InputError: The folder is no cache, a shard is missing or damaged, or the storage does not answer.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        names = None if chosen is None else {piece.shard for piece in chosen}
        records = [shard for shard in self.manifest.shards if names is None or shard.file in names]
        self.files = open_store(self.manifest.shards_folder, folder).files(records)
        self._open: dict[str, dict[str, tuple[torch.Tensor, list[int]]]] = {}
        self._skipped: tuple[str, ...] = ()

    def without(self, *beginnings: str) -> "TeacherCache":
        """Return the same cache for a training that does not look at some tensors, which are then not read.

        Args:
            *beginnings: What their names begin with, such as ``attention``.
        """
        other = copy(self)
        other._open, other._skipped = {}, beginnings
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Leave memory maps behind when a loader process is started."""
        return {**self.__dict__, "_open": {}}

    def read(self, view: View, index: int) -> dict[str, torch.Tensor]:
        """Return the teacher's answer to one view of one image.

        Args:
            view: The view.
            index: The image, by its place in the training split.

        Returns:
            What :func:`~yolo_distill.components.teacher_cache_logits.teacher.dense_answer` returns.
        """
        chunk, row = divmod(index, SHARD_IMAGES)
        shard = self._shard(shard_name(view, chunk))
        kept = {name: rows[offsets[row] : offsets[row + 1]] for name, (rows, offsets) in shard.items()}
        return dense_answer(kept, len(self.manifest.classes))

    def _shard(self, name: str) -> dict[str, tuple[torch.Tensor, list[int]]]:
        """Return a shard's tensors, which lie in the mapped file, and where each image begins in them."""
        if name not in self._open:
            shard: Any = safe_open(self.files[name], framework="pt")
            names = [
                name.removesuffix(".offsets")
                for name in shard.keys()  # noqa: SIM118  a shard is no mapping
                if name.endswith("offsets") and not name.startswith(self._skipped)
            ]
            self._open[name] = {
                name: (shard.get_tensor(name), shard.get_tensor(f"{name}.offsets").tolist()) for name in names
            }
        return self._open[name]
