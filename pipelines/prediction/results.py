"""What a prediction leaves: annotated pictures, and every detection as a line of JSON."""

import colorsys
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from yolo_distill.components.shared.detector import Detections
from yolo_distill.components.shared.drawing import Colour, draw_box
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_bytes
from yolo_distill.pipelines.prediction.sources import ImageSource, VideoSource

RESULTS_NAME = "detections.jsonl"

_JPEG_QUALITY = 92
# The formats that are kept; a picture in another one gets a further suffix.
_KEPT_SUFFIXES = {".jpg", ".jpeg", ".png"}
# Image pixels for each pixel of a line's width.
_PIXELS_PER_WIDTH = 320
# Steps around the colour circle, which are first taken bright and then dark; neighbouring classes lie far apart.
_HUES, _STRIDE = 12, 5


class FoundObject(BaseModel):
    """One detection.

    Attributes:
        label: Class name.
        class_index: Class index.
        score: 0..1.
        box: Corners x1, y1, x2, y2 in pixels of the image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    class_index: int
    score: float
    box: tuple[float, float, float, float]


class PictureResult(BaseModel):
    """One line of the results.

    Attributes:
        source: The image's path relative to the folder that was given, or the video's name.
        frame: Number of the video's frame, from 0; ``None`` for an image.
        width: Pixels.
        height: Pixels.
        objects: What was found, best first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    frame: int | None
    width: int
    height: int
    objects: list[FoundObject]


class ImageWriter:
    """Writes every annotated image into a file of its own."""

    def __init__(self, source: ImageSource, output: Path) -> None:
        """Prepare to write.

        Raises:
            InputError: An image would overwrite one of the source's.
        """
        self._output = output
        if output.resolve() == source.root.resolve():
            raise InputError(f"--output {output}", "is the folder of the images themselves", "Choose another folder")

    def write(self, name: str, pixels: np.ndarray) -> None:
        """Write one image."""
        kept = Path(name).suffix.lower() in _KEPT_SUFFIXES
        target = self._output / (name if kept else f"{name}.jpg")
        settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if target.suffix.lower() != ".png" else []
        _, encoded = cv2.imencode(target.suffix, pixels, settings)
        write_bytes(target, encoded.tobytes())

    def close(self) -> None:
        """Do nothing: every image is complete."""


class VideoWriter:
    """Writes annotated frames into an MP4 file, which takes its name when it is complete."""

    def __init__(self, source: VideoSource, output: Path) -> None:
        """Prepare to write.

        Raises:
            InputError: The video would overwrite the source.
        """
        self._target = output / f"{Path(source.name).stem if source.path else source.name.replace(' ', '-')}.mp4"
        if source.path and self._target.resolve() == source.path.resolve():
            raise InputError(f"--output {output}", "is the folder of the video itself", "Choose another folder")
        self._partial = self._target.with_name(f".{self._target.stem}.partial-{os.getpid()}.mp4")
        self._rate = source.rate
        self._size: tuple[int, int] | None = None
        self._writer = cv2.VideoWriter()

    def write(self, name: str, pixels: np.ndarray) -> None:
        """Append one frame.

        Raises:
            InputError: The file cannot be written.
        """
        if self._size is None:
            self._size = (pixels.shape[1], pixels.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            if not self._writer.open(str(self._partial), cv2.CAP_FFMPEG, codec, self._rate, self._size):
                raise InputError(self._target, "cannot be written as a video", "Choose another output folder")
        # The writer would drop a frame of another size without a word.
        same = (pixels.shape[1], pixels.shape[0]) == self._size
        self._writer.write(pixels if same else cv2.resize(pixels, self._size))

    def close(self) -> None:
        """Complete the file, however many frames it has."""
        self._writer.release()
        if self._partial.exists():
            self._partial.replace(self._target)


class ResultsFile:
    """Writes one line a picture; the file takes its name when it is closed."""

    def __init__(self, output: Path) -> None:
        self._target = output / RESULTS_NAME
        self._partial = self._target.with_name(f"{RESULTS_NAME}.partial-{os.getpid()}")
        self._file: TextIO = self._partial.open("w", encoding="utf-8")

    def write(self, result: PictureResult) -> None:
        """Append a line."""
        self._file.write(result.model_dump_json() + "\n")

    def close(self) -> None:
        """Complete the file, however many lines it has."""
        self._file.close()
        self._partial.replace(self._target)


def describe(
    source: str, frame: int | None, pixels: np.ndarray, found: Detections, classes: Sequence[str]
) -> PictureResult:
    """Return the line of the results for a picture."""
    height, width = pixels.shape[:2]
    rows = zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return PictureResult(
        source=source,
        frame=frame,
        width=width,
        height=height,
        objects=[
            FoundObject(label=classes[index], class_index=index, score=round(score, 4), box=[round(x, 2) for x in box])
            for index, score, box in rows
        ],
    )


def annotate(pixels: np.ndarray, found: Detections, classes: Sequence[str]) -> None:
    """Draw detections into an image, the best one on top.

    Args:
        pixels: BGR, uint8 [height, width, 3]; drawn into.
        found: The detections.
        classes: Class names by class index.
    """
    width = max(round(min(pixels.shape[:2]) / _PIXELS_PER_WIDTH), 1)
    letters = max(0.2 + 0.25 * width, 0.4)
    for index, score, box in list(zip(found.classes.tolist(), found.scores, found.boxes, strict=True))[::-1]:
        draw_box(pixels, box, f"{classes[index]} {score:.2f}", class_colour(index), width, letters)


@cache
def class_colour(index: int) -> Colour:
    """Return a class's colour, the same in every picture."""
    hue, dark = index * _STRIDE % _HUES / _HUES, index // _HUES % 2
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.55 if dark else 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)
