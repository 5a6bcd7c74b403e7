"""Mean squared error between feature maps: every position and channel counts the same.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015; their regressor is the projector of the student's
features.
"""

import torch


def feature_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    r"""Return the mean over images of :math:`\lVert s - t \rVert^2 / (C H W)`.

    For the full features, take it at every layer.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].

    Returns:
        A scalar, 0 or more; 0 when the features are equal.
    """
    return (student - teacher).square().sum() / max(student.numel(), 1)
