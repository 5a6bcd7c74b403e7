"""C2f in a form whose channels can be traced.

C2f computes two halves by one convolution and takes them apart with ``chunk``, which demands halves of equal size while
channels leave one by one. With one convolution for each half, either loses channels of its own.
"""

from copy import deepcopy

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.nn.modules import C2f, Conv
from ultralytics.nn.tasks import DetectionModel


class SplitC2f(nn.Module):
    """A C2f with one convolution for each half of its hidden channels.

    Attributes:
        cv0: Gives the half that goes to the output alone.
        cv1: Gives the half that the bottlenecks refine.
        cv2: Joins all halves.
        m: The bottlenecks.
    """

    def __init__(self, block: C2f) -> None:
        super().__init__()
        self.cv0 = _half(block.cv1, slice(0, block.c))
        self.cv1 = _half(block.cv1, slice(block.c, None))
        self.cv2 = block.cv2
        self.m = block.m
        # What ultralytics' forward pass reads off a layer.
        self.i, self.f = block.i, block.f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute what C2f does."""
        halves = [self.cv0(x), self.cv1(x)]
        halves.extend(bottleneck(halves[-1]) for bottleneck in self.m)
        joined: torch.Tensor = self.cv2(torch.cat(halves, 1))
        return joined


def split_network(network: DetectionModel) -> DetectionModel:
    """Return a trainable copy of a network with every C2f split."""
    copy = deepcopy(network).requires_grad_()
    for index, layer in enumerate(copy.model):
        if isinstance(layer, C2f):
            copy.model[index] = SplitC2f(layer)
    return copy


def merged_weights(network: DetectionModel) -> dict[str, torch.Tensor]:
    """Return the weights of a split network under the names and in the order of the stock one."""
    weights: dict[str, torch.Tensor] = network.state_dict()
    for index, layer in enumerate(network.model):
        if isinstance(layer, SplitC2f):
            for name in layer.cv1.state_dict():
                first, second = f"model.{index}.cv0.{name}", f"model.{index}.cv1.{name}"
                # Batch norms count their steps in a scalar, the same in both halves.
                if weights[second].ndim:
                    weights[second] = torch.cat([weights[first], weights[second]])
                del weights[first]
    return weights


def _half(block: Conv, channels: slice) -> Conv:
    """Return the part of a Conv block that computes some of its output channels."""
    half = deepcopy(block)
    half.conv.weight = nn.Parameter(block.conv.weight[channels].detach().clone())
    half.conv.out_channels = half.bn.num_features = half.conv.weight.shape[0]
    for values in (*half.bn.parameters(), *half.bn.buffers()):
        if values.ndim:
            values.data = values.data[channels].clone()
    return half
