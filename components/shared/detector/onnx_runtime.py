"""ONNX models, run by ONNX Runtime on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime

from yolo_distill.components.shared.model_card import ModelCard


class OnnxDetector:
    """A session on the CPU provider."""

    def __init__(self, path: Path, card: ModelCard, threads: int) -> None:
        self.classes = card.classes
        self.imgsz = card.imgsz
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.Detector`."""
        # A dynamic dimension has a name instead of a number.
        if self._input.shape[0] == 1 and len(batch) > 1:
            return np.concatenate([self.infer(image[None]) for image in batch])
        return np.asarray(self._session.run(None, {self._input.name: batch})[0])
