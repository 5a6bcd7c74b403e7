"""Local structure preserving (LSP): which of its neighbours a position resembles most.

Yang et al., "Distilling Knowledge from Graph Convolutional Networks", CVPR 2020. A position of the map is a node, and
the other positions of a window around it are its neighbours. As in the authors' code the teacher's distribution is the
target. Similarity is the cosine, which unlike the paper's choices does not depend on the features' magnitude.
"""

import torch
import torch.nn.functional as F


def lsp(student: torch.Tensor, teacher: torch.Tensor, window: int = 3, temperature: float = 1.0) -> torch.Tensor:
    r"""Return the mean over images and positions of :math:`KL(L^t_i \| L^s_i)`.

    The local structure is :math:`L_{ij} = softmax_j(\cos(f_i, f_j) / T)` over the neighbours j of i inside the map.

    Args:
        student: Features, [B, C_s, H, W]; they need no projection.
        teacher: The teacher's, [B, C_t, H, W], with any number of channels.
        window: Side of the window, odd, 3 or more.
        temperature: T > 0; smaller values sharpen the distributions, which at 1 (the paper's) are nearly flat.

    Returns:
        A scalar, 0 or more; 0 when all cosines are equal, as under a rotation or a positive factor.
    """
    divergence = F.kl_div(
        _local_structure(student, window, temperature),
        _local_structure(teacher, window, temperature),
        log_target=True,
        reduction="none",
    ).sum(0)
    return divergence.sum() / max(divergence.numel(), 1)


def _local_structure(features: torch.Tensor, window: int, temperature: float) -> torch.Tensor:
    """Return the logarithm of each neighbour's share, [window ** 2 - 1, B, H, W]."""
    height, width = features.shape[2:]
    reach = window // 2
    # A norm of 0 has no direction; the bound keeps its gradient finite.
    unit = F.normalize(features, dim=1, eps=1e-3)
    padded = F.pad(unit, (reach, reach, reach, reach))
    inside = F.pad(features.new_ones(height, width, dtype=torch.bool), (reach, reach, reach, reach))
    outside_map = torch.finfo(features.dtype).min
    rows = []
    for y in range(window):
        for x in range(window):
            if (y, x) == (reach, reach):
                continue
            cosine = (unit * padded[:, :, y : y + height, x : x + width]).sum(1)
            there = inside[y : y + height, x : x + width]
            rows.append(torch.where(there, cosine / temperature, outside_map))
    return F.log_softmax(torch.stack(rows), dim=0)
