"""Feature distillation where the teacher's decision comes from, as Grad-CAM shows it.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
"""

import torch


def gradient_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`ReLU(\sum_c \alpha_c f_c)` with :math:`\alpha_c = \frac{1}{HW} \sum_{hw} g_{chw}`.

    Args:
        features: Feature maps f, [B, C, H, W].
        gradients: Gradients g with respect to them of what is to be explained, [B, C, H, W]: a sum of scores, say.

    Returns:
        Maps in 0..1, [B, H, W], detached, each scaled to a maximum of 1; all 0 where nothing speaks for the decision.
    """
    cam = (gradients.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()
    peak = cam.amax((1, 2), keepdim=True)
    return cam / torch.where(peak > 0, peak, 1)


def cam_weighted_mse(student: torch.Tensor, teacher: torch.Tensor, cam: torch.Tensor) -> torch.Tensor:
    r"""Return the mean over images of :math:`\sum_{hw} m_{hw} \lVert s_{hw} - t_{hw} \rVert^2 / (C \sum_{hw} m_{hw})`.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].
        cam: Importance m of each position, [B, H, W], 0 or more; an image of zeros adds nothing.

    Returns:
        A scalar, 0 or more; 0 when the features are equal.
    """
    distance = (cam * (student - teacher).square().mean(1)).sum((1, 2)) / cam.sum((1, 2)).clamp(min=1e-9)
    return distance.sum() / max(len(student), 1)
