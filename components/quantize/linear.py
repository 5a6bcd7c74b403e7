"""Why dynamic quantisation of linear layers is not offered."""

from pathlib import Path

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard

_REMEDY = "Choose nncf, accuracy-aware or onnx-qdq, which quantise convolutions"


def refuse_dynamic_linear(folder: Path, card: ModelCard) -> None:
    """Look at a model's layers and say what PyTorch's dynamic quantisation of ``nn.Linear`` would do to them.

    Args:
        folder: The model artifact, of any format.
        card: Its card.

    Raises:
        InputError: Always; its message says how many linear layers and convolutions the model has.
    """
    linear, convolutions = _layers(folder / card.file, card)
    raise InputError(
        "method dynamic-linear",
        f"quantises nn.Linear layers only, of which {card.architecture} has {linear}, beside {convolutions} "
        f"convolutions: {'nothing would change' if not linear else 'too little would change'}",
        _REMEDY,
    )


def _layers(file: Path, card: ModelCard) -> tuple[int, int]:
    """Return how many linear layers and convolutions a model has."""
    if card.format == "pytorch":
        from yolo_distill.components.shared.detector.pytorch_runtime import load_network

        kinds = [type(module).__name__ for module in load_network(file).modules()]
        return kinds.count("Linear"), kinds.count("Conv2d")
    if card.format == "onnx":
        import onnx

        kinds = [node.op_type for node in onnx.load(file).graph.node]
        return kinds.count("Gemm") + kinds.count("MatMul"), kinds.count("Conv")
    if card.format == "openvino":
        import openvino

        kinds = [node.get_type_name() for node in openvino.Core().read_model(file).get_ops()]
        return kinds.count("MatMul"), kinds.count("Convolution")
    raise InputError(
        "method dynamic-linear", f"cannot look into a model in {card.format} format", "Give the model it was made from"
    )
