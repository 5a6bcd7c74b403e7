"""Is a difference of mAP more than chance? A paired bootstrap over images and trainings.

Another set of images and another seed would have given other figures. The bootstrap draws such sets from the ones at
hand, with replacement: images and, independently, seeds (the pigeonhole bootstrap, Owen 2007, which does not
understate the spread where two things vary at once). Both arms are measured on the same draw, so that what makes
images or seeds hard for either cancels out. Percentiles of the differences are the interval.

An interval at level 0.95 is meant to hold the true difference in 95 of 100 repetitions of the whole experiment: other
images of the same kind, other seeds, the same recipes and training images. With a handful of seeds it is rather too
narrow, since their spread is then known poorly; with one seed, it is about other images alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from yolo_distill.components.evaluate_map.matches import ClassMatches, average_precision


class Interval(BaseModel):
    """A difference and how far chance may have carried it, in mAP of -1..1.

    Attributes:
        estimate: The difference that was measured.
        low: Lower end of the interval.
        high: Upper end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether chance alone is ruled out at the interval's level."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Resamples:
    """Draws of images and seeds. The first of R is the data as they are.

    Attributes:
        images: [R, I] how often each image is drawn.
        seeds: [R, S] share of each seed in the draw, adding up to 1.
    """

    images: np.ndarray
    seeds: np.ndarray

    @classmethod
    def draw(cls, images: int, seeds: int, resamples: int, seed: int = 0) -> Self:
        """Draw resamples.

        Args:
            images: How many images there are.
            seeds: How many seeds each arm was trained with.
            resamples: How many draws.
            seed: Seed of the draws.
        """
        random = np.random.default_rng(seed)
        image_draws = random.multinomial(images, np.full(images, 1 / images), resamples)
        seed_draws = random.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
        return cls(
            np.concatenate([np.ones((1, images), dtype=np.int64), image_draws]),
            np.concatenate([np.full((1, seeds), 1 / seeds), seed_draws / seeds]),
        )


@dataclass(frozen=True)
class ModelScores:
    """One model's average precision on every draw of images; NaN where a draw has no box of a class.

    Attributes:
        ap: [R, C] by class, over IoU 0.50:0.95, 0..1.
        ap50: [R, C] by class, at IoU 0.50.
    """

    ap: np.ndarray
    ap50: np.ndarray


@dataclass(frozen=True)
class Difference:
    """What one arm is ahead of another, as the mean over seeds.

    Attributes:
        map: Difference of mAP50-95.
        map50: Difference of mAP50.
        per_class: Difference of AP50-95 by class index, ``None`` where no box is labelled with the class.
    """

    map: Interval
    map50: Interval
    per_class: list[Interval | None]


def score_resamples(matches: Sequence[ClassMatches], resamples: Resamples) -> ModelScores:
    """Measure a model on every draw of images.

    Args:
        matches: Its matches by class index.
        resamples: The draws.
    """
    by_class = np.stack([average_precision(one, resamples.images) for one in matches], axis=1)
    return ModelScores(by_class.mean(axis=2), by_class[:, :, 0])


def paired_difference(
    first: Sequence[ModelScores], second: Sequence[ModelScores], resamples: Resamples, level: float
) -> Difference:
    """Compare two arms.

    Args:
        first: One model a seed.
        second: The other arm's models, in the same order of seeds.
        resamples: The draws that they were measured on.
        level: Confidence level of each interval, 0..1.

    Returns:
        The first less the second.
    """
    ap = _mean_over_seeds([one.ap for one in first], resamples) - _mean_over_seeds([o.ap for o in second], resamples)
    ap50 = [_mean_over_seeds([one.ap50 for one in arm], resamples) for arm in (first, second)]
    return Difference(
        map=_interval(_mean_over_classes(ap), level),
        map50=_interval(_mean_over_classes(ap50[0] - ap50[1]), level),
        per_class=[None if np.isnan(one[0]) else _interval(one, level) for one in ap.T],
    )


def _mean_over_seeds(models: Sequence[np.ndarray], resamples: Resamples) -> np.ndarray:
    mean: np.ndarray = np.einsum("rs,src->rc", resamples.seeds, np.stack(models))
    return mean


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    # As COCO does, over the classes that the drawn images have boxes of; at least one class, unless nothing was drawn.
    known = ~np.isnan(values)
    mean: np.ndarray = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return mean


def _interval(differences: np.ndarray, level: float) -> Interval:
    measured, drawn = differences[0], differences[1:]
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=float(measured), low=float(low), high=float(high))
