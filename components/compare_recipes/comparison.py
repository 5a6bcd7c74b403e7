"""The comparison of recipes: who is ahead of whom, by how much, and whether that is more than chance.

Layout of the artifact::

    comparison.json   every figure of the table and the report

The rule: recipes are ranked by their mean mAP50-95 over seeds. The first one wins if the intervals of its difference to
the second and to plain training both lie above 0; otherwise there is no difference. The intervals that decide are
adjusted (Bonferroni) for all pairs of recipes, because the data decide which pair is looked at.
"""

from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.distill_train.recipe import PLAIN
from yolo_distill.components.evaluate_map.difference import LEVEL
from yolo_distill.components.evaluate_map.evaluation import EvaluationSettings
from yolo_distill.components.evaluate_map.paired import Interval
from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.records import read_record

COMPARISON_NAME = "comparison.json"
NO_DIFFERENCE = "no difference"


class ComparedRecipe(BaseModel):
    """One recipe's row.

    Attributes:
        name: The recipe, or ``plain``.
        map: Mean mAP50-95 over seeds, 0..1.
        map50: Mean mAP50 over seeds.
        by_seed: mAP50-95 by seed.
        models: Digest of each model by seed.
        per_class: Mean AP50-95 over seeds by class, ``None`` where no box is labelled with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    map: float
    map50: float
    by_seed: dict[int, float]
    models: dict[int, str]
    per_class: dict[str, float | None]


class RecipeDifference(BaseModel):
    """What one recipe is ahead of another, in mAP of -1..1, as the mean over seeds.

    Attributes:
        recipe: The one that ranks higher; against plain training always the recipe.
        against: The other.
        map: Difference of mAP50-95 with its interval at level 0.95.
        adjusted: The same with its interval at the adjusted level, which decides.
        map50: Difference of mAP50, at level 0.95.
        per_class: Difference of AP50-95 by class, at level 0.95.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    against: str
    map: Interval
    adjusted: Interval
    map50: Interval
    per_class: dict[str, Interval | None]


class RecipeComparison(BaseModel):
    """Recipes that were tried on the same data under the same conditions.

    Attributes:
        dataset: The dataset's digest.
        split: The split that accuracy was measured on.
        images: Labelled images in it.
        boxes: Labelled boxes in it.
        settings: How detections were made and counted.
        architecture: What every student was built from.
        seeds: Seeds that every recipe was trained with.
        resamples: Draws of the bootstrap.
        adjusted_level: Confidence level of each adjusted interval.
        recipes: The recipes, the best first.
        differences: Every pair of them.
        winner: The recipe that won by the rule above, or ``no difference``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    dataset: str
    split: Split
    images: int
    boxes: int
    settings: EvaluationSettings
    architecture: str
    seeds: list[int]
    resamples: int
    adjusted_level: float
    recipes: list[ComparedRecipe]
    differences: list[RecipeDifference]
    winner: str

    @property
    def rivals(self) -> list[RecipeDifference]:
        """What the first recipe must be ahead of to win: its differences to the second and to plain training."""
        return rivals([recipe.name for recipe in self.recipes], self.differences)

    @property
    def gains(self) -> list[RecipeDifference]:
        """What every recipe is ahead of plain training, the best first."""
        return [one for recipe in self.recipes for one in self.differences if _is_gain(one, recipe.name)]

    @property
    def metrics(self) -> dict[str, float]:
        """The main figures by name: mAP 0..1, gains over plain training in points of 100 with their intervals."""
        figures = {f"{one.name}.{what}": getattr(one, what) for one in self.recipes for what in ("map", "map50")}
        for gain in self.gains:
            ends = {"": gain.map.estimate, "_low": gain.map.low, "_high": gain.map.high}
            figures |= {f"{gain.recipe}.gain_points{end}": 100 * value for end, value in ends.items()}
        return {name: round(value, 6) for name, value in figures.items()}


def pairs(ranked: list[str]) -> list[tuple[str, str]]:
    """Return every pair of recipes, the one that ranks higher first; of a recipe and plain training, the recipe."""
    return [(b, a) if a == PLAIN else (a, b) for a, b in combinations(ranked, 2)]


def adjusted_level(recipes: int) -> float:
    """Return the level of each interval at which those of all pairs hold at once with :data:`LEVEL` (Bonferroni)."""
    return 1 - (1 - LEVEL) / (recipes * (recipes - 1) / 2)


def rivals(ranked: list[str], differences: list[RecipeDifference]) -> list[RecipeDifference]:
    """Return the differences of the first recipe to the second and to plain training."""
    best, wanted = ranked[0], {ranked[1], PLAIN}
    return [one for one in differences if best in (one.recipe, one.against) and wanted & {one.recipe, one.against}]


def decide(ranked: list[str], differences: list[RecipeDifference]) -> str:
    """Name the winner by the rule of this module.

    Args:
        ranked: The recipes, the best first.
        differences: Every pair.

    Returns:
        The winner's name, or :data:`NO_DIFFERENCE`.
    """
    told_apart = all(one.adjusted.excludes_zero for one in rivals(ranked, differences))
    return ranked[0] if told_apart else NO_DIFFERENCE


def write_comparison(folder: Path, comparison: RecipeComparison) -> None:
    """Write a comparison into its artifact."""
    write_text(folder / COMPARISON_NAME, comparison.model_dump_json(indent=2) + "\n")


def read_comparison(folder: Path) -> RecipeComparison:
    """Read a comparison from its artifact.

    Raises:
        InputError: The folder is no comparison artifact.
    """
    return read_record(
        folder,
        COMPARISON_NAME,
        RecipeComparison,
        artifact="a comparison of recipes",
        record="comparison of recipes",
        origin="Give the output of compare-recipes",
        again="Compare again",
    )


def _is_gain(difference: RecipeDifference, recipe: str) -> bool:
    return difference.recipe == recipe and difference.against == PLAIN
