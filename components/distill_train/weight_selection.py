"""Initial weights of a student, taken from its larger teacher.

Source: Xu et al., "Initializing Models with Larger Ones", ICLR 2024 (weight selection). A narrower network of the same
family starts from evenly spaced channels of the larger one, the same channels wherever a tensor meets another; a
shallower one takes the first blocks of each stage. What the teacher has learned about its task comes along.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.nn.modules import SPPF, Bottleneck, C2f, Concat, Conv, Detect
from ultralytics.nn.tasks import DetectionModel


@dataclass(frozen=True)
class Channels:
    """Which of the teacher's channels a student's tensor holds.

    Attributes:
        chosen: Their numbers, int64 [student's channels].
        of: How many the teacher's tensor has.
    """

    chosen: torch.Tensor
    of: int


def select_weights(student: DetectionModel, teacher: DetectionModel) -> float:
    """Overwrite a student's weights with a selection of its teacher's.

    What has no counterpart keeps its weights: layers of another kind than the teacher's, what is wider than there, and
    the class outputs where the numbers of classes differ.

    Args:
        student: A network of the teacher's family, such as a YOLOv8n of a YOLOv8x.
        teacher: The network that the weights are taken from.

    Returns:
        The part of the student's weights that were taken over, 0..1.
    """
    selection = _Selection()
    outputs: list[Channels | None] = []
    for ours, theirs in zip(student.model, teacher.model, strict=False):
        sources = ours.f if isinstance(ours.f, list) else [ours.f]
        # The first layer reads the image, whose channels are the same for both.
        inputs = [outputs[source] if outputs else evenly(3, 3) for source in sources]
        alike = type(ours) is type(theirs) and ours.f == theirs.f
        outputs.append(selection.layer(ours, theirs, inputs) if alike else None)
    total: int = sum(parameter.numel() for parameter in student.parameters())
    return selection.taken / total


def evenly(count: int, of: int) -> Channels | None:
    """Choose ``count`` evenly spaced channels of ``of``; ``None`` where there are not as many."""
    return Channels(torch.arange(count) * of // count, of) if count <= of else None


def joined(parts: Iterable[Channels | None]) -> Channels | None:
    """Return the channels of a concatenation; ``None`` where those of a part are not known."""
    chosen, of = [], 0
    for part in parts:
        if part is None:
            return None
        chosen.append(part.chosen + of)
        of += part.of
    return Channels(torch.cat(chosen), of)


class _Selection:
    """Copies layer by layer; each method returns the channels that its layer puts out, where they are known.

    Attributes:
        taken: Weights that were taken over so far.
    """

    def __init__(self) -> None:
        self.taken = 0

    def layer(self, ours: nn.Module, theirs: Any, inputs: Sequence[Channels | None]) -> Channels | None:
        if isinstance(ours, Concat):
            return joined(inputs)
        if isinstance(ours, Detect):
            branches = (zip(getattr(ours, name), getattr(theirs, name), inputs, strict=True) for name in ("cv2", "cv3"))
            for our_branch, their_branch, source in (row for rows in branches for row in rows):
                self.block(our_branch, their_branch, source)
            return None
        return self.block(ours, theirs, inputs[0])

    def block(self, ours: nn.Module, theirs: Any, source: Channels | None) -> Channels | None:
        if isinstance(ours, nn.Upsample):
            return source
        if isinstance(ours, nn.Sequential):
            for our_part, their_part in zip(ours, theirs, strict=True):
                source = self.block(our_part, their_part, source)
            return source
        if isinstance(ours, nn.Conv2d):
            # What it puts out has a meaning: classes or bins, of which some must not stand for others.
            same = ours.out_channels == theirs.out_channels
            return self.convolution(
                ours, theirs, source, evenly(ours.out_channels, ours.out_channels) if same else None
            )
        if isinstance(ours, Conv):
            return self.conv(ours, theirs, source, evenly(ours.conv.out_channels, theirs.conv.out_channels))
        if isinstance(ours, Bottleneck):
            return self.block(ours.cv2, theirs.cv2, self.block(ours.cv1, theirs.cv1, source))
        if isinstance(ours, SPPF):
            pooled = self.block(ours.cv1, theirs.cv1, source)
            return self.block(ours.cv2, theirs.cv2, joined([pooled] * (ours.n + 1)))
        if isinstance(ours, C2f):
            return self.c2f(ours, theirs, source)
        return None

    def c2f(self, ours: C2f, theirs: Any, source: Channels | None) -> Channels | None:
        half = evenly(ours.c, theirs.c)
        self.conv(ours.cv1, theirs.cv1, source, joined([half, half]))
        parts = [half, half]
        for our_block, their_block in zip(ours.m, theirs.m, strict=False):
            parts.append(
                self.block(our_block, their_block, parts[-1]) if type(our_block) is type(their_block) else None
            )
        inside = joined(parts)
        if inside and len(ours.m) <= len(theirs.m):
            # The teacher's further blocks are left out.
            inside = Channels(inside.chosen, theirs.cv2.conv.in_channels)
        return self.conv(ours.cv2, theirs.cv2, inside, evenly(ours.cv2.conv.out_channels, theirs.cv2.conv.out_channels))

    def conv(self, ours: Conv, theirs: Any, source: Channels | None, target: Channels | None) -> Channels | None:
        copied = self.convolution(ours.conv, theirs.conv, source, target)
        if copied:
            for name, values in theirs.bn.state_dict().items():
                # Batch norms count their steps in a scalar.
                chosen = values[copied.chosen.to(values.device)] if values.ndim else values
                ours.bn.state_dict()[name].copy_(chosen)
            self.taken += sum(parameter.numel() for parameter in ours.bn.parameters())
        return copied

    def convolution(
        self, ours: nn.Conv2d, theirs: Any, source: Channels | None, target: Channels | None
    ) -> Channels | None:
        same_kind = (ours.kernel_size, ours.groups, theirs.groups) == (theirs.kernel_size, 1, 1)
        if not source or not target or not same_kind:
            return None
        if (len(source.chosen), source.of) != (ours.in_channels, theirs.in_channels):
            return None
        with torch.no_grad():
            weight = theirs.weight.cpu()[target.chosen][:, source.chosen]
            ours.weight.copy_(weight)
            if ours.bias is not None:
                ours.bias.copy_(theirs.bias.cpu()[target.chosen])
        self.taken += sum(parameter.numel() for parameter in ours.parameters())
        return target
