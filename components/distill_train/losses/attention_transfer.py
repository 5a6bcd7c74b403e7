"""Attention transfer (AT): where a layer responds, and in which channels.

Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
via Attention Transfer", ICLR 2017, for spatial maps; Zhang and Ma, "Improve Object Detection with Feature-based
Knowledge Distillation: Towards Accurate and Efficient Detectors", ICLR 2021, for taking channels as well.
"""

import torch
import torch.nn.functional as F


def attention_transfer(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    r"""Return the mean over images of :math:`\lVert s/\lVert s \rVert - t/\lVert t \rVert \rVert^2`.

    Args:
        student: One attention vector an image, [B, N]: mean square over channels at N positions, or mean over positions
            of N channels.
        teacher: The teacher's, [B, N].

    Returns:
        A scalar in 0..4; 0 when each vector of one is a positive multiple of the other's.
    """
    difference = F.normalize(student, dim=1) - F.normalize(teacher, dim=1)
    return difference.square().sum(1).sum() / max(len(student), 1)
