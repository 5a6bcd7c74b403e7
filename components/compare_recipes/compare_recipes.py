"""Compares the recipes of an ablation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolo_distill.components.compare_recipes.comparison import (
    ComparedRecipe,
    RecipeComparison,
    RecipeDifference,
    adjusted_level,
    decide,
    pairs,
    write_comparison,
)
from yolo_distill.components.compare_recipes.report import report
from yolo_distill.components.compare_recipes.summary import summary
from yolo_distill.components.compare_recipes.trials import Trial, read_trials
from yolo_distill.components.evaluate_map.difference import LEVEL, RESAMPLES, score_evaluations
from yolo_distill.components.evaluate_map.paired import Difference, ModelScores, Resamples, paired_difference
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.progress import report_progress

# Draws beyond either end of an interval, without which nobody knows where it ends.
_DRAWS_BEYOND = 10


def compare_recipes(
    evaluations: Sequence[Path], histories: Sequence[Path], table: Path, page: Path, comparison: Path
) -> RecipeComparison:
    """Tell which recipe is best, if that can be told.

    Args:
        evaluations: Evaluation artifacts, one for each recipe and seed, in any order.
        histories: Training histories of the same models, in any order.
        table: Where the Markdown file goes.
        page: Where the HTML file goes.
        comparison: Where the comparison artifact goes.

    Returns:
        The figures, as written.

    Raises:
        InputError: An artifact is not what it should be, or they do not belong together.
    """
    arms = read_trials(evaluations, histories)
    result = build_comparison(arms)
    content = report(result, arms)
    write_text(table, summary(result).markdown())
    write_text(page, content)
    with new_directory(comparison) as folder:
        write_comparison(folder, result)
    return result


def build_comparison(arms: dict[str, list[Trial]]) -> RecipeComparison:
    """Rank recipes and compare every pair by a paired bootstrap.

    Args:
        arms: The trials by recipe, in the same order of seeds.

    Raises:
        InputError: The evaluations are not about the same labels.
    """
    first = next(iter(arms.values()))[0].evaluation
    recipes = sorted((_recipe(name, trials) for name, trials in arms.items()), key=lambda one: -one.map)
    ranked = [recipe.name for recipe in recipes]
    level, seeds = adjusted_level(len(ranked)), list(recipes[0].by_seed)
    draws = max(RESAMPLES, round(_DRAWS_BEYOND / ((1 - level) / 2)))
    resamples = Resamples.draw(first.images, len(seeds), draws)
    scores = _scores(arms, resamples)
    differences = [
        _difference(
            pair,
            paired_difference(scores[pair[0]], scores[pair[1]], resamples, LEVEL),
            paired_difference(scores[pair[0]], scores[pair[1]], resamples, level),
            list(first.per_class),
        )
        for pair in pairs(ranked)
    ]
    return RecipeComparison(
        dataset=first.dataset,
        split=first.split,
        images=first.images,
        boxes=sum(entry.boxes for entry in first.per_class.values()),
        settings=first.settings,
        architecture=first.model.architecture,
        seeds=seeds,
        resamples=draws,
        adjusted_level=level,
        recipes=recipes,
        differences=differences,
        winner=decide(ranked, differences),
    )


def _recipe(name: str, trials: list[Trial]) -> ComparedRecipe:
    evaluations = {trial.seed: trial.evaluation for trial in trials}
    maps = {seed: one.map for seed, one in evaluations.items() if one.map is not None}
    map50s = [one.map50 for one in evaluations.values() if one.map50 is not None]
    if len(maps) < len(trials) or len(map50s) < len(trials):
        raise InputError(f"evaluations of {name}", "have no mAP", "Evaluate on a split with labelled boxes")
    per_class = {}
    for label in trials[0].evaluation.per_class:
        known = [ap for one in evaluations.values() if (ap := one.per_class[label].ap) is not None]
        per_class[label] = float(np.mean(known)) if known else None
    return ComparedRecipe(
        name=name,
        map=float(np.mean(list(maps.values()))),
        map50=float(np.mean(map50s)),
        by_seed=maps,
        models={seed: one.model.digest for seed, one in evaluations.items()},
        per_class=per_class,
    )


def _scores(arms: dict[str, list[Trial]], resamples: Resamples) -> dict[str, list[ModelScores]]:
    scores: dict[str, list[ModelScores]] = {name: [] for name in arms}
    trials = [(name, trial.folder) for name, arm in arms.items() for trial in arm]
    measured = score_evaluations([folder for _, folder in trials], resamples)
    for done, ((name, _), score) in enumerate(zip(trials, measured, strict=True), 1):
        scores[name].append(score)
        report_progress(done, len(trials), "model")
    return scores


def _difference(
    pair: tuple[str, str], difference: Difference, adjusted: Difference, classes: list[str]
) -> RecipeDifference:
    return RecipeDifference(
        recipe=pair[0],
        against=pair[1],
        map=difference.map,
        adjusted=adjusted.map,
        map50=difference.map50,
        per_class=dict(zip(classes, difference.per_class, strict=True)),
    )
