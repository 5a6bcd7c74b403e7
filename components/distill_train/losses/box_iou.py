"""Box distillation by overlap: the student's box is drawn to the teacher's.

Zheng et al., "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression" (CIoU), AAAI 2020, with the
teacher's box as the target; BCKD uses a plain IoU in its place.
"""

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from ultralytics.utils.metrics import bbox_iou


def box_iou(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\sum_p w_p (1 - CIoU(s_p, t_p)) / \sum_p w_p`.

    Args:
        student: Boxes x1, y1, x2, y2, [P, 4], in any unit.
        teacher: Boxes at the same points in the same unit, [P, 4].
        weight: Importance of each point, [P], 0 or more.

    Returns:
        A scalar, 0 or more; 0 when the boxes are equal.
    """
    overlap: torch.Tensor = bbox_iou(student, teacher, xywh=False, CIoU=True).squeeze(-1)
    return (weight * (1 - overlap)).sum() / weight.sum().clamp(min=1e-9)
