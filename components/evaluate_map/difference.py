"""How far two evaluated models are apart, and whether that is more than chance."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.evaluate_map.evaluation import CONDITIONS, read_coco_files, read_evaluation
from yolo_distill.components.evaluate_map.matches import find_matches
from yolo_distill.components.evaluate_map.paired import (
    Interval,
    ModelScores,
    Resamples,
    paired_difference,
    score_resamples,
)
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.summary import Summary

RESAMPLES = 2000
LEVEL = 0.95


class ModelDifference(BaseModel):
    """What one model is ahead of another on the same images, in mAP of -1..1.

    Attributes:
        model: The one.
        against: The other.
        images: Labelled images that both were evaluated on.
        resamples: Draws of the bootstrap.
        level: Confidence level of each interval, 0..1.
        map: Difference of mAP50-95.
        map50: Difference of mAP50.
        per_class: Difference of AP50-95 by class, ``None`` where no box is labelled with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    against: str
    images: int
    resamples: int
    level: float
    map: Interval
    map50: Interval
    per_class: dict[str, Interval | None]


def compare_evaluations(model: Path, against: Path) -> ModelDifference:
    """Compare two models by a paired bootstrap over images.

    Args:
        model: Evaluation artifact of the one.
        against: Evaluation artifact of the other.

    Raises:
        InputError: A folder is no evaluation, or they are not of the same images, labels and settings.
    """
    first, second = read_evaluation(model), read_evaluation(against)
    for what in CONDITIONS:
        own, expected = getattr(first, what), getattr(second, what)
        if own != expected:
            raise InputError(model, f"its {what} is {own}, that of {against} is {expected}", "Evaluate both alike")
    resamples = Resamples.draw(first.images, 1, RESAMPLES)
    scores = score_evaluations([model, against], resamples)
    difference = paired_difference([next(scores)], [next(scores)], resamples, LEVEL)
    return ModelDifference(
        model=first.model.name,
        against=second.model.name,
        images=first.images,
        resamples=RESAMPLES,
        level=LEVEL,
        map=difference.map,
        map50=difference.map50,
        per_class=dict(zip(first.per_class, difference.per_class, strict=True)),
    )


def score_evaluations(folders: Iterable[Path], resamples: Resamples) -> Iterator[ModelScores]:
    """Measure evaluated models on every draw of images, one after the other.

    Args:
        folders: Evaluation artifacts.
        resamples: The draws.

    Yields:
        Each model's scores.

    Raises:
        InputError: An evaluation cannot be read or has other labels than the first.
    """
    expected = None
    for folder in folders:
        truth, detections = read_coco_files(folder)
        if truth != (expected := expected or truth):
            raise InputError(folder, "has other labels than the first evaluation", "Evaluate all again")
        yield score_resamples(find_matches(truth, detections), resamples)


def points(value: float) -> str:
    """Return a difference of mAP in points of 100, with its sign."""
    return f"{100 * value:+z.1f}"


def span(interval: Interval) -> str:
    """Return the ends of an interval in points of 100."""
    return f"{points(interval.low)} to {points(interval.high)}"


def difference_summary(difference: ModelDifference) -> Summary:
    """Return a difference's table and what follows from it."""
    overall = [("mAP50-95", difference.map), ("mAP50", difference.map50)]
    classes = [(f"{name}, AP50-95", one) for name, one in difference.per_class.items() if one]
    ahead = difference.map
    verdict = "more than chance" if ahead.excludes_zero else "chance is not ruled out"
    return Summary(
        title=f"{difference.model} against {difference.against}",
        columns=("Figure", "Difference", f"{100 * difference.level:g} % interval"),
        text_columns=1,
        rows=[(name, points(one.estimate), span(one)) for name, one in [*overall, *classes]],
        findings=[f"{points(ahead.estimate)} points mAP50-95 ({span(ahead)}): {verdict}."],
        caveats=[
            f"Paired bootstrap, percentiles of {difference.resamples} draws of {difference.images} images, in points. "
            "It is about other images of this kind; another training may turn the result, and no interval here knows. "
            "Intervals of classes are not adjusted: of twenty, one excludes 0 by chance."
        ],
    )
