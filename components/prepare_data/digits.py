"""The embedded default data set: scans of real handwriting, composed into scenes by a seeded generator.

The scans are the 1,797 handwritten digits that scikit-learn carries (8x8 pixels each), so nothing is downloaded. Each
scan is used in one split only: a detector is never asked about handwriting that it was trained on.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from yolo_distill.components.prepare_data.dataset import SPLITS, Split
from yolo_distill.components.shared.errors import InputError

DIGITS = "digits"
# Part of the source's digest: raise it whenever a change alters any pixel or label.
GENERATOR_VERSION = 2
CLASSES = [str(digit) for digit in range(10)]

Image = NDArray[np.float32]

# The scene that the lengths below are given for; they grow and shrink with the scene.
_REFERENCE_SIZE = 192
_DIGIT_HEIGHTS = (22.0, 70.0)
_DIGIT_COUNTS = (3, 7)
# No more than this share of a digit may lie under or over another one's box.
_LARGEST_OVERLAP = 0.25
_JPEG_QUALITY = 92


class DigitsSettings(BaseModel):
    """How many scenes of which size are made.

    Attributes:
        train: Scenes in the training split.
        val: Scenes in the validation split.
        test: Scenes in the test split; 0 for none.
        size: Side of the square scenes in pixels.
        seed: Seed of everything that is drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int = Field(default=480, ge=2, le=100_000)
    val: int = Field(default=160, ge=1, le=100_000)
    test: int = Field(default=160, ge=0, le=100_000)
    size: int = Field(default=_REFERENCE_SIZE, ge=96, le=2048)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @classmethod
    def parse(cls, source: str, seed: int) -> "DigitsSettings":
        """Read a source string.

        Args:
            source: ``digits``, or ``digits:`` with any of the fields, as in ``digits:train=48,val=16,size=160``.
            seed: The seed where the source names none.

        Raises:
            InputError: A setting is unknown, given twice, not a whole number or out of range.
        """
        remedy = (
            f"Write {DIGITS}, or {DIGITS}: with any of {', '.join(cls.model_fields)}, as in {DIGITS}:train=48,val=16"
        )
        values: dict[str, str] = {}
        for item in filter(None, source.removeprefix(DIGITS).removeprefix(":").split(",")):
            name, equals, value = (part.strip() for part in item.partition("="))
            if not equals or name in values:
                raise InputError(
                    source, f"{item.strip()!r} is given twice" if equals else f"{item!r} has no value", remedy
                )
            values[name] = value
        try:
            return cls.model_validate({"seed": seed, **values})
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InputError(source, problems, remedy) from error


@dataclass(frozen=True)
class Scene:
    """A picture and what is written on it.

    Attributes:
        pixels: BGR, uint8 [size, size, 3].
        boxes: Corner coordinates x1, y1, x2, y2 in pixels, tight around the ink, float64 [n, 4].
        classes: The digits, int64 [n].
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]


def is_digits(source: str) -> bool:
    """Whether a source string names the embedded data set."""
    return source == DIGITS or source.startswith(f"{DIGITS}:")


def compose(settings: DigitsSettings, split: Split, number: int) -> Scene:
    """Make a scene, the same bit for bit each time.

    It depends on the seed and the size only, so a longer data set begins with a shorter one.

    Args:
        settings: Size and seed.
        split: The split whose scans are used.
        number: Which scene of the split, from 0.
    """
    rng = np.random.default_rng([GENERATOR_VERSION, settings.seed, SPLITS.index(split), number])
    return _compose(_scans(split), settings.size, rng)


def encode(scene: Scene) -> bytes:
    """Return a scene as a JPEG file."""
    _, data = cv2.imencode(".jpg", scene.pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data.tobytes()


@cache
def _scans(split: Split) -> list[NDArray[np.float32]]:
    """Return a split's scans by digit, float32 [n, 8, 8] in 0..1 each."""
    images, digits = load_digits(return_X_y=True)
    numbers = np.arange(len(digits))
    train, rest = train_test_split(numbers, test_size=0.4, random_state=0, stratify=digits)
    val, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=digits[rest])
    chosen = {"train": train, "val": val, "test": test}[split]
    pixels = (images[chosen] / 16).astype(np.float32).reshape(-1, 8, 8)
    return [pixels[digits[chosen] == digit] for digit in range(10)]


def _compose(scans: list[NDArray[np.float32]], size: int, rng: np.random.Generator) -> Scene:
    scale = size / _REFERENCE_SIZE
    picture = _background(size, rng)
    for _ in range(rng.integers(3, 8)):
        _stroke(picture, scale, rng)
    for _ in range(rng.integers(1, 6)):
        _fragment(picture, scans, scale, rng)

    boxes: list[NDArray[np.float64]] = []
    classes: list[int] = []
    for _ in range(rng.integers(_DIGIT_COUNTS[0], _DIGIT_COUNTS[1] + 1)):
        digit = int(rng.integers(10))
        height = scale * _log_uniform(*_DIGIT_HEIGHTS, rng)
        glyph = _glyph(scans[digit][rng.integers(len(scans[digit]))], height, rng)
        place = _free_place(glyph.shape, size, boxes, rng)
        if place is not None:
            x, y = place
            _paint(picture, glyph, x, y, rng)
            boxes.append(_ink_box(glyph) + np.tile((x, y), 2))
            classes.append(digit)
    return Scene(_photograph(picture, scale, rng), np.array(boxes), np.array(classes, dtype=np.int64))


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _background(size: int, rng: np.random.Generator) -> Image:
    """Return a coloured paper with stains of several sizes, float32 [size, size, 3] in 0..255."""
    picture = np.full((size, size, 3), rng.uniform(40, 215), np.float32) + rng.uniform(-25, 25, 3).astype(np.float32)
    for cells, strength in ((3, 20), (8, 12), (24, 6)):
        grid = rng.normal(0, rng.uniform(0.2, 1) * strength, (cells, cells, 3)).astype(np.float32)
        grid = 0.7 * grid.mean(axis=2, keepdims=True) + 0.3 * grid
        picture += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.35:
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 24) * size / _REFERENCE_SIZE
        y, x = np.mgrid[:size, :size].astype(np.float32)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        picture += (rng.uniform(4, 16) * wave[..., None]).astype(np.float32)
    return picture


def _stroke(picture: Image, scale: float, rng: np.random.Generator) -> None:
    """Draw a pen stroke that belongs to no digit: a line, a bow or a loop."""
    size = len(picture)
    layer = np.zeros((size, size), np.uint8)
    thickness = max(1, round(scale * rng.uniform(1, 5)))
    centre = rng.integers(0, size, 2)
    length = scale * rng.uniform(10, 60)
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:
        end = centre + length * np.array((np.cos(angle), np.sin(angle)))
        cv2.line(layer, centre.tolist(), end.astype(int).tolist(), 255, thickness, cv2.LINE_AA)
    else:
        axes = (max(2, round(length / 3)), max(2, round(length / 3 * rng.uniform(0.3, 1))))
        start = rng.uniform(0, 360)
        sweep = rng.uniform(60, 220)
        cv2.ellipse(
            layer, centre.tolist(), axes, float(np.degrees(angle)), start, start + sweep, 255, thickness, cv2.LINE_AA
        )
    _paint(picture, (layer / 255).astype(np.float32), 0, 0, rng)


def _fragment(picture: Image, scans: list[NDArray[np.float32]], scale: float, rng: np.random.Generator) -> None:
    """Paint a piece of a digit, too small to tell which it was."""
    digit = rng.integers(10)
    glyph = _glyph(scans[digit][rng.integers(len(scans[digit]))], scale * rng.uniform(25, 60), rng)
    height, width = np.array(glyph.shape) // 3 + 1
    top, left = rng.integers(0, glyph.shape[0] - height), rng.integers(0, glyph.shape[1] - width)
    piece = glyph[top : top + height, left : left + width]
    x, y = rng.integers(0, picture.shape[1] - width), rng.integers(0, picture.shape[0] - height)
    _paint(picture, piece, int(x), int(y), rng)


def _glyph(scan: NDArray[np.float32], height: float, rng: np.random.Generator) -> Image:
    """Return a scan's ink enlarged, turned and slanted.

    Args:
        scan: float32 [8, 8] in 0..1.
        height: Height of the upright scan in pixels.
        rng: Source of randomness.

    Returns:
        Opacity in 0..1, cut to the ink with one pixel of margin, float32 [h, w].
    """
    # A border keeps the interpolation from smearing ink that touches the scan's edge.
    padded = np.pad(scan, 2)
    factor = height / len(scan)
    angle = np.radians(rng.normal(0, 11))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[rng.uniform(0.75, 1.2), rng.uniform(-0.25, 0.25)], [0, 1]])
    matrix = factor * turn @ slant
    side = int(np.ceil(2 * height)) + 4
    middle = (len(padded) - 1) / 2
    shift = (side - 1) / 2 - matrix @ (middle, middle)
    warped = cv2.warpAffine(padded, np.column_stack([matrix, shift]), (side, side), flags=cv2.INTER_CUBIC)
    warped = cv2.GaussianBlur(warped, (0, 0), 0.3 * factor)
    edge = warped.max() * rng.uniform(0.42, 0.58)
    opacity: Image = np.clip((warped - edge) / 0.2 + 0.5, 0, 1).astype(np.float32)
    x1, y1, x2, y2 = _ink_box(opacity).astype(int)
    return opacity[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1]


def _ink_box(opacity: Image) -> NDArray[np.float64]:
    """Return the box around what is at least half opaque: x1, y1, x2, y2 in pixels."""
    rows, columns = (np.flatnonzero((opacity >= 0.5).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def _free_place(
    shape: tuple[int, ...], size: int, boxes: list[NDArray[np.float64]], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Return where a glyph covers little of the digits already there, or ``None`` when no place was found."""
    height, width = shape
    if height >= size or width >= size:
        return None
    for _ in range(20):
        x, y = int(rng.integers(0, size - width)), int(rng.integers(0, size - height))
        if all(_overlap(np.array([x, y, x + width, y + height]), box) <= _LARGEST_OVERLAP for box in boxes):
            return x, y
    return None


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the common area of two boxes as a share of the smaller one."""
    corners = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    areas = [np.prod(box[2:] - box[:2]) for box in (first, second)]
    return float(np.prod(corners.clip(min=0)) / min(areas))


def _paint(picture: Image, opacity: Image, x: int, y: int, rng: np.random.Generator) -> None:
    """Lay ink over the picture: darker than what is there or, often where that is dark, lighter."""
    height, width = opacity.shape
    area = picture[y : y + height, x : x + width]
    brightness = float((area * opacity[..., None]).sum() / (3 * opacity.sum() + 1e-6))
    contrast = rng.uniform(55, 130)
    lighter = rng.random() < (255 - brightness) / 255
    colour = brightness + (contrast if lighter else -contrast) + rng.uniform(-18, 18, 3)
    strength = opacity[..., None] * np.float32(rng.uniform(0.8, 1))
    area += strength * (colour.astype(np.float32) - area)


def _photograph(picture: Image, scale: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add uneven light, blur and noise, and sometimes turn the picture into its negative."""
    size = len(picture)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.mgrid[:size, :size] / size - 0.5).astype(np.float32)
    light = 1 + rng.uniform(0, 0.5) * (x * np.cos(angle) + y * np.sin(angle))
    picture = picture * light[..., None].astype(np.float32)
    picture = cv2.GaussianBlur(picture, (0, 0), scale * rng.uniform(0.2, 1.0))
    if rng.random() < 0.2:
        picture = 255 - picture
    picture += rng.normal(0, rng.uniform(2, 9), picture.shape).astype(np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
