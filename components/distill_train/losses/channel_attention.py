"""Feature distillation with channel attention: the channels in which the teacher responds count more.

Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, for describing a channel by its mean over positions; Zhang and
Ma, "Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and Efficient Detectors", ICLR
2021, for weighting the distance by the attention; Yang et al., "Focal and Global Knowledge Distillation for Detectors"
(FGD), CVPR 2022, for the softmax, its temperature and its scale.
"""

import torch


def channel_attention(features: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return :math:`C \cdot softmax_c(\frac{1}{HW} \sum_{hw} |f_{chw}| / T)`.

    Args:
        features: Feature maps, [B, C, H, W].
        temperature: T > 0; larger values bring all channels closer to 1.

    Returns:
        A factor for each channel, [B, C], more than 0, with a mean of 1.
    """
    return features.shape[1] * torch.softmax(features.abs().mean((2, 3)) / temperature, dim=1)


def channel_weighted_mse(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    r"""Return the mean over images of :math:`\frac{1}{CHW} \sum_c A_c \sum_{hw} (s_{chw} - t_{chw})^2`.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W]; its attention is :math:`A`.
        temperature: Temperature of the attention, more than 0.

    Returns:
        A scalar, 0 or more; 0 when the features are equal.
    """
    distance = (student - teacher).square().mean((2, 3))
    return (channel_attention(teacher, temperature) * distance).sum() / max(distance.numel(), 1)
