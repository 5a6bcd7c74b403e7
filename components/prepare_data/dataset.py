"""The dataset artifact: images, YOLO labels, ``data.yaml`` and a manifest with digests.

Layout::

    data.yaml                      what ultralytics opens
    manifest.json                  classes, splits, digests, counts
    images/{train,val,test}/…      JPEG or PNG
    labels/{train,val,test}/….txt  one ``class x y w h`` a line, normalised to 0..1; none for an unlabelled image
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file, write_text

MANIFEST_NAME = "manifest.json"
DATA_YAML_NAME = "data.yaml"

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class ImageRecord(BaseModel):
    """One image of the dataset.

    Attributes:
        file: Path relative to the dataset, ``images/<split>/<name>``.
        split: The split it belongs to.
        width: Pixels.
        height: Pixels.
        sha256: Digest of the image file.
        labels_sha256: Digest of the label file, or ``None`` for an unlabelled image, which has no label file. An image
            that is known to hold no object has an empty label file.
        boxes: Number of labelled boxes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    split: Split
    width: int
    height: int
    sha256: str
    labels_sha256: str | None
    boxes: int

    @property
    def labelled(self) -> bool:
        """Whether somebody has looked for objects in this image."""
        return self.labels_sha256 is not None

    @property
    def label_file(self) -> str:
        """Path of the label file relative to the dataset, whether or not there is one."""
        return f"labels/{self.split}/{Path(self.file).stem}.txt"


class DatasetManifest(BaseModel):
    """What a dataset artifact holds.

    Attributes:
        digest: SHA-256 over classes and every image and label digest: equal digests mean equal training data.
        classes: Class names by class index.
        images: Every image, sorted by ``file``.
        source: Where the data came from, without credentials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    digest: str
    classes: list[str]
    images: list[ImageRecord]
    source: str


@dataclass(frozen=True)
class DetectionDataset:
    """A dataset artifact, opened for reading.

    Attributes:
        root: The artifact's folder.
        manifest: Its content list.
    """

    root: Path
    manifest: DatasetManifest

    @classmethod
    def open(cls, root: Path) -> "DetectionDataset":
        """Open a dataset artifact.

        Args:
            root: Folder made by :func:`write_index`.

        Raises:
            InputError: The folder is no dataset artifact, or an image or label file is missing.
        """
        path = root / MANIFEST_NAME
        if not path.is_file():
            raise InputError(
                root, f"is not a dataset artifact, it has no {MANIFEST_NAME}", "Give the output of prepare-data"
            )
        try:
            manifest = DatasetManifest.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise InputError(path, f"is not a valid dataset manifest: {error}", "Prepare the data again") from error
        dataset = cls(root, manifest)
        for record in manifest.images:
            files = [record.file, record.label_file] if record.labelled else [record.file]
            for file in files:
                if not (root / file).is_file():
                    raise InputError(root / file, "is listed in the manifest but missing", "Prepare the data again")
        return dataset

    @property
    def digest(self) -> str:
        """SHA-256 over everything that training and evaluation read."""
        return self.manifest.digest

    @property
    def classes(self) -> list[str]:
        """Class names by class index."""
        return self.manifest.classes

    @property
    def data_yaml(self) -> Path:
        """The file that ultralytics opens."""
        return self.root / DATA_YAML_NAME

    def split(self, split: Split) -> list[ImageRecord]:
        """Return the images of one split, sorted by file name."""
        return [record for record in self.manifest.images if record.split == split]

    def image_path(self, record: ImageRecord) -> Path:
        """Return where an image lies."""
        return self.root / record.file

    def labels(self, record: ImageRecord) -> np.ndarray:
        """Return an image's labels, float64 [n, 5]: class index, box centre x, y, width, height, all 0..1 but class."""
        if not record.labelled:
            return np.zeros((0, 5))
        rows = (self.root / record.label_file).read_text(encoding="utf-8").split()
        return np.array(rows, dtype=np.float64).reshape(-1, 5)

    def boxes(self, record: ImageRecord) -> tuple[np.ndarray, np.ndarray]:
        """Return an image's boxes in pixels.

        Returns:
            Corner coordinates x1, y1, x2, y2, float64 [n, 4], and class indices, int64 [n].
        """
        labels = self.labels(record)
        centre = labels[:, 1:3] * (record.width, record.height)
        half = labels[:, 3:5] * (record.width, record.height) / 2
        return np.concatenate([centre - half, centre + half], axis=1), labels[:, 0].astype(np.int64)


def write_index(root: Path, classes: list[str], images: Iterable[ImageRecord], source: str) -> DatasetManifest:
    """Write ``data.yaml`` and the manifest of a dataset whose images and labels lie in place.

    Args:
        root: The dataset's folder.
        classes: Class names by class index.
        images: Every image.
        source: Where the data came from, without credentials.

    Returns:
        The manifest as written.
    """
    records = sorted(images, key=lambda record: record.file)
    manifest = DatasetManifest(digest=_digest(classes, records), classes=classes, images=records, source=source)
    # No ``path`` key: ultralytics then looks beside the file, wherever the artifact is moved to.
    data: dict[str, object] = {
        split: f"images/{split}" for split in SPLITS if any(record.split == split for record in records)
    }
    data["names"] = dict(enumerate(classes))
    write_text(root / DATA_YAML_NAME, yaml.safe_dump(data, sort_keys=False))
    write_text(root / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def describe_image(root: Path, file: str, split: Split, width: int, height: int) -> ImageRecord:
    """Return the record of an image that lies in place, with the digests of its image and label file."""
    draft = ImageRecord(file=file, split=split, width=width, height=height, sha256="", labels_sha256=None, boxes=0)
    labels = root / draft.label_file
    return draft.model_copy(
        update={
            "sha256": sha256_file(root / file),
            "labels_sha256": sha256_file(labels) if labels.is_file() else None,
            "boxes": len(labels.read_text(encoding="utf-8").splitlines()) if labels.is_file() else 0,
        }
    )


def _digest(classes: list[str], records: list[ImageRecord]) -> str:
    content = [classes, [[r.file, r.sha256, r.labels_sha256] for r in records]]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
