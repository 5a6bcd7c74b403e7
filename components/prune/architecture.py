"""The widths of a YOLOv8 network, and the model YAML that spells them out.

Ultralytics rebuilds a network from its model YAML whenever it trains or resumes, so that a network which no YAML
describes would lose its shape. What pruning may choose is therefore what a YAML can say: the output width of each
layer and the hidden width of each C2f. All other widths follow from these by ultralytics' own rules.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.nn.modules import SPPF, C2f, Concat, Conv, Detect
from ultralytics.nn.tasks import DetectionModel, parse_model

from yolo_distill.components.shared.errors import InputError

# A model YAML rounds output widths up to a multiple of this, which suits vector units, too.
WIDTH_STEP = 8

_LAYERS = {Conv, C2f, SPPF, nn.Upsample, Concat, Detect}
# What scales the widths of a stock YAML; explicit widths are final.
_SCALING = {"scales", "scale", "depth_multiple", "width_multiple"}


class Place(NamedTuple):
    """A width that a model YAML states.

    Attributes:
        layer: Index of the layer.
        part: The layer's output, or the hidden channels of a C2f.
    """

    layer: int
    part: Literal["output", "hidden"]


def require_prunable(subject: object, network: DetectionModel) -> None:
    """Refuse a network that is not made of YOLOv8's layers.

    Raises:
        InputError: The head is not Detect or is end-to-end, a layer is of another kind, batch norms are fused, or
            something is narrower than its model YAML says, which that YAML cannot express.
    """
    head = network.model[-1]
    if type(head) is not Detect or hasattr(head, "one2one_cv2"):
        kind = "an end-to-end head" if type(head) is Detect else type(head).__name__
        raise InputError(subject, f"ends in {kind}, not in YOLOv8's Detect", "Give a YOLOv8 detection model")
    foreign = sorted({type(layer).__name__ for layer in network.model if type(layer) not in _LAYERS})
    if foreign:
        raise InputError(subject, f"has layers that cannot be pruned: {', '.join(foreign)}", "Give a YOLOv8 model")
    if network.is_fused():
        raise InputError(subject, "has its batch norms fused", "Give the model as it was trained")
    stated = convolutions(skeleton(explicit_yaml(network, stated_widths(network))))
    # Ultralytics keeps the class branch of a checkpoint when its number of classes changes.
    narrow = [
        name for name, layer in convolutions(network.model).items() if layer.out_channels < stated[name].out_channels
    ]
    if narrow:
        raise InputError(
            subject,
            f"is narrower than its model YAML says, in {narrow[0]} and {len(narrow) - 1} more",
            "Train it from its model YAML, not from a checkpoint with fewer classes",
        )


def stated_widths(network: DetectionModel) -> dict[Place, int]:
    """Return the widths of a network that its model YAML may state."""
    widths = {}
    for index, layer in enumerate(network.model):
        if isinstance(layer, Conv):
            widths[Place(index, "output")] = layer.conv.out_channels
        elif isinstance(layer, C2f | SPPF):
            widths[Place(index, "output")] = layer.cv2.conv.out_channels
        if isinstance(layer, C2f):
            widths[Place(index, "hidden")] = layer.c
    return widths


def width_steps(network: DetectionModel) -> dict[Place, int]:
    """Return which multiples each width shall be, so that all convolutions have multiples of :data:`WIDTH_STEP`."""
    steps = dict.fromkeys(stated_widths(network), WIDTH_STEP)
    for index, layer in enumerate(network.model):
        before = Place(index - 1, "output")
        # An SPPF is half as wide inside as what it is fed.
        if isinstance(layer, SPPF) and before in steps:
            steps[before] = 2 * WIDTH_STEP
    return steps


def explicit_yaml(network: DetectionModel, widths: Mapping[Place, int]) -> dict[str, Any]:
    """Write a network's model YAML with every width and depth as it is, without scaling.

    Args:
        network: A network that :func:`require_prunable` accepts.
        widths: Every width to state; output widths are multiples of :data:`WIDTH_STEP`.

    Returns:
        The YAML's content, from which ultralytics builds exactly these widths.
    """
    described = {name: deepcopy(value) for name, value in network.yaml.items() if name not in _SCALING}
    rows = described["backbone"] + described["head"]
    for index, (row, layer) in enumerate(zip(rows, network.model, strict=True)):
        output = widths.get(Place(index, "output"))
        if isinstance(layer, C2f):
            # Half a channel more and rounded, because ultralytics takes the integer part of width times ratio.
            ratio = round((widths[Place(index, "hidden")] + 0.5) / widths[Place(index, "output")], 4)
            row[1:] = [len(layer.m), "C2f", [output, layer.m[0].add, 1, ratio]]
        elif output is not None:
            row[3][0] = output
    return described


def skeleton(described: Mapping[str, Any]) -> nn.Sequential:
    """Return the layers of a model YAML without weights, to read their shapes."""
    with torch.device("meta"):
        layers: nn.Sequential = parse_model(deepcopy(dict(described)), described["channels"], verbose=False)[0]
    return layers


def build(described: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> DetectionModel:
    """Build a stock network from a model YAML and weights that fit it exactly.

    Raises:
        RuntimeError: A weight is missing, is left over or has another shape.
    """
    network = DetectionModel(deepcopy(dict(described)), ch=described["channels"], verbose=False)
    network.load_state_dict(weights, strict=True)
    return network.eval()


def convolutions(layers: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions of a network's layers by name, without the fixed one that decodes boxes."""
    named = {name: layer for name, layer in layers.named_modules() if isinstance(layer, nn.Conv2d)}
    return {name: layer for name, layer in named.items() if not name.endswith("dfl.conv")}


def convolved_positions(network: DetectionModel, imgsz: int) -> dict[str, int]:
    """Return at how many positions of an image each convolution is evaluated.

    Args:
        network: A network in evaluation mode.
        imgsz: Side of the square input in pixels.

    Returns:
        Output height times width by the convolution's name in ``network.model``.
    """
    positions: dict[str, int] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: positions.update({name: out.shape[2:].numel()}))
        for name, layer in convolutions(network.model).items()
    ]
    with torch.inference_mode():
        network(torch.zeros(1, network.yaml["channels"], imgsz, imgsz))
    for hook in hooks:
        hook.remove()
    return positions


def count_flops(layers: nn.Module, positions: Mapping[str, int]) -> int:
    """Count the floating point operations of all convolutions for one image, a multiply-add as two."""
    return sum(2 * layer.weight.numel() * positions[name] for name, layer in convolutions(layers).items())


def count_parameters(layers: nn.Module) -> int:
    """Count the weights of a network's layers."""
    return sum(weight.numel() for weight in layers.parameters())
