"""OpenVINO models on the CPU."""

from collections.abc import Mapping
from pathlib import Path

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import numpy as np
import openvino
import yaml
from openvino import properties

from yolo_distill.components.shared.detector.letterbox import to_pixels
from yolo_distill.components.shared.detector.network import Shape, Signature
from yolo_distill.components.shared.errors import InputError

# Ultralytics describes an export in this file beside it.
_METADATA_NAME = "metadata.yaml"
# Where OpenVINO keeps what an ONNX file said when it was converted.
_CONVERTED_FROM = "framework"


class OpenVinoNetwork:
    """A compiled model and one request, tuned for latency."""

    def __init__(self, path: Path, threads: int) -> None:
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise InputError(
                path, f"has no weights beside it, {weights.name} is missing", "Copy .xml and .bin together"
            )
        core = openvino.Core()
        model = core.read_model(path)
        inputs, dtype = [_shape(port) for port in model.inputs], model.inputs[0].get_element_type().to_dtype().name
        # Preprocessing in the graph takes bytes, colours last; the network is told apart by that alone.
        self._takes_pixels = dtype == "uint8" and len(inputs[0]) == 4 and inputs[0][3] == 3
        if self._takes_pixels:
            batch, height, width, colours = inputs[0]
            inputs[0], dtype = (batch, colours, height, width), "float32"
        self.signature = Signature(
            inputs=inputs,
            outputs=[_shape(port) for port in model.outputs],
            dtype=dtype,
            metadata=_metadata(path, model),
        )
        settings = {
            properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
            # A CPU with bf16 would otherwise run float layers in it, which moves boxes by whole pixels.
            properties.hint.inference_precision: openvino.Type.f32,
            properties.inference_num_threads: threads,
        }
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.network.Network`."""
        fed = to_pixels(batch) if self._takes_pixels else batch.astype(self.signature.dtype, copy=False)
        # The request keeps its output buffer, so the answer is copied out of it.
        return np.array(self._request.infer({0: fed}, share_inputs=True)[0], np.float32)


def _shape(port: openvino.Output) -> Shape:
    shape = port.get_partial_shape()
    return tuple(length.get_length() if length.is_static else None for length in shape) if shape.rank.is_static else ()


def _metadata(path: Path, model: openvino.Model) -> Mapping[str, object]:
    beside = path.with_name(_METADATA_NAME)
    if beside.is_file():
        try:
            content = yaml.safe_load(beside.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(
                beside, f"is not valid YAML: {error}", "Mend the file, or export the model again"
            ) from error
        return content if isinstance(content, dict) else {}
    if not model.has_rt_info(_CONVERTED_FROM):
        return {}
    return {name: value.astype(str) for name, value in model.get_rt_info(_CONVERTED_FROM).astype(dict).items()}
