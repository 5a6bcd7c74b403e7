"""The parameters of the distillation pipeline: their defaults, ranges, and what they may name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, TypeVar
from urllib.parse import urlsplit
from zipfile import is_zipfile

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from yolo_distill.components.distill_train.recipe import RECIPES_FOLDER, load_recipe, recipe_names
from yolo_distill.components.shared import lineage
from yolo_distill.components.shared.errors import InputError, spoken
from yolo_distill.components.teacher_cache_shards.part import spell_parts
from yolo_distill.pipelines.plan import Argument

# The model YAMLs that ultralytics knows by name and whose heads predict box distributions.
_STOCK_MODEL = re.compile(r"yolo(v8|11|12)[nsmlx]\.yaml|yolov8[nsmlx]-ghost\.yaml")


class TrainingArguments(BaseModel):
    """Arguments of every pipeline that trains; the defaults are sized for the embedded digits on two cores.

    Attributes:
        source: Images and labels: ``digits``, a folder, an archive, or an http(s) or s3 address.
        source_digest: Changes when the source does, so that caches notice.
        teacher_model: Model YAML to train from scratch, or checkpoint to fine-tune.
        student_model: Likewise for the student.
        epochs: Passes over the training images for the students.
        teacher_epochs: The same for the teacher; 0 to take a checkpoint as it is or refuse it.
        imgsz: Side of the square network input in pixels.
        batch: Images a training step.
        views: How many augmented views of each image the teacher answers; epochs take turns with them.
        closed_views: The same without mosaic, for the last epochs.
        augmentation: Ultralytics' augmentation hyperparameters that differ from its defaults.
        seed: Seed of splits, weights and image order.
        val_fraction: Share of the images for validation where the source has no splits of its own.
        test_fraction: The same for testing.
        on_error: What to do about mistakes in the data: ``stop``, or ``drop`` what is broken into the report.
        evaluation_split: The split whose mAP is reported.
        work_root: Folder that outlives a killed run, from which unfinished training is taken up.
        cache_root: Folder or ``s3://`` address where teacher answers are kept for all runs, found again by content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "digits"
    source_digest: str = ""
    teacher_model: str = "yolov8n.yaml"
    student_model: str = "yolov8p.yaml"
    epochs: int = Field(default=25, ge=1)
    teacher_epochs: int = Field(default=25, ge=0)
    imgsz: int = Field(default=160, ge=32, multiple_of=32)
    batch: int = Field(default=16, ge=1)
    views: int = Field(default=8, ge=1)
    closed_views: int = Field(default=4, ge=1)
    # A mirrored digit is another sign.
    augmentation: str = "fliplr=0"
    seed: int = Field(default=0, ge=0)
    val_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.15, ge=0, lt=1)
    on_error: Literal["stop", "drop"] = "stop"
    evaluation_split: Literal["train", "val", "test"] = "val"
    work_root: str = ""
    cache_root: str = ""

    @model_validator(mode="after")
    def _leave_training_images(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("together with --test-fraction it leaves no image for training")
        return self

    @property
    def pipeline_arguments(self) -> dict[str, Argument]:
        """The pipeline's own parameters."""
        return self.model_dump()


class DistillationArguments(TrainingArguments):
    """Arguments of the distillation pipeline; the defaults are those of ``make run``.

    Attributes:
        recipe: Distillation recipe by name, or path of a recipe file.
        teacher_answers: Where the student's targets come from: ``cache``, answers to every view of an image that the
            student will see; ``original``, one answer to each image, carried into the views; or ``online``, the teacher
            at every step.
        pruning: ``on`` to prune the distilled student and recover it by distillation, which then takes its place.
        keep_flops: Part of the floating point operations that pruning keeps.
        quantization: How the INT8 model is made: ``nncf``; ``accuracy-aware``, which keeps in floating point what
            costs too much mAP; or ``qat``, which first trains the student on with simulated INT8, from the teacher's
            answers (quantisation-aware training).
        max_drop: Points of mAP50-95, 0..100, that accuracy-aware quantisation may lose on the validation split.
        qat_epochs: Passes over the training images with simulated INT8.
        calibration_images: Training images that the INT8 model's ranges are taken from.
        mobile: ``ncnn`` for an export for phones besides.
        tensorrt: ``fp16`` or ``int8`` for a TensorRT engine besides; it is built on an NVIDIA GPU.
        robustness: ``on`` to measure the models on corrupted and on adversarial images besides.
        robustness_images: Images of the split that are drawn for that.
        benchmark_seconds: Measuring time for each model.
        registered_name: Name of the model in MLflow's registry.
        cache_parts: Parts of the cache that are built side by side, such as ``1/2`` and ``2/2``; or how many.
    """

    recipe: str = "default"
    teacher_answers: Literal["cache", "original", "online"] = "cache"
    pruning: Literal["off", "on"] = "off"
    keep_flops: float = Field(default=0.5, gt=0, lt=1)
    quantization: Literal["nncf", "accuracy-aware", "qat"] = "nncf"
    max_drop: float = Field(default=1.0, ge=0)
    qat_epochs: int = Field(default=5, ge=1)
    calibration_images: int = Field(default=300, ge=1)
    mobile: Literal["off", "ncnn"] = "off"
    tensorrt: Literal["off", "fp16", "int8"] = "off"
    robustness: Literal["off", "on"] = "off"
    robustness_images: int = Field(default=100, ge=1)
    benchmark_seconds: float = Field(default=6.0, gt=0)
    registered_name: str = Field(default="yolo-distill", min_length=1)
    cache_parts: list[str] = Field(default=spell_parts(1), min_length=1)

    @field_validator("cache_parts", mode="before")
    @classmethod
    def _spell_parts(cls, value: object) -> object:
        if not isinstance(value, int):
            return value
        if value < 1:
            raise ValueError("it should be greater than or equal to 1")
        return spell_parts(value)


Arguments = TypeVar("Arguments", bound=TrainingArguments)

# What takes the place of the defaults above where the data are a user's own.
OWN_DATA_DEFAULTS: dict[str, object] = {
    "teacher_model": "yolov8m.yaml",
    "student_model": "yolov8n.yaml",
    "epochs": 100,
    "teacher_epochs": 100,
    "imgsz": 640,
    "views": 16,
    "closed_views": 8,
    "augmentation": "",
}


def checked_arguments(values: Mapping[str, object]) -> DistillationArguments:
    """Check everything about the arguments that can be told without opening data or models.

    Args:
        values: Arguments by name; those that are ``None`` get the default for the data at hand.

    Returns:
        The arguments, paths made absolute.

    Raises:
        InputError: A value is out of range, or names something that does not exist.
    """
    arguments = checked_training(DistillationArguments, values)
    recipe = check_recipe(arguments.recipe)
    _require_answers(arguments.recipe, arguments.teacher_answers)
    if arguments.teacher_answers != "cache":
        _refuse_without_cache(arguments)
    return arguments.model_copy(update={"recipe": recipe})


def _refuse_without_cache(arguments: DistillationArguments) -> None:
    in_need = {
        "--pruning on": (arguments.pruning == "on", "a pruned student is recovered from the cache"),
        "--quantization qat": (arguments.quantization == "qat", "the student is trained on from the cache"),
    }
    for option, (given, problem) in in_need.items():
        if given:
            raise InputError(
                f"{option} --teacher-answers {arguments.teacher_answers}", problem, "Give --teacher-answers cache"
            )


def checked_training(kind: type[Arguments], values: Mapping[str, object]) -> Arguments:
    """Check the arguments that every pipeline has, as :func:`checked_arguments` does.

    Args:
        kind: The pipeline's arguments.
        values: Arguments by name; those that are ``None`` get the default for the data at hand.
    """
    own = {} if _is_digits(str(values.get("source", "digits"))) else OWN_DATA_DEFAULTS
    values = {**own, **{name: value for name, value in values.items() if value is not None}}
    try:
        arguments = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "val_fraction"
        problem = spoken(first["msg"])
        raise InputError(f"{option_name(name)} {values.get(name)}", problem, "See --help for what it takes") from error
    students = {path.name: path for path in sorted(RECIPES_FOLDER.with_name("students").glob("*.yaml"))}
    return arguments.model_copy(
        update={
            "source": _check_source(arguments.source),
            "teacher_model": _check_model(arguments.teacher_model, "--teacher", {}),
            "student_model": _check_model(arguments.student_model, "--student", students),
            "cache_root": _check_cache_root(arguments.cache_root),
        }
    )


def option_name(argument: str) -> str:
    """Return the command line option of an argument."""
    renamed = {
        "source": "data",
        "teacher_model": "teacher",
        "student_model": "student",
        "evaluation_split": "split",
    }
    return "--" + renamed.get(argument, argument).replace("_", "-")


def _is_digits(source: str) -> bool:
    return source.partition(":")[0] == "digits"


def _check_source(source: str) -> str:
    if _is_digits(source):
        return source
    if "://" in source:
        if urlsplit(source).password:
            shown = lineage.without_credentials(source)
            raise InputError(f"--data {shown}", "the address carries a password", "Put user and password into ~/.netrc")
        return source
    path = Path(source)
    if not path.exists():
        raise InputError(
            f"--data {source}", "there is no such file or folder", "Give a folder, an archive, an address, or digits"
        )
    return str(path.absolute())


def _check_cache_root(root: str) -> str:
    if not root or root.startswith("s3://"):
        return root
    if "://" in root:
        raise InputError(f"--cache-root {root}", "is neither a folder nor an s3:// address", "Give one of these")
    if Path(root).exists() and not Path(root).is_dir():
        raise InputError(f"--cache-root {root}", "is not a folder", "Give a folder or an s3:// address")
    return str(Path(root).absolute())


def _check_model(model: str, option: str, shipped: Mapping[str, Path]) -> str:
    path = Path(model)
    if path.is_file() and path.suffix in {".pt", ".yaml", ".yml"}:
        _check_model_file(path, option)
        return str(path.absolute())
    if model in shipped or _STOCK_MODEL.fullmatch(model):
        return model
    known = ["a stock model such as yolov8n.yaml", *([f"one of {', '.join(shipped)}"] if shipped else [])]
    raise InputError(
        f"{option} {model}", "there is no such model", f"Give {', '.join(known)}, or the path of a .pt or .yaml file"
    )


def _check_model_file(path: Path, option: str) -> None:
    if path.suffix == ".pt":
        if not is_zipfile(path):
            raise InputError(f"{option} {path}", "is not a PyTorch checkpoint", "Give a .pt file of ultralytics")
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}", f"is not valid YAML: {error}", "Mend the file") from error
    if not isinstance(content, dict) or not {"backbone", "head"} <= content.keys():
        raise InputError(f"{option} {path}", "is not a model: it has no backbone and head", "Give a model YAML")


def check_recipe(recipe: str) -> str:
    """Check a recipe and return its name, or the absolute path of its file."""
    load_recipe(recipe)
    return recipe if recipe in recipe_names() else str(Path(recipe).absolute())


def _require_answers(recipe: str, teacher_answers: str) -> None:
    loaded = load_recipe(recipe)
    same_view = loaded.needs_same_view
    if teacher_answers == "original" and same_view:
        raise InputError(
            f"--recipe {recipe}",
            f"{', '.join(same_view)} cannot be learnt from --teacher-answers original: the teacher must see the"
            " student's view",
            "Give --recipe original or a like one, or other --teacher-answers",
        )
    if teacher_answers == "cache" and loaded.needs_online:
        raise InputError(
            f"--recipe {recipe}",
            f"{', '.join(loaded.needs_online)} needs more of the teacher than a cache keeps",
            "Give --teacher-answers online, or another recipe",
        )
