"""ONNX models whose types say in which precision TensorRT has to compute.

TensorRT takes precision from the graph (strong typing, the only way from version 11 on): what is wrapped in
QuantizeLinear and DequantizeLinear runs in INT8, what has 16-bit types runs in those.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from yolo_distill.components.quantize.onnx_int8 import head_tail, quantize_onnx, read_onnx


def write_fp16(source: Path, target: Path) -> None:
    """Turn an FP32 ONNX model into one that computes in 16 bits, up to the head's last convolutions.

    These and the decoding of boxes stay in 32 bits: in 16, a coordinate of a few hundred pixels is off by up to an
    eighth of one. Input and output keep their types.

    Raises:
        InputError: The source is not a whole ONNX model.
    """
    model = read_onnx(source)
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=head_tail(model)), target)


def write_int8(source: Path, target: Path, inputs: Iterator[np.ndarray]) -> None:
    """Turn an FP32 ONNX model into one that TensorRT runs in INT8, without zero points and with biases in float.

    Args:
        source: An FP32 ONNX model.
        target: Where the INT8 model goes.
        inputs: Network inputs to measure activations on.

    Raises:
        InputError: The source is not a whole ONNX model.
    """
    quantize_onnx(source, target, inputs, symmetric=True)
