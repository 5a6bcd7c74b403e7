"""Batch normalisation over the batches of all processes that train together."""

from typing import Any

import torch
from torch import nn

from yolo_distill.components.shared.distributed import total


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """``torch.nn.SyncBatchNorm``, which is for GPUs alone, for CPUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise [B, C, H, W] by mean and variance over all processes' images and positions."""
        if not self.training:
            alone: torch.Tensor = super().forward(x)
            return alone
        values = x.float()
        sums = [values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), values.new_tensor([values[:, 0].numel()])]
        *means, count = total(torch.cat(sums)).tensor_split([self.num_features, 2 * self.num_features])
        mean, mean_square = (moment / count for moment in means)
        variance = (mean_square - mean.square()).clamp(min=0)
        self._keep(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised = values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Have a network's batch normalisations look at the batches of all processes."""
    modules: list[Any] = [module for module in network.modules() if type(module) is nn.BatchNorm2d]
    for module in modules:
        module.__class__ = CpuSyncBatchNorm if module.weight.device.type == "cpu" else nn.SyncBatchNorm
        # What PyTorch's class adds; None stands for all processes.
        module.process_group = None


def separate_batch_norm(network: nn.Module) -> None:
    """Undo :func:`synchronise_batch_norm`: weights and statistics stay."""
    modules: list[Any] = [m for m in network.modules() if isinstance(m, CpuSyncBatchNorm | nn.SyncBatchNorm)]
    for module in modules:
        module.__class__ = nn.BatchNorm2d
        del module.process_group
