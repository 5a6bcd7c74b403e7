"""The options that the commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from yolo_distill.pipelines.distillation.arguments import OWN_DATA_DEFAULTS, DistillationArguments

DATA, MODELS, TRAINING, COMPRESSING = "Data", "Models", "Training", "Compressing"
MEASURING, RUN = "Measuring", "Run"

_DEFAULTS = DistillationArguments()


class Runner(StrEnum):
    """What a task is on this machine."""

    subprocess = "subprocess"
    docker = "docker"


def _default(name: str) -> str:
    """Return how the help shows a default that depends on the data."""
    return f"{OWN_DATA_DEFAULTS[name] or 'none'}; for digits {getattr(_DEFAULTS, name)}"


Data = Annotated[
    str,
    typer.Option(
        help="Images and labels: a folder or archive in YOLO, Pascal VOC or COCO format, an http(s):// or s3://"
        " address of one, or [bold]digits[/], handwritten digits that come with the program.",
        rich_help_panel=DATA,
    ),
]
ValFraction = Annotated[
    float, typer.Option(help="Share of images for validation, if the data has no splits.", rich_help_panel=DATA)
]
TestFraction = Annotated[
    float, typer.Option(help="Share of images for testing, if the data has no splits.", rich_help_panel=DATA)
]
OnError = Annotated[
    str,
    typer.Option(
        help="About mistakes in the data: stop, or drop what is broken into the data report.",
        rich_help_panel=DATA,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="Model YAML to train from scratch, such as yolov8m.yaml, or a .pt checkpoint: used as it is when its"
        " classes are those of the data, else fine-tuned.",
        rich_help_panel=MODELS,
        show_default=_default("teacher_model"),
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        help="Model YAML or .pt checkpoint that the student starts from.",
        rich_help_panel=MODELS,
        show_default=_default("student_model"),
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the data for every student.", rich_help_panel=TRAINING, show_default=_default("epochs")
    ),
]
TeacherEpochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the data for the teacher; 0 to take a checkpoint as it is or refuse it.",
        rich_help_panel=TRAINING,
        show_default=_default("teacher_epochs"),
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side of the network's input in pixels, a multiple of 32.",
        rich_help_panel=TRAINING,
        show_default=_default("imgsz"),
    ),
]
Batch = Annotated[int, typer.Option(help="Images a training step.", rich_help_panel=TRAINING)]
Views = Annotated[
    int | None,
    typer.Option(
        help="Augmented views of each image that the teacher answers; the epochs take turns with them.",
        rich_help_panel=TRAINING,
        show_default=_default("views"),
    ),
]
ClosedViews = Annotated[
    int | None,
    typer.Option(
        help="The same without mosaic, for the last epochs.",
        rich_help_panel=TRAINING,
        show_default=_default("closed_views"),
    ),
]
Augmentation = Annotated[
    str | None,
    typer.Option(
        help="Ultralytics' hyperparameters that differ from its defaults, such as fliplr=0,degrees=10.",
        rich_help_panel=TRAINING,
        show_default=_default("augmentation"),
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of splits, weights and image order.", rich_help_panel=TRAINING)]
Split = Annotated[str, typer.Option(help="Split whose mAP is reported: train, val or test.", rich_help_panel=MEASURING)]
Output = Annotated[Path, typer.Option(help="Folder for everything that is made.", rich_help_panel=RUN)]
CacheRoot = Annotated[
    str,
    typer.Option(
        help="Folder or s3:// address where the teacher's answers are kept for all runs.",
        rich_help_panel=RUN,
        show_default="within the output folder",
    ),
]
RunBy = Annotated[
    Runner,
    typer.Option(
        help="What a task is: a process of this environment, or a container of the image that Kubeflow would take.",
        rich_help_panel=RUN,
    ),
]
UseCache = Annotated[
    bool,
    typer.Option("--cache/--no-cache", help="Take over what earlier runs have made.", rich_help_panel=RUN),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show everything that the tasks print.", rich_help_panel=RUN)
]
