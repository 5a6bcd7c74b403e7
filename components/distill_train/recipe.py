"""Recipes: which distillation losses a student is trained with, how strongly, and when."""

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, get_args

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
        kind: How it goes from one to the other: along a straight line, half a cosine, or in one step at ``until``.
        until: Part of the training after which it stays at ``end``, 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float = Field(ge=0, allow_inf_nan=False)
    end: float = Field(ge=0, allow_inf_nan=False)
    kind: Literal["linear", "cosine", "step"] = "linear"
    until: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _steps_within_the_training(self) -> Self:
        if self.kind == "step" and self.until == 1:
            raise ValueError("a step needs until below 1, the part of the training at which it happens")
        return self

    def at(self, progress: float) -> float:
        """Return the value at a point of the training, 0..1."""
        part = min(progress / self.until, 1.0)
        if self.kind == "step":
            part = math.floor(part)
        elif self.kind == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part


Value = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Schedule
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Schedule
Region = Literal["all", "main", "valuable", "both"]


class _Term(BaseModel):
    """One loss of a recipe.

    Attributes:
        online: Whether it needs more of the teacher than a cache keeps.
        same_view: Whether it makes sense only where teacher and student saw the same view.
        projected: Whether it compares features of equal width, to which a projector brings the student's.
        weight: Factor, or a schedule of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    online: ClassVar[bool] = False
    same_view: ClassVar[bool] = True
    projected: ClassVar[bool] = False

    loss: str
    weight: Value

    @model_validator(mode="after")
    def _turned_on(self) -> Self:
        if max(value_at(self.weight, 0.0), value_at(self.weight, 1.0)) == 0:
            raise ValueError("weight is 0 throughout, which never turns the loss on")
        return self

    @model_validator(mode="after")
    def _never_freezing(self) -> Self:
        temperature = getattr(self, "temperature", 1.0)
        if min(value_at(temperature, 0.0), value_at(temperature, 1.0)) == 0:
            raise ValueError("temperature falls to 0, by which logits cannot be divided")
        return self


class _PointTerm(_Term):
    """A loss on what student and teacher say at anchor points, weighted by the teacher's best class score.

    Attributes:
        region: Which points count: all that the teacher's answer covers, those of LD's main or valuable region
            (:mod:`.losses.regions`), or of both.
    """

    region: Region = "all"


class BinaryKL(_PointTerm):
    """Class scores, see :mod:`.losses.binary_kl`."""

    same_view: ClassVar[bool] = False

    loss: Literal["binary_kl"]
    temperature: Temperature = 1.0


class BCKD(_PointTerm):
    """Class scores, the more the more they differ, see :mod:`.losses.bckd`.

    Attributes:
        gamma: Power of the difference, 1 or more.
    """

    same_view: ClassVar[bool] = False

    loss: Literal["bckd"]
    gamma: float = Field(default=1.0, ge=1, allow_inf_nan=False)


class SoftmaxKL(_PointTerm):
    """Class scores as one distribution, see :mod:`.losses.softmax_kl`."""

    same_view: ClassVar[bool] = False

    loss: Literal["softmax_kl"]
    temperature: Temperature = 1.0


class LocalizationDistillation(_PointTerm):
    """Box distributions, see :mod:`.losses.localization_distillation`."""

    loss: Literal["localization_distillation"]
    temperature: Temperature = 1.0


class BoxIoU(_PointTerm):
    """Decoded boxes by overlap, see :mod:`.losses.box_iou`."""

    same_view: ClassVar[bool] = False

    loss: Literal["box_iou"]


class BoxL2(_PointTerm):
    """Decoded boxes by squared distance, see :mod:`.losses.box_regression`."""

    same_view: ClassVar[bool] = False

    loss: Literal["box_l2"]


class BoxSmoothL1(_PointTerm):
    """Decoded boxes by Smooth L1, see :mod:`.losses.box_regression`.

    Attributes:
        beta: Distance in strides at which the square turns into a line.
    """

    same_view: ClassVar[bool] = False

    loss: Literal["box_smooth_l1"]
    beta: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class ScoreWeightedL2(_PointTerm):
    """Neck features at points, see :mod:`.losses.score_weighted_l2`."""

    projected: ClassVar[bool] = True

    loss: Literal["score_weighted_l2"]


class PKD(_PointTerm):
    """Neck features at points up to scale and shift, see :mod:`.losses.pkd`."""

    projected: ClassVar[bool] = True

    loss: Literal["pkd"]


class AttentionTransfer(_Term):
    """Where and in which channels the neck responds, see :mod:`.losses.attention_transfer`."""

    projected: ClassVar[bool] = True

    loss: Literal["attention_transfer"]


class _MapTerm(_Term):
    """A loss on whole feature maps, for which the teacher has to be asked at every step.

    Attributes:
        layers: Which layers are compared, by their number in both networks; by default the inputs of the Detect heads.
    """

    online: ClassVar[bool] = True
    projected: ClassVar[bool] = True

    layers: list[Annotated[int, Field(ge=0)]] = []


class FeatureMSE(_MapTerm):
    """Feature maps, see :mod:`.losses.feature_mse`."""

    loss: Literal["feature_mse"]


class ChannelAttention(_MapTerm):
    """Feature maps, the teacher's strong channels first, see :mod:`.losses.channel_attention`."""

    loss: Literal["channel_attention"]
    temperature: Temperature = 0.5


class CWD(_MapTerm):
    """Where each channel responds, see :mod:`.losses.cwd`.

    Attributes:
        normalise: Whether channels are standardised first, as PKD does.
    """

    loss: Literal["cwd"]
    temperature: Temperature = 1.0
    normalise: bool = False


class MGD(_MapTerm):
    """The teacher's map generated from a masked one of the student, see :mod:`.losses.mgd`.

    Attributes:
        ratio: Part of the positions that are masked, 0..1.
    """

    loss: Literal["mgd"]
    ratio: float = Field(default=0.65, ge=0, lt=1)


class FGD(_MapTerm):
    """Attention inside and outside of objects and global context, see :mod:`.losses.fgd`.

    Its terms carry the paper's own factors, so that ``weight`` is 1 for the paper's loss.
    """

    loss: Literal["fgd"]
    temperature: Temperature = 0.5


class LSP(_MapTerm):
    """Similarity of neighbouring positions, see :mod:`.losses.lsp`.

    Attributes:
        window: Side of the neighbourhood, odd.
    """

    # Likeness between positions has no channels.
    projected: ClassVar[bool] = False

    loss: Literal["lsp"]
    window: Literal[3, 5, 7] = 3
    temperature: Temperature = 0.1


class GradCAM(_Term):
    """Neck features where they speak for the teacher's objects, see :mod:`.losses.grad_cam`."""

    online: ClassVar[bool] = True
    projected: ClassVar[bool] = True

    loss: Literal["grad_cam"]


class CrossKD(_PointTerm):
    """The student's features through the teacher's head, see :mod:`.losses.cross_kd`.

    The loss is :mod:`.losses.binary_kl` plus :mod:`.losses.localization_distillation` on what that head says.
    """

    online: ClassVar[bool] = True
    projected: ClassVar[bool] = True

    loss: Literal["cross_kd"]
    temperature: Temperature = 1.0


_CachedTerm = (
    BinaryKL
    | BCKD
    | SoftmaxKL
    | LocalizationDistillation
    | BoxIoU
    | BoxL2
    | BoxSmoothL1
    | ScoreWeightedL2
    | PKD
    | AttentionTransfer
)
_OnlineTerm = FeatureMSE | ChannelAttention | CWD | MGD | FGD | LSP | GradCAM | CrossKD
Term = Annotated[_CachedTerm | _OnlineTerm, Field(discriminator="loss")]

TERM_TYPES: tuple[type[_Term], ...] = (*get_args(_CachedTerm), *get_args(_OnlineTerm))


class Calibration(BaseModel):
    """Brings the gradients of all terms to a common size before their weights are applied.

    Attributes:
        ratio: Norm of each term's gradient as a part of the detection loss's.
        batches: On how many of the first batches the norms are taken; their median decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    batches: int = Field(default=16, ge=1)


class RecipeTraining(BaseModel):
    """How a recipe wants the student trained, where it departs from the settings of all arms.

    Attributes:
        optimizer: An optimiser that ultralytics knows.
        lr0: Learning rate after warm-up.
        lrf: Final learning rate as a fraction of ``lr0``.
        clip_norm: Largest norm of the gradient over all parameters; ultralytics' own is 10.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["SGD", "Adam", "AdamW", "NAdam", "RAdam"] | None = None
    lr0: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lrf: float | None = Field(default=None, gt=0, le=1)
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Recipe(BaseModel):
    """A set of distillation losses.

    Attributes:
        name: What it is called in tables and lineage.
        description: What it is for.
        terms: The losses; each kind at most once.
        initial: Where a student that is named by a model YAML has its first weights from: at random, or selected from
            the teacher's (:mod:`.weight_selection`). A student that is a checkpoint keeps its own.
        supervision: Factor of the detection loss on the labels, or a schedule of it.
        projector: What brings the student's features to the teacher's width: a linear map of channels, two with a ReLU
            between them, or a linear map with such a pair beside it.
        adaptive: What the strength of each image depends on: how good the teacher is there, how far the student is from
            it, or both. It applies to the losses at anchor points.
        views_momentum: Share of the mean over an object's earlier views in the teacher's class scores for it, 0..1;
            0 takes every view as it is. See :mod:`.losses.stable_targets`.
        co_teacher: Factor of the losses that draw the student to the moving average of its own weights, or a schedule.
        calibrate: Whether and how the sizes of the gradients are evened out.
        training: What the recipe changes of the training's settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    terms: list[Term] = Field(min_length=1)
    initial: Literal["random", "teacher"] = "random"
    supervision: Value = 1.0
    projector: Literal["linear", "mlp", "residual"] = "linear"
    adaptive: list[Literal["teacher_quality", "disagreement"]] = []
    views_momentum: float = Field(default=0.0, ge=0, lt=1)
    co_teacher: Value = 0.0
    calibrate: Calibration | None = None
    training: RecipeTraining = RecipeTraining()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        kinds = [term.loss for term in self.terms]
        if repeated := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"{', '.join(sorted(repeated))} is listed more than once")
        return self

    @model_validator(mode="after")
    def _settings_have_an_object(self) -> Self:
        points = any(isinstance(term, _PointTerm) for term in self.terms)
        if self.adaptive and not points:
            raise ValueError("adaptive has nothing to act on: no term is a loss at anchor points")
        if self.views_momentum and not any(isinstance(term, BinaryKL | BCKD | SoftmaxKL) for term in self.terms):
            raise ValueError("views_momentum has nothing to act on: no term compares class scores")
        if self.projector != "linear" and any(isinstance(term, AttentionTransfer) for term in self.terms):
            raise ValueError("attention_transfer projects means over positions, for which the projector must be linear")
        return self

    @property
    def needs_same_view(self) -> list[str]:
        """The losses that make sense only where teacher and student saw the same view."""
        return [term.loss for term in self.terms if term.same_view]

    @property
    def needs_online(self) -> list[str]:
        """The losses that need more of the teacher than a cache keeps."""
        return [term.loss for term in self.terms if term.online]

    @property
    def needs_one_process(self) -> list[str]:
        """The settings that keep a state which processes that train together would not share."""
        kept = {"views_momentum": self.views_momentum != 0, "calibrate": self.calibrate is not None}
        return [name for name, wanted in kept.items() if wanted]

    @property
    def uses_point_features(self) -> bool:
        """Whether a loss compares neck features at anchor points."""
        return any(isinstance(term, ScoreWeightedL2 | PKD) for term in self.terms)

    @property
    def unread(self) -> tuple[str, ...]:
        """Beginnings of the names of what no loss looks at in a teacher's answers."""
        attention = any(isinstance(term, AttentionTransfer) for term in self.terms)
        return ("features",) * (not self.uses_point_features) + ("attention", "channels") * (not attention)


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
