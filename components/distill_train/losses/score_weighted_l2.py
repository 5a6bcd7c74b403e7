"""Score-weighted L2 between neck features, at the points where the teacher sees something.

The feature loss of ultralytics' built-in ``distill_model=`` (version 8.4), after FitNets (Romero et al., ICLR 2015).
"""

import torch


def score_weighted_l2(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\sum_p w_p \lVert s_p - t_p \rVert^2 / (C \sum_p w_p)`.

    Args:
        student: Projected features, [P, C].
        teacher: Features at the same points, [P, C].
        weight: Importance of each point, [P], 0 or more: the teacher's best class score.

    Returns:
        A scalar, 0 or more; 0 when the features are equal.
    """
    distance = (student - teacher).square().mean(1)
    return (weight * distance).sum() / weight.sum().clamp(min=1e-9)
