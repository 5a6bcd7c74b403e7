"""Cross-head distillation (CrossKD): the teacher's head reads the student's features.

Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024. The student's own head stays
out of it, so that labels and teacher do not pull it in two directions. Here the whole head of the teacher is run on the
student's projected neck features, position 0 of the authors' code, whose default is a layer within the head. The losses
on the outputs are :mod:`.binary_kl` and :mod:`.localization_distillation`.
"""

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from ultralytics.nn.modules.head import Detect


def align_scale(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the student's features with the teacher's mean and standard deviation in each channel.

    The authors' code does so before the teacher's head, which knows no other scale than its own.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].

    Returns:
        Features, [B, C, H, W]; over the batch and its positions each channel has the teacher's mean and deviation.
    """
    (mean, spread), (teacher_mean, teacher_spread) = (_statistics(features) for features in (student, teacher))
    return (student - mean) / (spread + 1e-6) * teacher_spread + teacher_mean


def head_outputs(head: Detect, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a teacher's head on a student's features.

    Args:
        head: The last layer of the teacher, frozen: in evaluation mode, so that the student does not shift the batch
            normalisation, and without parameters that ask for a gradient.
        features: Projected features by level, each [B, C, H, W] with the teacher's channels.

    Returns:
        boxes: DFL logits, [B, 4 * reg_max, A].
        scores: Class logits, [B, nc, A].

    Raises:
        ValueError: The head is not frozen.
    """
    if head.training or any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError("the teacher's head is being trained: call head.eval().requires_grad_(False)")
    # Unlike a call of the head, this leaves out the decoding, which evaluation mode would do.
    raw = head.forward_head(features, **head.one2many)
    return raw["boxes"], raw["scores"]


def _statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = features.mean((0, 2, 3), keepdim=True)
    variance = (features - mean).square().mean((0, 2, 3), keepdim=True)
    return mean, (variance + 1e-12).sqrt()
