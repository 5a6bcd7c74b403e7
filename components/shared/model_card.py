"""The model artifact: a folder with one model and ``model.json``, the card that says what it is.

Every step that makes a model writes such a folder and every step that takes one opens it here. The card carries the
digests of the model's files, which are checked whenever the folder is opened.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file, write_text
from yolo_distill.components.shared.records import read_record

CARD_NAME = "model.json"

ModelFormat = Literal["pytorch", "onnx", "openvino", "ncnn", "tensorrt"]
Precision = Literal["fp32", "fp16", "int8"]

# What a network takes: planes of RGB values, or the letterboxed image as OpenCV has it.
PLANES = "letterbox to imgsz x imgsz, pad 114, RGB, NCHW float32 in 0..1"
PIXELS = "letterbox to imgsz x imgsz, pad 114, BGR, NHWC uint8 in 0..255"


class ModelCard(BaseModel):
    """What a model is, where it comes from and how to run it.

    Attributes:
        name: How the model is called in tables and lineage, such as ``teacher`` or ``distilled``.
        format: The runtime that opens ``file``.
        precision: Numeric precision of the weights.
        file: The file to open, relative to the folder (``.pt``, ``.onnx``, ``.xml``, ``.param`` or ``.engine``).
        digests: SHA-256 of every model file, by name relative to the folder.
        imgsz: Side of the square network input in pixels, a multiple of 32.
        classes: Class names by class index.
        architecture: Model YAML or checkpoint that it was built from, such as ``yolov8n.yaml``.
        parameters: Number of weights of the unfused network.
        gflops: Cost of one image at ``imgsz`` in 10^9 floating point operations.
        preprocessing: How an image becomes the network's input: :data:`PLANES` or :data:`PIXELS`.
        postprocessing: How the network's output becomes boxes.
        lineage: Digests and settings of what it was made from: ``dataset``, ``teacher``, ``parent``, ``recipe``, ...
        licence: The licence of the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    format: ModelFormat
    precision: Precision = "fp32"
    file: str
    digests: dict[str, str]
    imgsz: int
    classes: list[str]
    architecture: str
    parameters: int
    gflops: float
    preprocessing: str = PLANES
    postprocessing: str = (
        "output 1x(4+nc)xN: box centre x, y, width, height in pixels, class scores; then class-wise NMS"
    )
    lineage: dict[str, str] = Field(default_factory=dict)
    licence: str = "AGPL-3.0"

    @property
    def digest(self) -> str:
        """SHA-256 that stands for the model: its only file's, or one over the digests of all of its files."""
        if len(self.digests) == 1:
            return self.digests[self.file]
        return hashlib.sha256(json.dumps(self.digests, sort_keys=True).encode()).hexdigest()


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a model's card beside its files."""
    write_text(folder / CARD_NAME, card.model_dump_json(indent=2) + "\n")


def digest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a model folder except its card, by relative name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CARD_NAME)
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in files}


def read_card(folder: Path) -> ModelCard:
    """Read a model artifact's card and check its files against the digests.

    Args:
        folder: The model artifact.

    Returns:
        The card; every file it names exists in the folder and has the recorded content.

    Raises:
        InputError: The folder holds no card, the card is not valid, or a file is missing or was changed.
    """
    path = folder / CARD_NAME
    card = read_record(
        folder,
        CARD_NAME,
        ModelCard,
        artifact="a model artifact",
        record="model card",
        origin="Give a folder made by a model step",
        again="Make the model again",
    )
    if card.file not in card.digests:
        raise InputError(path, f"lists no digest for {card.file!r}", "Make the model again")
    for name, digest in card.digests.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InputError(path, f"names a file outside its folder: {name!r}", "Make the model again")
        if not file.is_file() or sha256_file(file) != digest:
            raise InputError(file, "is missing or differs from the digest in its model card", "Make the model again")
    return card
