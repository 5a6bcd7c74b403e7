"""The teacher's answer to each original image: few boxes with their class scores, whatever the views will be.

The teacher sees the image as it is and the student an augmented view of it; the augmentation carries the boxes into the
view. Such an answer takes some kilobytes an image and serves every epoch, but box distributions and features do not
survive a change of scale, so that only class scores and boxes can be distilled from it.
"""

from pathlib import Path
from typing import Literal

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import preprocess, read_image, require_classes
from yolo_distill.components.shared.detector.nms import non_maximum_suppression
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, sha256_file, write_text
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.views import SoftBoxes
from yolo_distill.components.teacher_cache_logits.teacher import Teacher

MANIFEST_NAME = "originals.json"
_ANSWERS_NAME = "originals.safetensors"
_MOST_BOXES = 100
_LEAST_SCORE = 0.05
_NMS_IOU = 0.7


class OriginalsManifest(BaseModel):
    """What answers to original images hold.

    Attributes:
        dataset: Digest of the dataset.
        teacher: Digest of the teacher's checkpoint.
        teacher_name: What the teacher is called.
        imgsz: Side of the square that the teacher saw the images in, in pixels.
        images: Number of images.
        bytes: Size of the answers.
        sha256: Digest of the answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    dataset: str
    teacher: str
    teacher_name: str
    imgsz: int
    images: int
    bytes: int
    sha256: str


def build_originals(dataset: DetectionDataset, teacher_folder: Path, imgsz: int, target: Path) -> OriginalsManifest:
    """Ask the teacher about every original training image.

    Args:
        dataset: The dataset artifact.
        teacher_folder: The teacher's model artifact.
        imgsz: Side of the square that images are letterboxed to, in pixels.
        target: Where the artifact goes.

    Returns:
        Its manifest.

    Raises:
        InputError: The teacher's classes are not the dataset's.
    """
    teacher = Teacher(teacher_folder)
    require_classes(teacher_folder, teacher.card, dataset.classes)
    boxes, scores = [], []
    records = dataset.split("train")
    for done, record in enumerate(records, 1):
        found, logits = _soft_boxes(teacher, read_image(dataset.image_path(record)), imgsz)
        boxes.append(found)
        scores.append(logits)
        if done % 32 == 0 or done == len(records):
            report_progress(done, len(records), "image")
    offsets = torch.tensor([0] + [len(found) for found in boxes]).cumsum(0)
    with new_directory(target) as folder:
        file = folder / _ANSWERS_NAME
        save_file({"boxes": torch.cat(boxes), "scores": torch.cat(scores), "offsets": offsets}, file)
        manifest = OriginalsManifest(
            dataset=dataset.digest,
            teacher=teacher.card.digest,
            teacher_name=teacher.card.architecture,
            imgsz=imgsz,
            images=len(records),
            bytes=file.stat().st_size,
            sha256=sha256_file(file),
        )
        write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


class OriginalAnswers:
    """Answers to original images, opened for training.

    Attributes:
        folder: The artifact.
        manifest: What they are about.
        soft_boxes: The teacher's boxes.
    """

    def __init__(self, folder: Path) -> None:
        """Open the artifact and check it against its digest.

        Args:
            folder: What :func:`build_originals` made.

        Raises:
            InputError: The folder holds no such answers, or they are damaged.
        """
        self.folder = folder
        path = folder / MANIFEST_NAME
        try:
            self.manifest = OriginalsManifest.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise InputError(path, "is not a manifest of a teacher's answers", "Build the cache again") from error
        file = folder / _ANSWERS_NAME
        if not file.is_file() or sha256_file(file) != self.manifest.sha256:
            raise InputError(file, "is missing or differs from its digest", "Build the cache again")
        tensors = load_file(file)
        sizes = tensors["offsets"].diff().tolist()
        boxes, scores = (torch.split(tensors[name], sizes) for name in ("boxes", "scores"))
        self.soft_boxes = SoftBoxes([part.numpy() for part in boxes], list(scores))


def _soft_boxes(teacher: Teacher, image: np.ndarray, imgsz: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the teacher's boxes, normalised centre x, y, width, height [n, 4], and their class logits [n, nc]."""
    pixels, (placement,) = preprocess([image], imgsz)
    answers = teacher.answer(torch.from_numpy(pixels).to(teacher.device))
    corners = teacher.decode(answers)[0]
    logits = answers.scores[0].T.float()
    scores, classes = logits.sigmoid().max(1)
    found = (scores > _LEAST_SCORE).nonzero().squeeze(1)
    kept = non_maximum_suppression(
        corners[found].cpu().numpy(), scores[found].cpu().numpy(), classes[found].cpu().numpy(), _NMS_IOU, _MOST_BOXES
    )
    chosen = found[torch.from_numpy(kept).to(found.device)]
    boxes = placement.to_image(corners[chosen].cpu().numpy()) / ([placement.width, placement.height] * 2)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.from_numpy(np.concatenate([centre, size], 1)).float(), logits[chosen].half().cpu()
