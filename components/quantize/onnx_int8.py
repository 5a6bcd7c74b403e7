"""8-bit ONNX models, by ONNX Runtime's static quantisation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from yolo_distill.components.shared.errors import InputError


def quantize_onnx(source: Path, target: Path, inputs: Iterator[np.ndarray], symmetric: bool = False) -> None:
    """Wrap every convolution but the head's last ones in QuantizeLinear and DequantizeLinear.

    Weights get a scale for each output channel. The head's last convolutions stay in floating point: their outputs are
    distributions and scores, whose rounding would cost most.

    Args:
        source: An FP32 ONNX model.
        target: Where the INT8 model goes.
        inputs: Network inputs to measure activations on.
        symmetric: Whether activations have no zero point and biases stay in float, which is what TensorRT takes.

    Raises:
        InputError: The source is not a whole ONNX model.
    """
    model = read_onnx(source)
    quantize_static(
        model,
        target,
        _Reader(model.graph.input[0].name, inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=head_tail(model),
        extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
    )


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX model and check that it is whole.

    Raises:
        InputError: It is cut off or not valid.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, onnx and the checker have exceptions of their own, without a common base
        first = str(error).strip().partition("\n")[0]
        raise InputError(path, f"is not a whole ONNX model: {first}", "Export the model again") from error
    return model


def head_tail(model: onnx.ModelProto) -> list[str]:
    """Return the names of the head's last learned convolutions and of all nodes that follow them.

    Found by structure, backwards from the output. DFL's convolution, whose fixed weights 0, 1, 2, ... compute an
    expectation, is not a learned one.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, None] = {}
    pending = [model.graph.output[0].name]
    while pending:
        node = makers.get(pending.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = None
        if node.op_type != "Conv" or _is_expectation(weights.get(node.input[1])):
            pending += node.input
    return list(found)


def _is_expectation(weights: onnx.TensorProto | None) -> bool:
    if weights is None:
        return False
    values = onnx.numpy_helper.to_array(weights).ravel()
    return np.array_equal(values, np.arange(values.size))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, inputs: Iterator[np.ndarray]) -> None:
        self._name, self._inputs = name, inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._inputs, None)
        return None if batch is None else {self._name: batch}
