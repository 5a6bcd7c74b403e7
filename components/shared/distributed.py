"""What the processes of one training share; a process that trains alone shares with nobody, at no cost.

Processes are told about each other as ``torchrun`` does it, by ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
``MASTER_ADDR`` and ``MASTER_PORT``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from os import environ
from typing import Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import distributed, nn
from ultralytics.utils.loss import v8DetectionLoss

# While the first process validates and writes checkpoints, the others wait for it. Ultralytics' own limit.
_PATIENCE = timedelta(hours=3)


@contextmanager
def joined_processes() -> Iterator[None]:
    """Let this process train along with the others that its environment names: by NCCL on GPUs, by Gloo on CPUs."""
    if process_count_here() * _node_count() == 1:
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local_rank())
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def process_count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_rank() -> int:
    """Return this process's place among those that train together, from 0; the first writes what is kept."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_rank() -> int:
    """Return this process's place among those of its machine, from 0: the number of its GPU."""
    return int(environ.get("LOCAL_RANK", "0"))


def process_count_here() -> int:
    """Return how many processes train together on this machine."""
    return int(environ.get("LOCAL_WORLD_SIZE", "1"))


def _node_count() -> int:
    return int(environ.get("WORLD_SIZE", "1")) // process_count_here()


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over the processes; gradients flow back to all of them."""
    if process_count() == 1:
        return values
    summed: torch.Tensor = _Total.apply(values)
    return summed


def share_of(amount: torch.Tensor, least: float) -> torch.Tensor:
    r"""Return the factor that turns a process's weighted mean into its part of the mean over all processes.

    With :math:`a_r` the sum of process r's weights, not less than ``least``, it is :math:`n a_r / \sum_s a_s`: the mean
    of the products over the n processes is the weighted mean over what all of them have. Every process has to ask.

    Args:
        amount: The sum of this process's weights, a scalar.
        least: What the mean's divisor is at least.

    Returns:
        A scalar; 1 for a process alone, and without gradients, when a network is only measured.
    """
    if process_count() == 1 or not torch.is_grad_enabled():
        return torch.ones_like(amount)
    with torch.no_grad():
        return process_count() * amount.clamp(min=least) / total(amount).clamp(min=least)


class SharedDetectionLoss(v8DetectionLoss):  # type: ignore[misc]
    """Ultralytics' detection loss, divided by the objects in the whole batch and not by those of a process's part.

    So it is the loss of one process with the whole batch. Ultralytics' own takes the mean of the parts' means.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Set up the loss as ultralytics does."""
        super().__init__(*args, **kwargs)
        self._objects = torch.zeros((), device=self.device)
        self.assigner.register_forward_hook(self._count_objects)

    def get_assigned_targets_and_loss(self, preds: dict[str, Any], batch: dict[str, Any], **kwargs: Any) -> Any:
        """Return what ultralytics' method does, with the losses' divisors shared."""
        targets, loss, items = super().get_assigned_targets_and_loss(preds, batch, **kwargs)
        share = share_of(self._objects, least=1.0)
        return targets, loss * share, {name: value * share for name, value in items.items()}

    def _count_objects(self, assigner: nn.Module, inputs: Any, assigned: tuple[torch.Tensor, ...]) -> None:
        self._objects = assigned[2].sum().float()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed)
        return summed
