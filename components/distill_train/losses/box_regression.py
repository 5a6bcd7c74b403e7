"""Box distillation by distance: the student's sides are drawn to the teacher's.

Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017, for squared
distances to the teacher's regression (here without their bound, which switches points off by the labels); Girshick,
"Fast R-CNN", ICCV 2015, for the smooth L1 distance.
"""

import torch
import torch.nn.functional as F


def box_l2(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\sum_p w_p \frac{1}{4} \lVert s_p - t_p \rVert^2 / \sum_p w_p`.

    Args:
        student: Boxes x1, y1, x2, y2 in strides, [P, 4].
        teacher: Boxes at the same points in the same unit, [P, 4].
        weight: Importance of each point, [P], 0 or more.

    Returns:
        A scalar, 0 or more, in square strides; 0 when the boxes are equal.
    """
    distance = (student - teacher).square().mean(1)
    return (weight * distance).sum() / weight.sum().clamp(min=1e-9)


def box_smooth_l1(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, beta: float = 1.0
) -> torch.Tensor:
    r"""Return the weighted mean over points of the mean over sides of the smooth L1 distance.

    It is :math:`d^2 / 2\beta` where the sides differ by :math:`d < \beta`, and :math:`d - \beta/2` elsewhere.

    Args:
        student: Boxes x1, y1, x2, y2 in strides, [P, 4].
        teacher: Boxes at the same points in the same unit, [P, 4].
        weight: Importance of each point, [P], 0 or more.
        beta: Difference at which the square goes over into the straight line, more than 0, in strides.

    Returns:
        A scalar, 0 or more, in strides; 0 when the boxes are equal.
    """
    distance = F.smooth_l1_loss(student, teacher, reduction="none", beta=beta).mean(1)
    return (weight * distance).sum() / weight.sum().clamp(min=1e-9)
