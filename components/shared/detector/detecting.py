"""From images to detections: preprocessing, network, postprocessing."""

from collections.abc import Sequence

import cv2
import numpy as np

from yolo_distill.components.shared.detector.detections import Detections, Detector
from yolo_distill.components.shared.detector.letterbox import ImageSize, Placement, height_and_width, letterbox
from yolo_distill.components.shared.detector.nms import non_maximum_suppression


def detect(
    detector: Detector,
    images: Sequence[np.ndarray],
    confidence: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    classes: Sequence[int] | None = None,
) -> list[Detections]:
    """Find objects in images.

    The defaults are those of ultralytics' validation, which wants the long tail of weak detections.

    Args:
        detector: The network.
        images: BGR images of any size, uint8 [height, width, 3]. They run as one batch.
        confidence: Scores at or below it are dropped, 0..1.
        iou: Overlap above which non-maximum suppression drops the worse box, 0..1.
        max_detections: Detections to keep per image.
        classes: Indices of the classes to look for; all by default.

    Returns:
        One result per image.
    """
    if not images:
        return []
    batch, placements = preprocess(images, detector.imgsz)
    return postprocess(detector.infer(batch), placements, confidence, iou, max_detections, classes)


def preprocess(images: Sequence[np.ndarray], imgsz: ImageSize) -> tuple[np.ndarray, list[Placement]]:
    """Make the network's input.

    Args:
        images: BGR images, at least one, uint8 [height, width, 3].
        imgsz: Size of the network input.

    Returns:
        Letterboxed RGB images in 0..1, C-contiguous float32 [B, 3, H, W], and where each image lies in it.
    """
    padded, placements = zip(*(letterbox(image, imgsz) for image in images), strict=True)
    batch = np.empty((len(images), 3, *height_and_width(imgsz)), np.float32)
    # Plane by plane: faster than to transpose and convert the whole.
    for planes, pixels in zip(batch, padded, strict=True):
        for plane, channel in zip(planes[::-1], cv2.split(pixels), strict=True):
            np.divide(channel, np.float32(255), out=plane)
    return batch, list(placements)


def postprocess(
    raw: np.ndarray,
    placements: Sequence[Placement],
    confidence: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    classes: Sequence[int] | None = None,
) -> list[Detections]:
    """Turn the network's output into detections.

    An anchor point counts once for every class whose score is high enough, as in ultralytics' validation.

    Args:
        raw: The network's output, float32 [B, 4 + classes, N].
        placements: Where each image lies in the network input.
        confidence: See :func:`detect`.
        iou: See :func:`detect`.
        max_detections: See :func:`detect`.
        classes: See :func:`detect`.

    Returns:
        One result per image.
    """
    wanted = np.arange(raw.shape[1] - 4) if classes is None else np.unique(np.asarray(classes, np.int64))
    return [
        _postprocess_one(output, placement, confidence, iou, max_detections, wanted)
        for output, placement in zip(raw, placements, strict=True)
    ]


def _postprocess_one(
    output: np.ndarray,
    placement: Placement,
    confidence: float,
    iou: float,
    max_detections: int,
    wanted: np.ndarray,
) -> Detections:
    scored = output[4:] if len(wanted) == len(output) - 4 else output[4 + wanted]
    rows, anchors = np.nonzero(scored > confidence)
    scores, classes = scored[rows, anchors], wanted[rows]
    centre, half = output[:2, anchors].T, output[2:4, anchors].T / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    kept = non_maximum_suppression(boxes, scores, classes, iou, max_detections)
    return Detections(
        boxes=placement.to_image(boxes[kept]).astype(np.float32), scores=scores[kept], classes=classes[kept]
    )
