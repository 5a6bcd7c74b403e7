"""Localization distillation (LD): the teacher's distributions over the bins of a box's sides.

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022. Here the points are weighted by the
teacher's confidence, which takes in the paper's main region and its valuable region in one go.
"""

import torch
import torch.nn.functional as F


def localization_distillation(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, temperature: float
) -> torch.Tensor:
    r"""Return :math:`T^2 \sum_p w_p \frac{1}{4} \sum_{side} KL(softmax(t/T) \| softmax(s/T)) / \sum_p w_p`.

    Args:
        student: DFL logits, [P, 4 * reg_max]: left, top, right, bottom.
        teacher: DFL logits at the same points, [P, 4 * reg_max].
        weight: Importance of each point, [P], 0 or more.
        temperature: T > 0; larger values soften both distributions.

    Returns:
        A scalar, 0 or more; 0 when the distributions are equal.
    """
    sides = (len(student), 4, student.shape[1] // 4)
    divergence = F.kl_div(
        F.log_softmax(student.view(sides) / temperature, dim=2),
        F.log_softmax(teacher.view(sides) / temperature, dim=2),
        log_target=True,
        reduction="none",
    )
    per_point = divergence.sum(2).mean(1)
    return temperature**2 * (weight * per_point).sum() / weight.sum().clamp(min=1e-9)
