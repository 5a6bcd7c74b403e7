"""Binary classification distillation (BCKD): cross-entropy class by class, most where student and teacher disagree.

Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", ICCV 2023. As in
the authors' code the weight is part of the loss, not a constant: gradients pass through it.
"""

import torch
import torch.nn.functional as F


def bckd(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    r"""Return :math:`\sum_p w_p \sum_c |\tau_{pc} - \sigma_{pc}|^\gamma BCE(\sigma_{pc}, \tau_{pc}) / \sum_p w_p`.

    The scores are :math:`\sigma_{pc} = \sigma(s_{pc})` and :math:`\tau_{pc} = \sigma(t_{pc})`. The teacher's entropy,
    by which cross-entropy exceeds the KL divergence, is not taken off: the factor brings the loss to 0 on agreement.

    Args:
        student: Class logits, [P, nc].
        teacher: Class logits at the same points, [P, nc].
        weight: Importance of each point, [P], 0 or more; the paper's own is 1 everywhere.
        gamma: Power of the disagreement, 1 or more; below 1 the gradient has no bound where the logits are equal.

    Returns:
        A scalar, 0 or more; 0 when the logits are equal.
    """
    target = torch.sigmoid(teacher)
    disagreement = (target - torch.sigmoid(student)).abs() ** gamma
    cross_entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return (weight * (disagreement * cross_entropy).sum(1)).sum() / weight.sum().clamp(min=1e-9)
