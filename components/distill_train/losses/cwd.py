"""Channel-wise distillation (CWD): where each channel responds, as a distribution over positions.

Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021. With the features standardised first,
as PKD does (Cao et al., NeurIPS 2022), it is the loss of mmyolo's recipes for RTMDet, which do so by a batch
normalisation without parameters.
"""

import torch
import torch.nn.functional as F


def cwd(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, normalise: bool = False
) -> torch.Tensor:
    r"""Return the mean over images of :math:`\frac{T^2}{C} \sum_c KL(softmax_{hw}(t_c/T) \| softmax_{hw}(s_c/T))`.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].
        temperature: T > 0; larger values take in more positions. The paper's is 4, mmyolo's is 1.
        normalise: Whether each channel is first brought to mean 0 and variance 1 over the batch and its positions, so
            that teacher and student may differ in magnitude.

    Returns:
        A scalar, 0 or more; 0 when each channel of one is the other's plus a constant, which may differ from image to
        image without ``normalise``, and be preceded by a positive factor with it.
    """
    if normalise:
        student, teacher = _standardise(student), _standardise(teacher)
    divergence = F.kl_div(
        F.log_softmax(student.flatten(2) / temperature, dim=2),
        F.log_softmax(teacher.flatten(2) / temperature, dim=2),
        log_target=True,
        reduction="none",
    ).sum(2)
    return temperature**2 * divergence.sum() / max(divergence.numel(), 1)


def _standardise(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
