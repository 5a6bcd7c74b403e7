"""Binary KL divergence of class scores: the logit distillation that fits a sigmoid head.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, for temperature and its square; Yang et al.,
"Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection" (BCKD), ICCV 2023, for treating
every class as a problem of its own, as a detector's sigmoid does. A softmax over classes would be blind to a shift of
all logits, and so to the difference between background and object.
"""

import torch
import torch.nn.functional as F


def binary_kl(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return :math:`T^2 \sum_p w_p \sum_c KL(\sigma(t_{pc}/T) \| \sigma(s_{pc}/T)) / \sum_p w_p`.

    Args:
        student: Class logits, [P, nc].
        teacher: Class logits at the same points, [P, nc].
        weight: Importance of each point, [P], 0 or more.
        temperature: T > 0; larger values soften both distributions.

    Returns:
        A scalar, 0 or more; 0 when the logits are equal.
    """
    target = torch.sigmoid(teacher / temperature)
    cross_entropy = F.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher / temperature, target, reduction="none")
    divergence = (cross_entropy - entropy).sum(1)
    return temperature**2 * (weight * divergence).sum() / weight.sum().clamp(min=1e-9)
