"""OpenVINO models on the CPU."""

from pathlib import Path

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import numpy as np
import openvino
from openvino import properties

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard


class OpenVinoDetector:
    """A compiled model and one request, tuned for latency."""

    def __init__(self, path: Path, card: ModelCard, threads: int) -> None:
        self.classes = card.classes
        self.imgsz = card.imgsz
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise InputError(
                path, f"has no weights beside it, {weights.name} is missing", "Copy .xml and .bin together"
            )
        core = openvino.Core()
        model = core.read_model(path)
        self._static = model.input().get_partial_shape()[0].is_static
        settings = {
            properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
            # A CPU with bf16 would otherwise run float layers in it, which moves boxes by whole pixels.
            properties.hint.inference_precision: openvino.Type.f32,
            properties.inference_num_threads: threads,
        }
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.Detector`."""
        if self._static and len(batch) > 1:
            return np.concatenate([self.infer(image[None]) for image in batch])
        # The request keeps its output buffer, so the answer is copied out of it.
        return np.array(self._request.infer({0: batch}, share_inputs=True)[0])
