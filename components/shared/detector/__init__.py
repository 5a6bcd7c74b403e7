"""Detectors: one way to run a model, whichever runtime its format needs.

No runtime is imported before a model of its format is opened.
"""

from yolo_distill.components.shared.detector.detecting import detect, postprocess, preprocess
from yolo_distill.components.shared.detector.detections import Detections, Detector
from yolo_distill.components.shared.detector.images import read_batches, read_image
from yolo_distill.components.shared.detector.letterbox import ImageSize, Placement, letterbox
from yolo_distill.components.shared.detector.opening import open_detector, require_classes

__all__ = [
    "Detections",
    "Detector",
    "ImageSize",
    "Placement",
    "detect",
    "letterbox",
    "open_detector",
    "postprocess",
    "preprocess",
    "read_batches",
    "read_image",
    "require_classes",
]
