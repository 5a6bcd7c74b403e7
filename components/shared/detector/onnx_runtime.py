"""ONNX models, run by ONNX Runtime on the CPU."""

import re
from pathlib import Path

import numpy as np
import onnxruntime

from yolo_distill.components.shared.detector.network import Shape, Signature


class OnnxNetwork:
    """A session on the CPU provider."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Errors are raised; what it would print beside them is left out.
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.signature = Signature(
            inputs=[_shape(tensor.shape) for tensor in inputs],
            outputs=[_shape(tensor.shape) for tensor in outputs],
            dtype=_dtype(inputs[0].type),
            metadata=self._session.get_modelmeta().custom_metadata_map,
        )
        self._input, self._output = inputs[0].name, [outputs[0].name]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.network.Network`."""
        fed = batch.astype(self.signature.dtype, copy=False)
        return np.asarray(self._session.run(self._output, {self._input: fed})[0], np.float32)


def _shape(declared: list[int | str | None]) -> Shape:
    # A length that is free has a name or nothing instead of a number.
    return tuple(length if isinstance(length, int) else None for length in declared)


def _dtype(declared: str) -> str:
    """Return numpy's name for a type such as ``tensor(float16)``."""
    element = re.sub(r"tensor\((\w+)\)", r"\1", declared)
    return {"float": "float32", "double": "float64"}.get(element, element)
