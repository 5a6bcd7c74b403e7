"""Finding the part of a detection network that must stay in floating point."""

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import numpy as np
import openvino


def decoding_tail(model: openvino.Model) -> list[str]:
    """Return the operations that turn predictions into boxes and scores.

    These are all that follow the head's last learned convolutions: DFL's softmax and expectation, the distances'
    addition to the anchor points, the sigmoid of the scores, reshapes and concatenations. One integer scale for both
    boxes (up to hundreds of pixels) and scores (up to 1) would round every score to zero.

    Args:
        model: A YOLO detection network with one output.

    Returns:
        Names of operations, sorted.
    """
    tail: set[str] = set()
    pending = _inputs(model.output(0).get_node())
    while pending:
        node = pending.pop()
        name = node.get_friendly_name()
        if name not in tail and node.get_type_name() != "Constant" and not _is_prediction(node):
            tail.add(name)
            pending += _inputs(node)
    return sorted(tail)


def _is_prediction(node: openvino.Node) -> bool:
    """Whether a node is a learned convolution, or the addition of its bias."""
    if node.get_type_name() == "Add":
        return any(map(is_learned_convolution, _inputs(node)))
    return is_learned_convolution(node)


def is_learned_convolution(node: openvino.Node) -> bool:
    """Whether a node is a convolution other than DFL's, whose fixed weights 0, 1, 2, ... compute an expectation."""
    if node.get_type_name() not in ("Convolution", "GroupConvolution"):
        return False
    weights = _inputs(node)[1]
    if weights.get_type_name() != "Constant":
        return True
    values = weights.get_data().ravel()
    return not np.array_equal(values, np.arange(values.size))


def _inputs(node: openvino.Node) -> list[openvino.Node]:
    return [port.get_node() for port in node.input_values()]
