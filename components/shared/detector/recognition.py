"""Telling a YOLOv8 detector from other networks, by what its file says and by its answer to an image."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from yolo_distill.components.shared.detector.locating import ModelFile
from yolo_distill.components.shared.detector.metadata import Declared
from yolo_distill.components.shared.detector.network import Shape, Signature
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard

_EXPECTED = (
    "one input of shape 1x3xHxW (RGB in 0..1) and one output of shape 1x(4+classes)xN are expected (box centre x, y, "
    "width and height in pixels, then class scores in 0..1, at N anchor points, before non-maximum suppression)"
)
EXPORT_AGAIN = "Give a YOLOv8 detection model, exported without NMS"

# Pixels between the anchor points of a head's levels, which follow one another; most heads have levels 8, 16, 32.
_STRIDES = (4, 8, 16, 32, 64)
# Rounding to 16 bits moves a score at most so far beyond 0..1.
_SCORE_SLACK = 1e-3
# What most anchor points stay below in an empty image.
_BACKGROUND_SCORE = 0.5
# Half of the boxes of an image, at least, have their centre further from its corner than so many pixels.
_LEAST_CENTRE = 2.0


def require_detection(found: ModelFile, signature: Signature, declared: Declared) -> None:
    """Refuse a model whose file says that it is something else than a detector.

    Raises:
        InputError: It was made for another task, or its inputs and outputs are not a detector's.
    """
    if declared.task not in {None, "detect"}:
        raise InputError(found.path, f"is made for the task {declared.task!r}, not for detection", EXPORT_AGAIN)
    image = signature.inputs[0]
    fits = len(signature.inputs) == 1 and len(image) == 4 and image[1] in {3, None}
    if not fits or len(signature.outputs) != 1 or signature.dtype not in {"float32", "float16"}:
        raise _no_detector(
            found.path,
            f"it takes {_shapes(signature.inputs)} ({signature.dtype}) and gives {_shapes(signature.outputs)}",
        )


def input_size(found: ModelFile, shape: Shape, declared: Declared, imgsz: int | None) -> tuple[int | None, int, int]:
    """Choose the size of the network input.

    Args:
        found: The model.
        shape: Its input, [batch, 3, height, width].
        declared: What the model says about itself.
        imgsz: The side in pixels that the user asks for.

    Returns:
        The batch size, ``None`` for any, and height and width in pixels.

    Raises:
        InputError: The model takes no images of the size asked for, or of the size in its card, or leaves the choice.
    """
    batch, _, *fixed = shape
    asked = (imgsz, imgsz) if imgsz else None
    wanted = asked or declared.imgsz
    if None in fixed and not wanted:
        raise InputError(found.path, "takes images of any size and says no usual one", "Choose one with --imgsz")
    sides = [side or choice for side, choice in zip(fixed, wanted or fixed, strict=True)]
    if (asked or found.card) and wanted != tuple(sides):
        raise InputError(
            found.path,
            f"takes images of {_shape(sides)} pixels, not {_shape(wanted or ())}",
            "Leave the size to the model" if asked else "Make the model again",
        )
    height, width = (int(side or 0) for side in sides)
    return batch, height, width


def require_card(path: Path, card: ModelCard, output: np.ndarray) -> list[str]:
    """Refuse a model whose answer does not fit its card.

    Args:
        path: The model file.
        card: Its card.
        output: Its answer to an image.

    Returns:
        The classes.

    Raises:
        InputError: The answer has another shape than the card's classes ask for.
    """
    channels = 4 + len(card.classes)
    if output.ndim != 3 or output.shape[:2] != (1, channels):
        raise InputError(
            path,
            f"is not a detector of {len(card.classes)} classes: an output of shape 1x{channels}xN is expected "
            f"(4 box coordinates and {len(card.classes)} class scores at N anchor points), "
            f"it has {_shape(output.shape)}",
            "Give a detection model and a card that lists its classes",
        )
    return card.classes


def recognise(path: Path, declared: Declared, output: np.ndarray, height: int, width: int) -> tuple[list[str], bool]:
    """Tell a foreign model's classes and the order of its output from its answer to a grey image.

    Args:
        path: The model file.
        declared: What the model says about itself.
        output: Its answer.
        height: Pixels of the network input.
        width: Likewise.

    Returns:
        Class names by class index, and whether the output is [B, N, 4 + classes].

    Raises:
        InputError: The answer is no detector's.
    """
    points = _anchor_points(height, width)
    shapes = [(output, False), (output.swapaxes(1, -1), True)] if output.ndim == 3 else []
    fitting = [(answer, transposed) for answer, transposed in shapes if _fits(answer, declared.classes, points)]
    if not fitting:
        names = f" and names {len(declared.classes)} classes" if declared.classes else ""
        raise _no_detector(path, f"it gives {_shape(output.shape)} for {_shape((height, width))} pixels{names}")
    # Where there are as many channels as anchor points, the scores tell which is which.
    answer, transposed = next((each for each in fitting if _has_scores(each[0])), fitting[0])
    if not _has_scores(answer):
        scores = answer[0, 4:]
        raise _no_detector(
            path,
            f"for an empty image its class scores lie in {scores.min():.3g}..{scores.max():.3g}, with a median up to "
            f"{np.median(scores, axis=1).max():.3g}",
        )
    if not np.median(answer[:, :2]) > _LEAST_CENTRE:
        raise _no_detector(path, "its boxes are not in pixels")
    return declared.classes or [str(index) for index in range(answer.shape[1] - 4)], transposed


def _fits(answer: np.ndarray, classes: list[str] | None, points: set[int]) -> bool:
    _, channels, anchors = answer.shape
    return anchors in points and (channels == 4 + len(classes) if classes else channels > 4)


def _has_scores(answer: np.ndarray) -> bool:
    scores = answer[0, 4:]
    # Angles, objectness and the like are high everywhere. Written so that NaN does not pass.
    return bool(
        scores.min() >= -_SCORE_SLACK
        and scores.max() <= 1 + _SCORE_SLACK
        and np.median(scores, axis=1).max() < _BACKGROUND_SCORE
    )


def _anchor_points(height: int, width: int) -> set[int]:
    """Return how many anchor points a head may have: one in each cell of two or more levels that follow one another."""
    cells = [-(-height // stride) * -(-width // stride) for stride in _STRIDES]
    return {sum(cells[first : last + 1]) for first, last in combinations(range(len(cells)), 2)}


def _no_detector(path: Path, what_it_has: str) -> InputError:
    return InputError(path, f"is not a detector that can be used: {_EXPECTED}; {what_it_has}", EXPORT_AGAIN)


def _shape(shape: Sequence[object]) -> str:
    return "x".join("?" if length is None else str(length) for length in shape)


def _shapes(shapes: Sequence[Shape]) -> str:
    return " and ".join(map(_shape, shapes))
