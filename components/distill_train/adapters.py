"""What trains along with the student and is left out of its checkpoints: projectors and the losses' own layers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from yolo_distill.components.distill_train.calibration import GradientScales
from yolo_distill.components.distill_train.layers import LayerPair
from yolo_distill.components.distill_train.losses.fgd import GlobalContext
from yolo_distill.components.distill_train.losses.mgd import Generation
from yolo_distill.components.distill_train.recipe import FGD, MGD, Recipe


class Projector(nn.Module):
    """Brings features to another number of channels at every position alone, as 1x1 convolutions do.

    ``linear`` is FitNets' regressor (Romero et al., ICLR 2015); ``mlp`` is ultralytics' built-in; ``residual`` adds to
    the linear map what an ``mlp`` on top of it finds, so that gradients have a short way.
    """

    def __init__(self, student: int, teacher: int, kind: Literal["linear", "mlp", "residual"]) -> None:
        """Set up the layers.

        Args:
            student: Channels that come in.
            teacher: Channels that go out.
            kind: Which of the three.
        """
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(student, teacher)
        self.second = nn.Linear(teacher, teacher) if kind != "linear" else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project points [P, C] or vectors [B, C]."""
        projected: torch.Tensor = self.first(features)
        if self.second is None:
            return projected
        deeper: torch.Tensor = self.second(projected.relu())
        return deeper if self.kind == "mlp" else projected + deeper

    def project_map(self, features: torch.Tensor) -> torch.Tensor:
        """Project a map [B, C, H, W]."""
        projected: torch.Tensor = self(features.permute(0, 2, 3, 1))
        return projected.permute(0, 3, 1, 2)


def build_adapters(recipe: Recipe, pairs: Sequence[LayerPair]) -> nn.ModuleDict:
    """Return everything that a recipe trains beside the student.

    Args:
        recipe: The recipe.
        pairs: The layers that it compares.

    Returns:
        Modules by kind and name of the pair, such as ``projector_neck0``, and ``gradient_scales`` where the recipe is
        calibrated; empty where it needs none.
    """
    adapters = nn.ModuleDict()
    for pair in pairs:
        terms = [term for term in recipe.terms if compares(term, pair)]
        if any(term.projected for term in terms):
            adapters[f"projector_{pair.name}"] = Projector(
                pair.student_channels, pair.teacher_channels, recipe.projector
            )
        if any(isinstance(term, MGD) for term in terms):
            adapters[f"generation_{pair.name}"] = Generation(pair.teacher_channels)
        if any(isinstance(term, FGD) for term in terms):
            for who in ("student", "teacher"):
                adapters[f"context_{who}_{pair.name}"] = GlobalContext(pair.teacher_channels)
    if recipe.calibrate:
        adapters["gradient_scales"] = GradientScales([t.loss for t in recipe.terms], **recipe.calibrate.model_dump())
    return adapters


def compares(term: object, pair: LayerPair) -> bool:
    """Return whether a term looks at a pair of layers; without layers of its own it looks at the necks."""
    layers = getattr(term, "layers", [])
    return pair.student in layers and not pair.is_neck if layers else pair.is_neck
