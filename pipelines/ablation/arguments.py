"""The parameters of the ablation pipeline: their defaults, ranges, and what they may name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from yolo_distill.components.distill_train.recipe import PLAIN, load_recipe
from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.distillation.arguments import TrainingArguments, check_recipe, checked_training
from yolo_distill.pipelines.plan import Argument

Trial = dict[str, str | int]


class AblationArguments(TrainingArguments):
    """Arguments of the ablation.

    Attributes:
        recipes: What is compared: recipes by name or path, and ``plain``, training without a teacher.
        seeds: Seeds that each of them is trained with.
    """

    recipes: list[str] = Field(default=[PLAIN, "builtin", "default"], min_length=2)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0, 1, 2], min_length=1)

    @property
    def pipeline_arguments(self) -> dict[str, Argument]:
        """The pipeline's own parameters: every recipe with every seed is a trial."""
        return {**self.model_dump(exclude={"recipes", "seeds"}), "trials": plan_trials(self.recipes, self.seeds)}


def plan_trials(recipes: list[str], seeds: list[int]) -> list[Trial]:
    """Return the trainings of an ablation: what each student is called, its recipe and its seed."""
    return [
        {"student": f"{Path(recipe).stem} {seed}", "recipe": recipe, "seed": seed}
        for seed in seeds
        for recipe in recipes
    ]


def checked_arguments(values: Mapping[str, object]) -> AblationArguments:
    """Check everything about the arguments that can be told without opening data or models.

    Args:
        values: Arguments by name; those that are ``None`` get the default for the data at hand.

    Returns:
        The arguments, paths made absolute.

    Raises:
        InputError: A value is out of range, or names something that does not exist.
    """
    arguments = checked_training(AblationArguments, values)
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise InputError(f"--seeds {_joined(arguments.seeds)}", "has one more than once", "Give each seed once")
    names = [recipe if recipe == PLAIN else load_recipe(recipe).name for recipe in arguments.recipes]
    option = f"--recipes {_joined(arguments.recipes)}"
    if PLAIN not in arguments.recipes:
        raise InputError(option, "lack the fair arm, a student without a teacher", f"Add {PLAIN}")
    if len(set(names)) < len(names):
        raise InputError(option, f"are called {_joined(names)}, some the same", "Give each recipe a name of its own")
    recipes = [recipe if recipe == PLAIN else check_recipe(recipe) for recipe in arguments.recipes]
    return arguments.model_copy(update={"recipes": recipes})


def _joined(values: list[str] | list[int]) -> str:
    return ",".join(map(str, values))
