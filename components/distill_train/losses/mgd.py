"""Masked generative distillation (MGD): the teacher's whole map is to be made from a part of the student's.

Yang et al., "Masked Generative Distillation", ECCV 2022. The mask is an argument, so that a step can be repeated.
"""

import torch
from torch import nn


class Generation(nn.Module):
    """Fills in what the mask has taken: two 3 by 3 convolutions with a ReLU between them, trained with the student."""

    def __init__(self, channels: int) -> None:
        """Set up the layers.

        Args:
            channels: Number of channels C of the teacher's map.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return what is made of masked features, both [B, C, H, W]."""
        generated: torch.Tensor = self.layers(features)
        return generated


def random_mask(images: int, size: tuple[int, int], ratio: float, generator: torch.Generator) -> torch.Tensor:
    """Return a mask of positions, the same for all channels.

    Args:
        images: Number of images B.
        size: Height H and width W of the map.
        ratio: Probability that a position is masked, 0..1; the paper's is 0.65 for one-stage detectors.
        generator: Source of chance, on the device on which the mask is made.

    Returns:
        0 where masked and 1 elsewhere, float32 [B, 1, H, W].
    """
    chance = torch.rand((images, 1, *size), generator=generator, device=generator.device)
    return (chance >= ratio).float()


def mgd(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, generation: nn.Module) -> torch.Tensor:
    r"""Return the mean over images of :math:`\lVert G(s \cdot m) - t \rVert^2`.

    As in the paper squares are summed over channels and positions; its weight for one-stage detectors is 2e-5.

    Args:
        student: Projected features, [B, C, H, W].
        teacher: The teacher's, [B, C, H, W].
        mask: Positions that are kept, 0 or 1, [B, 1, H, W] or [B, C, H, W].
        generation: The network G, :class:`Generation`.

    Returns:
        A scalar, 0 or more; 0 when the teacher's map is generated exactly, not when student and teacher are equal.
    """
    generated: torch.Tensor = generation(student * mask)
    return (generated - teacher).square().sum() / max(len(student), 1)
