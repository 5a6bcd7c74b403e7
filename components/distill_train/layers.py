"""Which layers of student and teacher are compared, and what they put out at a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.shared.errors import InputError

_PROBE_SIDE = 64


@dataclass(frozen=True)
class LayerPair:
    """A layer of the student and the layer of the teacher that it is compared with.

    Attributes:
        name: What the pair is called: ``neck0``, ``neck1``, ... for the Detect heads' inputs, else
            ``layer`` and its number.
        student: Number of the student's layer.
        teacher: Number of the teacher's layer, or ``None`` where only its cached answers are known.
        student_channels: Channels of the student's map.
        teacher_channels: Channels of the teacher's map.
    """

    name: str
    student: int
    teacher: int | None
    student_channels: int
    teacher_channels: int

    @property
    def is_neck(self) -> bool:
        """Whether these are inputs of the Detect heads."""
        return self.name.startswith("neck")


def neck_channels(network: DetectionModel) -> list[int]:
    """Return the channels of the Detect head's inputs, by level."""
    return [branch[0].conv.in_channels for branch in network.model[-1].cv2]


def neck_pairs(
    student: DetectionModel, teacher_channels: Sequence[int], teacher: DetectionModel | None = None
) -> list[LayerPair]:
    """Pair the inputs of the Detect heads, level by level.

    Args:
        student: The student.
        teacher_channels: Channels of the teacher's neck features, by level.
        teacher: The teacher, where it is at hand.
    """
    layers = teacher.model[-1].f if teacher is not None else [None] * len(teacher_channels)
    rows = zip(student.model[-1].f, layers, neck_channels(student), teacher_channels, strict=True)
    return [LayerPair(f"neck{level}", *row) for level, row in enumerate(rows)]


def layer_pairs(student: DetectionModel, teacher: DetectionModel, layers: Sequence[int]) -> list[LayerPair]:
    """Pair layers of equal numbers.

    Args:
        student: The student.
        teacher: The teacher.
        layers: Their numbers in both networks.

    Raises:
        InputError: A network has no such layer, it does not put out one feature map, or the sides of the maps differ.
    """
    shapes = [_shapes(network, layers, who) for network, who in ((student, "student"), (teacher, "teacher"))]
    pairs = []
    for layer, ours, theirs in zip(layers, *shapes, strict=True):
        if ours[2:] != theirs[2:]:
            raise InputError(
                f"layer {layer}",
                f"the student's map has {ours[2]}x{ours[3]} positions there, the teacher's has {theirs[2]}x{theirs[3]}",
                "Compare layers of equal stride",
            )
        pairs.append(LayerPair(f"layer{layer}", layer, layer, ours[1], theirs[1]))
    return pairs


class LayerOutputs:
    """Keeps what layers of a network put out in its last forward pass."""

    def __init__(self, network: DetectionModel, layers: Sequence[int]) -> None:
        """Listen to a network.

        Args:
            network: The network.
            layers: Numbers of the layers.
        """
        self._kept: dict[int, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = [
            network.model[layer].register_forward_hook(self._keep(layer)) for layer in set(layers)
        ]

    def __getitem__(self, layer: int) -> torch.Tensor:
        """Return the output of a layer in float32, [B, C, H, W]."""
        return self._kept[layer].float()

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._kept[layer] = output

        return keep


def _shapes(network: DetectionModel, layers: Sequence[int], who: str) -> list[torch.Size]:
    last = len(network.model) - 2
    for layer in layers:
        if layer > last:
            raise InputError(f"layer {layer}", f"does not exist in the {who}", f"Name layers from 0 to {last}")
    outputs = LayerOutputs(network, layers)
    training = network.training
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE, device=device))
        return [outputs[layer].shape for layer in layers]
    finally:
        outputs.close()
        network.train(training)
