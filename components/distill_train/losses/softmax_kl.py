"""Softmax KL divergence of class scores: the classifier's distillation, for comparison.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. A detector's classes are not exclusive and have no
background among them: a softmax over them is blind to a shift of all logits, and so to the difference between
background and object. :mod:`.binary_kl` and :mod:`.bckd` see it.
"""

import torch
import torch.nn.functional as F


def softmax_kl(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return :math:`T^2 \sum_p w_p KL(softmax(t_p/T) \| softmax(s_p/T)) / \sum_p w_p`.

    Args:
        student: Class logits, [P, nc].
        teacher: Class logits at the same points, [P, nc].
        weight: Importance of each point, [P], 0 or more.
        temperature: T > 0; larger values soften both distributions.

    Returns:
        A scalar, 0 or more; 0 when the logits are equal or differ by a constant a point, and for a single class.
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        log_target=True,
        reduction="none",
    )
    return temperature**2 * (weight * divergence.sum(1)).sum() / weight.sum().clamp(min=1e-9)
