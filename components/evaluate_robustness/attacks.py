"""Adversarial images: the least change of pixels that makes a detector worst.

FGSM takes one step along the sign of the gradient of the detection loss (Goodfellow et al. 2015, "Explaining and
Harnessing Adversarial Examples"); PGD takes many small ones from a random start and stays within the same distance
(Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks"). No pixel changes by more than
epsilon (L-infinity), and none leaves 0..1. Noise of the same size is the control: what it costs is no attack's doing.

The loop is our own: torchattacks refuses detectors, and ART wants an estimator around the loss that is longer than it.
"""

from collections.abc import Sequence

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.evaluate_robustness.robustness import Attack
from yolo_distill.components.shared.detector import Placement

# Madry et al. walk this many times epsilon in all, so that the way across the ball is not too long.
_PGD_PATH = 2.5


class Attacker:
    """Makes adversarial images by the loss of a network that is known in full.

    Args:
        network: In evaluation mode; its normalisation layers stay as they are.
        steps: Steps of PGD, at least 1.
    """

    def __init__(self, network: DetectionModel, steps: int) -> None:
        # The gains of the loss's parts; a checkpoint need not have them.
        network.args = get_cfg()
        self._network = network.requires_grad_(False)
        self._steps = steps

    def attack(
        self,
        attack: Attack,
        epsilon: float,
        batch: np.ndarray,
        placements: Sequence[Placement],
        labels: Sequence[tuple[np.ndarray, np.ndarray]],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """Change images so that the network gets them wrong.

        Args:
            attack: How.
            epsilon: Largest change of a pixel, 0..1.
            batch: Letterboxed RGB images in 0..1, float32 [B, 3, H, W].
            placements: Where each image lies in it. The padding is no part of a picture and is left alone.
            labels: Each image's corners x1, y1, x2, y2 in its own pixels, [n, 4], and class indices, int64 [n].
            seeds: Seed of each image's randomness.

        Returns:
            The changed images, float32 [B, 3, H, W] in 0..1.
        """
        clean = torch.from_numpy(batch)
        reach = epsilon * _inside(placements, clean)
        targets = _targets(labels, placements, clean)
        if attack == "noise":
            changed = clean + reach * torch.from_numpy(_random(seeds, batch)).sign()
        elif attack == "fgsm":
            changed = clean + reach * self._gradient(clean, targets).sign()
        else:
            changed = self._descend(clean, reach, targets, torch.from_numpy(_random(seeds, batch)))
        return np.ascontiguousarray(changed.clamp(0, 1).numpy())

    def _descend(
        self, clean: torch.Tensor, reach: torch.Tensor, targets: dict[str, torch.Tensor], start: torch.Tensor
    ) -> torch.Tensor:
        low, high = (clean - reach).clamp(0, 1), (clean + reach).clamp(0, 1)
        changed = (clean + reach * start).clamp(low, high)
        for _ in range(self._steps):
            step = _PGD_PATH / self._steps * reach * self._gradient(changed, targets).sign()
            changed = (changed + step).clamp(low, high)
        return changed

    def _gradient(self, images: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        images = images.detach().requires_grad_()
        losses, _ = self._network.loss({"img": images, **targets})
        (gradient,) = torch.autograd.grad(losses.sum(), images)
        return gradient


def _inside(placements: Sequence[Placement], batch: torch.Tensor) -> torch.Tensor:
    """Return 1 where the network input shows the image and 0 in its padding, [B, 1, H, W]."""
    mask = torch.zeros(len(batch), 1, *batch.shape[2:])
    for plane, placement in zip(mask, placements, strict=True):
        left, top, right, bottom = _corners(np.array([[0, 0, placement.width, placement.height]]), placement)[0]
        plane[:, round(top) : round(bottom), round(left) : round(right)] = 1
    return mask


def _targets(
    labels: Sequence[tuple[np.ndarray, np.ndarray]], placements: Sequence[Placement], batch: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the labels as ultralytics' loss wants them: normalised centre, width and height in the network input."""
    height, width = batch.shape[2:]
    corners = [_corners(boxes, placement) for (boxes, _), placement in zip(labels, placements, strict=True)]
    every = np.concatenate(corners) / [width, height, width, height]
    boxes = np.concatenate([(every[:, :2] + every[:, 2:]) / 2, every[:, 2:] - every[:, :2]], axis=1)
    owners = np.repeat(np.arange(len(labels)), [len(classes) for _, classes in labels])
    return {
        "batch_idx": torch.from_numpy(owners.astype(np.float32)),
        "cls": torch.from_numpy(np.concatenate([classes for _, classes in labels]).astype(np.float32)),
        "bboxes": torch.from_numpy(boxes.astype(np.float32)),
    }


def _corners(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    gain = np.array([placement.gain_x, placement.gain_y] * 2)
    moved: np.ndarray = boxes * gain + [placement.left, placement.top] * 2
    return moved


def _random(seeds: Sequence[int], batch: np.ndarray) -> np.ndarray:
    """Return numbers in -1..1 for every pixel, which depend on the image's seed alone."""
    draws = [np.random.default_rng(seed).uniform(-1, 1, batch.shape[1:]) for seed in seeds]
    return np.stack(draws).astype(np.float32)
