"""Labels as every format's reader hands them on, and the checks that all of them share."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.prepare_data.findings import Findings, Kind

# Class index, then x1, y1, x2, y2 as fractions of the image's width and height.
Box = tuple[int, float, float, float, float]

# A millionth of the image's side: what the label files can express.
_RESOLUTION = 1e-6
# A box that has less than half of its area inside the image was not meant for this image.
_LEAST_INSIDE = 0.5


@dataclass(frozen=True)
class SourceImage:
    """An image and its labels as the source has them.

    Attributes:
        file: Path relative to the source's folder.
        split: The split the source puts it in, or ``None``.
        boxes: Its labels after :func:`checked_boxes`, or ``None`` when nobody has labelled it.
        size: Width and height in pixels that the labels were made for, where they say so.
    """

    file: str
    split: Split | None
    boxes: list[Box] | None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class SourceDataset:
    """What a format's reader found.

    Attributes:
        format: The format's name.
        classes: Class names by class index.
        images: Every image.
    """

    format: str
    classes: list[str]
    images: list[SourceImage]


def checked_boxes(rows: Iterable[tuple[str, Box]], file: str, classes: int, findings: Findings) -> list[Box]:
    """Return the boxes that can be trained on, cut to the image.

    Args:
        rows: Each box with its place in the label file.
        file: The label file, for the report.
        classes: Number of classes.
        findings: Takes what is wrong with the others.
    """
    boxes: list[Box] = []
    seen = set()
    for place, (category, *corners) in rows:
        if not all(map(math.isfinite, corners)):
            findings.add(Kind.MALFORMED_BOX, file, "coordinates are not finite numbers", place)
            continue
        if not 0 <= category < classes:
            findings.add(Kind.UNKNOWN_CLASS, file, f"class {category} is out of range 0..{classes - 1}", place)
            continue
        x1, y1, x2, y2 = corners
        if x2 < x1 or y2 < y1:
            findings.add(Kind.MALFORMED_BOX, file, "width or height is negative", place)
            continue
        if x2 - x1 < _RESOLUTION or y2 - y1 < _RESOLUTION:
            findings.add(Kind.EMPTY_BOX, file, place=place)
            continue
        cut = [min(max(value, 0.0), 1.0) for value in corners]
        inside = (cut[2] - cut[0]) * (cut[3] - cut[1]) / ((x2 - x1) * (y2 - y1))
        if inside < _LEAST_INSIDE:
            outside = "mostly" if inside > 0 else "altogether"
            findings.add(Kind.OUTSIDE_BOX, file, f"the box lies {outside} outside the image", place)
            continue
        # Rounding in the label file alone is not worth a line.
        if max(abs(a - b) for a, b in zip(corners, cut, strict=True)) > 10 * _RESOLUTION:
            findings.add(Kind.CLIPPED_BOX, file, place=place)
        key = (category, *(round(value / _RESOLUTION) for value in cut))
        if key in seen:
            findings.add(Kind.DUPLICATE_BOX, file, place=place)
            continue
        seen.add(key)
        boxes.append((category, cut[0], cut[1], cut[2], cut[3]))
    return boxes


def yolo_text(boxes: Iterable[Box]) -> str:
    """Return boxes as the lines of a YOLO label file."""
    return "".join(
        f"{category} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"
        for category, x1, y1, x2, y2 in boxes
    )
