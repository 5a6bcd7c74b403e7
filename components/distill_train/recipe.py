"""Recipes: which distillation losses a student is trained with, how strongly, and when."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yolo_distill.components.shared.errors import InputError

RECIPES_FOLDER = Path(__file__).parent / "recipes"
# In place of a recipe's name: train without a teacher.
PLAIN = "plain"


class Schedule(BaseModel):
    """A value that changes over a training.

    Attributes:
        start: Value at the first step.
        end: Value at the last step.
        kind: How it goes from one to the other: along a straight line or half a cosine.
        until: Part of the training after which it stays at ``end``, 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float = Field(ge=0, allow_inf_nan=False)
    end: float = Field(ge=0, allow_inf_nan=False)
    kind: Literal["linear", "cosine"] = "linear"
    until: float = Field(default=1.0, gt=0, le=1)

    def at(self, progress: float) -> float:
        """Return the value at a point of the training, 0..1."""
        part = min(progress / self.until, 1.0)
        if self.kind == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part


Value = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Schedule


class _Term(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Value

    @model_validator(mode="after")
    def _turned_on(self) -> Self:
        if max(value_at(self.weight, 0.0), value_at(self.weight, 1.0)) == 0:
            raise ValueError("weight is 0 throughout, which never turns the loss on")
        return self


class BinaryKL(_Term):
    """Class scores, see :mod:`.losses.binary_kl`.

    Attributes:
        weight: Factor, or a schedule of it.
        temperature: Temperature, or a schedule of it.
    """

    loss: Literal["binary_kl"]
    temperature: Value = 1.0


class LocalizationDistillation(_Term):
    """Box distributions, see :mod:`.losses.localization_distillation`.

    Attributes:
        weight: Factor, or a schedule of it.
        temperature: Temperature, or a schedule of it.
    """

    loss: Literal["localization_distillation"]
    temperature: Value = 1.0


class BoxIoU(_Term):
    """Decoded boxes, see :mod:`.losses.box_iou`.

    Attributes:
        weight: Factor, or a schedule of it.
    """

    loss: Literal["box_iou"]


class ScoreWeightedL2(_Term):
    """Neck features, see :mod:`.losses.score_weighted_l2`.

    Attributes:
        weight: Factor, or a schedule of it.
    """

    loss: Literal["score_weighted_l2"]


class PKD(_Term):
    """Neck features, see :mod:`.losses.pkd`.

    Attributes:
        weight: Factor, or a schedule of it.
    """

    loss: Literal["pkd"]


class AttentionTransfer(_Term):
    """Where and in which channels the neck responds, see :mod:`.losses.attention_transfer`.

    Attributes:
        weight: Factor, or a schedule of it.
    """

    loss: Literal["attention_transfer"]


Term = Annotated[
    BinaryKL | LocalizationDistillation | BoxIoU | ScoreWeightedL2 | PKD | AttentionTransfer,
    Field(discriminator="loss"),
]


class Recipe(BaseModel):
    """A set of distillation losses.

    Attributes:
        name: What it is called in tables and lineage.
        description: What it is for.
        terms: The losses; each kind at most once.
        supervision: Factor of the detection loss on the labels, or a schedule of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    terms: list[Term] = Field(min_length=1)
    supervision: Value = 1.0

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        kinds = [term.loss for term in self.terms]
        if repeated := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"{', '.join(sorted(repeated))} is listed more than once")
        return self

    @property
    def needs_same_view(self) -> list[str]:
        """The losses that make sense only where teacher and student saw the same view."""
        return [term.loss for term in self.terms if not isinstance(term, BinaryKL | BoxIoU)]

    @property
    def needs_online(self) -> list[str]:
        """The losses that no cache can serve, because they need more of the teacher's answers than it keeps."""
        return []

    @property
    def uses_point_features(self) -> bool:
        """Whether a loss compares neck features at anchor points."""
        return any(isinstance(term, ScoreWeightedL2 | PKD) for term in self.terms)

    @property
    def uses_features(self) -> bool:
        """Whether a loss compares neck features or their channels, which needs projectors."""
        return any(isinstance(term, ScoreWeightedL2 | PKD | AttentionTransfer) for term in self.terms)


def value_at(value: float | Schedule, progress: float) -> float:
    """Return a value or the state of its schedule at a point of the training, 0..1."""
    return value.at(progress) if isinstance(value, Schedule) else value


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: One that comes with the package, by name, or the path of a YAML file.

    Raises:
        InputError: There is no such recipe, or it is not valid; the message names the field.
    """
    path = RECIPES_FOLDER / f"{name}.yaml" if name in recipe_names() else Path(name)
    if not path.is_file() or path.suffix not in {".yaml", ".yml"}:
        raise InputError(
            name, "there is no such recipe", f"Give the path of a YAML file or one of: {', '.join(recipe_names())}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Recipe.model_validate(content)
    except yaml.YAMLError as error:
        raise InputError(path, f"is not valid YAML: {error}", "Mend the file") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise InputError(path, f"is not a valid recipe: {problems}", "Mend the named fields") from error
