"""Focal and global distillation (FGD): the teacher's attention inside and outside of objects, and its global context.

Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022; the global context is that of Cao et
al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV Workshops 2019. As in the authors'
code the terms are sums over a map, which their small weights go with.
"""

from dataclasses import dataclass

import torch
from torch import nn

from yolo_distill.components.distill_train.losses.channel_attention import channel_attention


@dataclass(frozen=True)
class FGDWeights:
    """Factors of the terms: the authors' for RetinaNet; for YOLOX theirs are 2e-3, 1e-3, 1e-3 and 1e-5.

    Attributes:
        foreground: Of the distance inside the boxes.
        background: Of the distance outside of them.
        attention: Of the distance between the attentions.
        relation: Of the distance between the maps with their global context.
    """

    foreground: float = 1e-3
    background: float = 5e-4
    attention: float = 1e-3
    relation: float = 5e-6


PAPER_WEIGHTS = FGDWeights()


class GlobalContext(nn.Module):
    """Adds to each position what all positions say together: GCNet's block, trained with the student.

    Its last layer starts at 0, so that at first the block returns what it gets.
    """

    def __init__(self, channels: int) -> None:
        """Set up the layers.

        Args:
            channels: Number of channels C of the map, 2 or more.
        """
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1),
            nn.LayerNorm([channels // 2, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 1),
        )
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        for start in (self.mask.bias, *self.transform[-1].parameters()):
            assert start is not None
            nn.init.zeros_(start)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features [B, C, H, W] with their context added."""
        share = torch.softmax(self.mask(features).flatten(2), dim=2)
        context = (features.flatten(2) * share).sum(2)[:, :, None, None]
        added: torch.Tensor = self.transform(context)
        return features + added


def box_masks(
    boxes: torch.Tensor, image: torch.Tensor, images: int, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of the positions inside and outside of the labelled boxes.

    A box covers the cells that it touches. (The authors' code adds one row and one column.)

    Args:
        boxes: Labelled boxes as ultralytics' batches hold them: centre x, y, width, height in 0..1, [G, 4].
        image: Index in the batch of each box's image, int64 [G].
        images: Number of images B.
        size: Height H and width W of the map.

    Returns:
        foreground: One over the number of cells of the box, of the smallest box where several overlap, and 0 outside,
            [B, H, W].
        background: One over the number of cells outside all boxes, and 0 inside, [B, H, W].
    """
    height, width = size
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    scale = boxes.new_tensor([width, height])
    last = scale - 1
    first_cell = ((centre - half) * scale).floor().clamp(min=0).minimum(last)
    end_cell = ((centre + half) * scale).ceil().minimum(scale).maximum(first_cell + 1)
    columns, rows = (torch.arange(n, device=boxes.device) for n in (width, height))
    in_columns = (columns >= first_cell[:, :1]) & (columns < end_cell[:, :1])
    in_rows = (rows >= first_cell[:, 1:]) & (rows < end_cell[:, 1:])
    cells = in_rows.unsqueeze(2) & in_columns.unsqueeze(1)
    values = cells / cells.sum((1, 2), keepdim=True).to(boxes.dtype)
    places = image[:, None, None].expand_as(values)
    foreground = boxes.new_zeros(images, height, width).scatter_reduce(0, places, values, "amax")
    outside = (foreground == 0).to(boxes.dtype)
    return foreground, outside / outside.sum((1, 2), keepdim=True).clamp(min=1)


def spatial_attention(features: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return :math:`HW \cdot softmax_{hw}(\frac{1}{C} \sum_c |f_{chw}| / T)`.

    Args:
        features: Feature maps, [B, C, H, W].
        temperature: T > 0; larger values bring all positions closer to 1.

    Returns:
        A factor for each position, [B, H, W], more than 0, with a mean of 1.
    """
    height, width = features.shape[2:]
    share = torch.softmax(features.abs().mean(1).flatten(1) / temperature, dim=1)
    return height * width * share.view(-1, height, width)


def focal_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float = 0.5
) -> torch.Tensor:
    r"""Return the mean over images of :math:`\sum_{chw} m_{hw} A^S_{hw} A^C_c (s_{chw} - t_{chw})^2`.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W]; its spatial and channel attention are :math:`A^S` and :math:`A^C`.
        mask: Weight of each position, [B, H, W], 0 or more: one of :func:`box_masks`.
        temperature: Temperature of the attentions, more than 0.

    Returns:
        A scalar, 0 or more; 0 when the features are equal.
    """
    where = (mask * spatial_attention(teacher, temperature)).unsqueeze(1)
    channels = channel_attention(teacher, temperature)[:, :, None, None]
    return (where * channels * (student - teacher).square()).sum() / max(len(student), 1)


def attention_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    r"""Return the mean over images of :math:`\lVert A^S(s) - A^S(t) \rVert_1 + \lVert A^C(s) - A^C(t) \rVert_1`.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].
        temperature: Temperature of the attentions, more than 0.

    Returns:
        A scalar, 0 or more; 0 when the attentions are equal, as they are under a change of signs.
    """
    where, channels = (
        (attention(student, temperature) - attention(teacher, temperature)).abs().sum()
        for attention in (spatial_attention, channel_attention)
    )
    return (where + channels) / max(len(student), 1)


def relation_loss(
    student: torch.Tensor, teacher: torch.Tensor, student_context: nn.Module, teacher_context: nn.Module
) -> torch.Tensor:
    r"""Return the mean over images of :math:`\lVert R_s(s) - R_t(t) \rVert^2`.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].
        student_context: The block R_s, :class:`GlobalContext`.
        teacher_context: The block R_t, another :class:`GlobalContext`, trained as well.

    Returns:
        A scalar, 0 or more; 0 when features and blocks are equal.
    """
    difference: torch.Tensor = student_context(student) - teacher_context(teacher)
    return difference.square().sum() / max(len(student), 1)


def fgd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    foreground: torch.Tensor,
    background: torch.Tensor,
    student_context: nn.Module,
    teacher_context: nn.Module,
    weights: FGDWeights = PAPER_WEIGHTS,
    temperature: float = 0.5,
) -> torch.Tensor:
    """Return the weighted sum of the focal losses inside and outside of boxes, the attention and the relation loss.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].
        foreground: Weight of each position inside the boxes, [B, H, W], see :func:`box_masks`.
        background: Weight of each position outside of them, [B, H, W].
        student_context: Block of the student's global context.
        teacher_context: Block of the teacher's global context.
        weights: Factors of the terms.
        temperature: Temperature of the attentions, more than 0.

    Returns:
        A scalar, 0 or more; 0 when the features and the blocks are equal.
    """
    return (
        weights.foreground * focal_loss(student, teacher, foreground, temperature)
        + weights.background * focal_loss(student, teacher, background, temperature)
        + weights.attention * attention_loss(student, teacher, temperature)
        + weights.relation * relation_loss(student, teacher, student_context, teacher_context)
    )
