"""Simulated INT8: convolutions that round their weights and inputs as the quantised model will.

Numbers stay in floating point but take only values that 8-bit integers can stand for (Jacob et al. 2018, "Quantization
and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", arXiv:1712.05877). The gradient passes
rounding as if it were not there, and is 0 for what lies outside of the range.

What is rounded and how follows NNCF, which quantises the exported model: weights symmetrically with a step for each
output channel, batch norm folded in; inputs with a zero point and one range, the mean over images of their least and
largest value; the first convolution's weights with half the levels, where the integer arithmetic of older processors
would overflow.

PyTorch's own operators round. Around them, ``torch.ao.quantization`` is announced to be removed, torchao quantises what
``torch.export`` traces, and NVIDIA's ModelOpt, which ultralytics uses, has inputs without a zero point and compiles an
extension when it runs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.prune.architecture import convolutions

_INPUT_LEVEL = 255
_WEIGHT_LEVEL = 127
# Half of it, and a little less: OpenVINO rounds the largest weight, which lies in the middle, towards 0.
_FIRST_WEIGHT_LEVEL = 63.499
# SyncBatchNorm is no BatchNorm2d.
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# NNCF's least ranges: of a channel's weights as a part of the layer's largest, of any channel's, and of an input.
_LEAST_SHARE, _LEAST_WEIGHT, _LEAST_RANGE = 0.01, 8e-5, 8e-4
# Batch norm may have silenced a channel, whose weights do not matter then.
_LEAST_FOLD = 1e-12


class Range(NamedTuple):
    """The values that a convolution's input takes.

    Attributes:
        low: The least.
        high: The largest.
    """

    low: float
    high: float


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution that rounds its weights and its input.

    A stock convolution becomes one by its class and three attributes, none of which is a parameter or a buffer, so that
    its weights keep their names and places.

    Attributes:
        input_range: Of the input.
        weight_level: Which integer stands for a channel's largest weight.
        fold: Returns by what batch norm multiplies each output channel, [out_channels].
    """

    input_range: Range
    weight_level: float
    fold: Callable[[], torch.Tensor]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve [B, C, H, W]."""
        weight = fake_quantized_weight(self.weight, self.fold(), self.weight_level)
        convolved: torch.Tensor = self._conv_forward(fake_quantized_input(x, self.input_range), weight, self.bias)
        return convolved


def fake_quantized_input(x: torch.Tensor, values: Range) -> torch.Tensor:
    """Round a tensor to 256 values with a step and a zero point in common."""
    step, zero = step_and_zero_point(values)
    return torch.fake_quantize_per_tensor_affine(x.float(), step, zero, 0, _INPUT_LEVEL)


def step_and_zero_point(values: Range) -> tuple[float, int]:
    """Return the distance of neighbouring values and which integer stands for 0.

    The range is widened to one in which 0 is exact, as it pads images.
    """
    low, high = min(values.low, 0.0), max(values.high, 0.0)
    high = max(high, low + _LEAST_RANGE)
    zero = round(-low * _INPUT_LEVEL / (high - low))
    steps = [high / (_INPUT_LEVEL - zero)] if zero < _INPUT_LEVEL else []
    steps += [-low / zero] if zero > 0 else []
    return max(steps), zero


def fake_quantized_weight(weight: torch.Tensor, fold: torch.Tensor, level: float = _WEIGHT_LEVEL) -> torch.Tensor:
    """Round weights to values around 0, with a step for each output channel.

    Args:
        weight: Of a convolution, float [out, in, height, width].
        fold: By what each output channel is multiplied when it is exported, [out].
        level: Which integer stands for a channel's largest weight, at most 127.
    """
    fold = fold.abs().float().clamp(min=_LEAST_FOLD)
    peak = weight.detach().float().abs().amax((1, 2, 3)) * fold
    peak = torch.maximum(peak, _LEAST_SHARE * peak.max()).clamp(min=_LEAST_WEIGHT)
    zero = torch.zeros(len(peak), dtype=torch.int32, device=peak.device)
    return torch.fake_quantize_per_channel_affine(weight, peak / (level * fold), zero, 0, -_WEIGHT_LEVEL, _WEIGHT_LEVEL)


def measured_ranges(network: DetectionModel, batches: Iterable[torch.Tensor]) -> dict[str, Range]:
    """Return the mean over images of the least and the largest value of each convolution's input.

    Args:
        network: A network without simulation; its mode is kept.
        batches: Images [B, C, H, W] as the network takes them, on its device.

    Returns:
        Ranges by the convolution's name in ``network.model``, for those that take part in the network's answers.
    """
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)

    def look(name: str, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        seen[name].append(torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))], 1).float())

    hooks = [
        layer.register_forward_pre_hook(partial(look, name)) for name, layer in convolutions(network.model).items()
    ]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                network(batch)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    # Ultralytics validates a diverged network before it goes back to an earlier one.
    return {name: Range(*torch.cat(values).mean(0).nan_to_num().tolist()) for name, values in seen.items()}


def simulate_int8(network: DetectionModel, ranges: dict[str, Range]) -> None:
    """Have a network's convolutions round their weights and inputs, until :func:`stop_simulating`.

    Args:
        network: A network.
        ranges: Of the inputs by the convolution's name in ``network.model``; the others are left as they are.
    """
    level = _FIRST_WEIGHT_LEVEL
    layers: dict[str, Any] = dict(convolutions(network.model))
    for name, layer in layers.items():
        if name in ranges:
            layer.__class__ = FakeQuantizedConv2d
            layer.input_range = ranges[name]
            layer.weight_level = level
            layer.fold = partial(_fold, network.model.get_submodule(name.rpartition(".")[0]), layer)
        level = _WEIGHT_LEVEL


def stop_simulating(network: nn.Module) -> None:
    """Undo :func:`simulate_int8`."""
    layers: list[Any] = [layer for layer in network.modules() if isinstance(layer, FakeQuantizedConv2d)]
    for layer in layers:
        layer.__class__ = nn.Conv2d
        del layer.input_range, layer.weight_level, layer.fold


@contextmanager
def simulated_int8(network: DetectionModel, ranges: dict[str, Range]) -> Iterator[None]:
    """Simulate within a block."""
    simulate_int8(network, ranges)
    try:
        yield
    finally:
        stop_simulating(network)


def _fold(block: nn.Module, layer: nn.Conv2d) -> torch.Tensor:
    """Return by what the batch norm of an ultralytics Conv block multiplies each channel; 1 where there is none."""
    norm = getattr(block, "bn", None)
    if getattr(block, "conv", None) is not layer or not isinstance(norm, BATCH_NORMS):
        return layer.weight.new_ones(layer.out_channels)
    assert norm.running_var is not None
    fold: torch.Tensor = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return fold
