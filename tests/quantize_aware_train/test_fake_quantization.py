import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.distill_train.train import STUDENTS_FOLDER
from yolo_distill.components.prune.architecture import convolutions
from yolo_distill.components.quantize_aware_train.fake_quantization import (
    FakeQuantizedConv2d,
    Range,
    fake_quantized_input,
    fake_quantized_weight,
    measured_ranges,
    simulate_int8,
    simulated_int8,
    step_and_zero_point,
    stop_simulating,
)


@pytest.fixture
def network() -> DetectionModel:
    """A network whose batch norms do something, as those of a trained one."""
    torch.manual_seed(0)
    network = DetectionModel(str(STUDENTS_FOLDER / "yolov8p.yaml"), nc=3, verbose=False).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def rounded(value: float, step: float, zero: int, low: int, high: int) -> float:
    """The value that an integer in low..high stands for, one number at a time."""
    return step * (min(max(round(value / step) + zero, low), high) - zero)


@pytest.mark.parametrize("level", [127, 63.499])
def test_a_block_computes_what_slow_integer_arithmetic_computes(level):
    torch.manual_seed(0)
    block = Conv(3, 4, 3).eval()
    nn.init.uniform_(block.bn.weight, -2, 2)
    nn.init.uniform_(block.bn.running_var, 0.5, 2)
    nn.init.normal_(block.bn.bias)
    # So small that its step is that of a hundredth of the layer's largest weight.
    block.conv.weight.data[1] *= 1e-4
    x = torch.randn(1, 3, 5, 6)
    values = Range(-1.0, 1.5)

    fold = (block.bn.weight / (block.bn.running_var + block.bn.eps).sqrt()).detach()
    folded = block.conv.weight.detach() * fold[:, None, None, None]
    peaks = [max(float(channel.abs().max()), float(folded.abs().max()) / 100) for channel in folded]
    step, zero = step_and_zero_point(values)
    integers = torch.tensor([rounded(v, step, zero, 0, 255) for v in x.flatten().tolist()]).view_as(x)
    weights = torch.tensor(
        [
            [rounded(v, peak / level, 0, -127, 127) for v in channel.flatten().tolist()]
            for channel, peak in zip(folded, peaks, strict=True)
        ]
    ).view_as(folded)
    expected = nn.functional.conv2d(integers.double(), weights.double(), padding=1)
    expected += (block.bn.bias - block.bn.running_mean * fold).detach().double()[:, None, None]

    original = deepcopy(block)
    conv = block.conv
    conv.__class__ = FakeQuantizedConv2d
    conv.input_range, conv.weight_level, conv.fold = values, level, lambda: fold
    with torch.no_grad():
        assert torch.allclose(block(x), block.act(expected).float(), atol=1e-5)
        assert not torch.allclose(original(x), block.act(expected).float(), atol=1e-3)


@pytest.mark.parametrize("values", [(0.3, 0.9), (-3.0, -1.0), (-0.28, 46.0), (-5.0, 0.01), (0.0, 0.0), (-7.0, 6.9)])
def test_zero_is_exact_and_the_range_is_kept(values):
    step, zero = step_and_zero_point(Range(*values))
    assert 0 <= zero <= 255
    lowest, highest = -zero * step, (255 - zero) * step
    assert lowest <= min(values[0], 0) + 1e-9
    assert highest >= max(values[1], 0) - 1e-9
    assert highest - lowest <= max(8e-4, max(values[1], 0) - min(values[0], 0)) * (1 + 1 / 100)
    assert fake_quantized_input(torch.zeros(1), Range(*values)) == 0


def test_the_gradient_passes_inside_the_range_and_not_outside():
    x = torch.tensor([-2.0, -1.02, -0.9, 0.0, 0.3141, 0.99, 1.02, 5.0], requires_grad=True)
    factors = torch.arange(1.0, 9.0)
    (fake_quantized_input(x, Range(-1.0, 1.0)) * factors).sum().backward()
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    factors = torch.randn(4, 3, 3, 3)
    # No weight lies outside: the step is chosen by the largest.
    (fake_quantized_weight(weight, torch.tensor([1.0, -2.0, 0.1, 0.0])) * factors).sum().backward()
    assert torch.equal(weight.grad, factors)


def test_weights_take_so_many_values_in_each_channel():
    weight = torch.randn(8, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    for level, most in ((127, 255), (63.499, 127)):
        for before, after in zip(weight, fake_quantized_weight(weight, torch.ones(8), level), strict=True):
            step = before.abs().max() / level
            assert len(after.unique()) <= most
            assert (before - after).abs().max() <= step / 2 * (1 + 1e-4)


def test_ranges_are_means_over_images_whatever_the_batch(network, images):
    whole, single = (measured_ranges(network, images.split(size)) for size in (3, 1))
    assert whole.keys() == convolutions(network.model).keys()
    low, high = (torch.stack([reduce(image) for image in images]).mean() for reduce in (torch.min, torch.max))
    assert whole["0.conv"] == pytest.approx((float(low), float(high)))
    for name in whole:
        assert whole[name] == pytest.approx(single[name], rel=1e-3, abs=1e-4)
    # All but the network's input have passed SiLU, whose least value this is, or a sum of such.
    assert all(values.low >= -0.28 * 4 for values in whole.values())
    network.train()
    measured_ranges(network, [images])
    assert network.training
    assert not network.model[0].conv._forward_pre_hooks


def test_simulation_comes_and_goes_without_a_trace(network, images):
    names, shapes = list(network.state_dict()), [name for name, _ in network.named_modules()]
    with torch.no_grad():
        before = network(images)[0]
        ranges = measured_ranges(network, [images])
        with simulated_int8(network, ranges):
            during = network(images)[0]
            assert sum(isinstance(layer, FakeQuantizedConv2d) for layer in network.modules()) == len(ranges)
            assert (list(network.state_dict()), [name for name, _ in network.named_modules()]) == (names, shapes)
        assert torch.equal(network(images)[0], before)
    assert not torch.allclose(during, before, atol=1e-3)
    assert math.isfinite(float(during.sum()))
    assert {type(layer) for layer in convolutions(network.model).values()} == {nn.Conv2d}
    assert not {"fold", "input_range", "weight_level"} & vars(network.model[0].conv).keys()


def test_what_is_learned_reaches_the_stock_weights(network, images):
    ranges = measured_ranges(network, [images])
    simulate_int8(network, ranges)
    network.train()
    raw = network(images)
    (raw["boxes"].square().mean() + raw["scores"].square().mean()).backward()
    stop_simulating(network)
    for name, layer in convolutions(network.model).items():
        assert layer.weight.grad.abs().max() > 0, name


def test_the_decoding_stays_in_floating_point(network, images):
    ranges = measured_ranges(network, [images])
    with simulated_int8(network, ranges):
        assert type(network.model[-1].dfl.conv) is nn.Conv2d
        assert type(network.model[-1].cv2[0][-1]) is FakeQuantizedConv2d


def test_a_diverged_network_can_be_validated_still(network, images):
    # Ultralytics validates before it looks at the loss and goes back to the last good weights.
    network.model[3].conv.weight.data.fill_(torch.nan)
    ranges = measured_ranges(network, [images])
    assert all(math.isfinite(bound) for values in ranges.values() for bound in values)
    with torch.no_grad(), simulated_int8(network, ranges):
        network(images)
