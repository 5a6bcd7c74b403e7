"""Pearson knowledge distillation (PKD): features up to scale and shift.

Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
NeurIPS 2022. Each channel is standardised over the points before the squared distance is taken, so that teacher and
student may differ in magnitude.
"""

import torch


def pkd(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    r"""Return the weighted mean over channels of :math:`1 - \rho(s_c, t_c)`, the Pearson correlation over points.

    Args:
        student: Projected features, [P, C].
        teacher: Features at the same points, [P, C].
        weight: Importance of each point, [P], 0 or more.

    Returns:
        A scalar in 0..2; 0 when each channel of one is a positive multiple of the other's plus a constant.
    """
    share = (weight / weight.sum().clamp(min=1e-9)).unsqueeze(1)
    difference = _standardise(student, share) - _standardise(teacher, share)
    return (share * difference.square()).sum(0).mean() / 2


def _standardise(features: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    centred = features - (share * features).sum(0)
    return centred / ((share * centred.square()).sum(0) + 1e-6).sqrt()
