"""The comparison of recipes in words and rows."""

from yolo_distill.components.compare_recipes.comparison import (
    NO_DIFFERENCE,
    ComparedRecipe,
    RecipeComparison,
    RecipeDifference,
)
from yolo_distill.components.distill_train.recipe import PLAIN
from yolo_distill.components.evaluate_map.difference import LEVEL, points, span
from yolo_distill.components.evaluate_map.paired import Interval
from yolo_distill.components.shared.summary import Summary

# With fewer, their spread is not much more than a guess.
_FEW_SEEDS = 5


def summary(comparison: RecipeComparison) -> Summary:
    """Return a comparison's table, findings and caveats."""
    gains = {gain.recipe: gain for gain in comparison.gains}
    adjusted = comparison.adjusted_level > LEVEL
    return Summary(
        title="Comparison of distillation recipes",
        columns=(
            "Recipe",
            "mAP50-95",
            "by seed",
            "mAP50",
            "against plain",
            f"{100 * LEVEL:g} % interval",
            *(["adjusted interval"] if adjusted else []),
        ),
        text_columns=1,
        rows=[_row(recipe, gains.get(recipe.name), adjusted=adjusted) for recipe in comparison.recipes],
        findings=_findings(comparison),
        caveats=_caveats(comparison),
    )


def _row(recipe: ComparedRecipe, gain: RecipeDifference | None, *, adjusted: bool) -> tuple[str, ...]:
    intervals = [gain.map, *([gain.adjusted] if adjusted else [])] if gain else []
    return (
        recipe.name,
        f"{100 * recipe.map:.1f}",
        ", ".join(f"{100 * value:.1f}" for value in recipe.by_seed.values()),
        f"{100 * recipe.map50:.1f}",
        points(gain.map.estimate) if gain else "",
        *(map(span, intervals) if gain else [""] * (2 if adjusted else 1)),
    )


def _findings(comparison: RecipeComparison) -> list[str]:
    best = comparison.recipes[0].name
    rivals = [_ahead(one, best) for one in comparison.rivals]
    if comparison.winner != NO_DIFFERENCE:
        verdict = f"Winner: {best}, {' and '.join(rivals)}."
    else:
        open_ones = [one for one in comparison.rivals if not one.adjusted.excludes_zero]
        names = " or ".join(_other(one, best) for one in open_ones)
        verdict = (
            f"No difference: {best} ranks first, but chance may have put it before {names}: {' and '.join(rivals)}."
        )
    gained = [one.recipe for one in comparison.gains if one.adjusted.low > 0]
    return [verdict, f"Better than plain training, beyond chance: {', '.join(gained) or 'none'}."]


def _ahead(difference: RecipeDifference, best: str) -> str:
    ahead = difference.adjusted
    if difference.against == best:
        ahead = Interval(estimate=-ahead.estimate, low=-ahead.high, high=-ahead.low)
    return f"{points(ahead.estimate)} points mAP50-95 against {_other(difference, best)} ({span(ahead)})"


def _other(difference: RecipeDifference, recipe: str) -> str:
    return difference.against if difference.recipe == recipe else difference.recipe


def _caveats(comparison: RecipeComparison) -> list[str]:
    seeds, pairs = len(comparison.seeds), len(comparison.differences)
    caveats = [
        f"Rule: recipes are ranked by mean mAP50-95 over seeds. The first wins if its differences to the second and to "
        f"{PLAIN} both exclude 0; otherwise there is no difference.",
        f"Intervals: paired bootstrap, percentiles of {comparison.resamples} draws of images"
        f"{', the same for all models, and of seeds' if seeds > 1 else ', the same for all models'}. They are about "
        "other images of this kind" + (" and other seeds." if seeds > 1 else " alone."),
    ]
    if pairs > 1:
        caveats.append(
            f"The intervals that decide are adjusted to hold for all {pairs} pairs at once (Bonferroni, "
            f"{100 * comparison.adjusted_level:.2f} % each), because the data decide which pair is looked at."
        )
    if seeds == 1:
        caveats.append("One seed: another one may turn the result, and no interval here knows. Train with several.")
    elif seeds < _FEW_SEEDS:
        caveats.append(f"{seeds} seeds tell little about how much seeds differ: the intervals are rather too narrow.")
    caveats.append(
        f"Accuracy: {comparison.images} images with {comparison.boxes} boxes of the {comparison.split} split, "
        f"{comparison.settings.protocol}, in per cent, of {comparison.architecture}. On the images that it was chosen "
        "by, the first recipe's own figure is flattering: confirm it on others."
    )
    return caveats
