"""The command line: ``yolo-distill``."""

import signal
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.cluster import load_cluster
from yolo_distill.pipelines.display import shown_path
from yolo_distill.pipelines.distillation.arguments import OWN_DATA_DEFAULTS, DistillationArguments, checked_arguments
from yolo_distill.pipelines.failures import failures_in_a_line
from yolo_distill.pipelines.launch import RunError, run_pipeline
from yolo_distill.pipelines.remote_commands import add_remote_commands

_DEFAULTS = DistillationArguments()
# Characters in a line where nobody's terminal sets a limit.
_FILE_WIDTH = 140
_INTERRUPTED = "the next run goes on where this one stopped"
_DATA, _MODELS, _TRAINING, _MEASURING, _RUN = "Data", "Models", "Training", "Measuring", "Run"

app = typer.Typer(
    name="yolo-distill",
    help="Knowledge distillation for YOLOv8: from images to a benchmarked INT8 student.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"yolo-distill {metadata.version('yolo-distill')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def _default(name: str) -> str:
    """Return how the help shows a default that depends on the data."""
    return f"{OWN_DATA_DEFAULTS[name] or 'none'}; for digits {getattr(_DEFAULTS, name)}"


@app.command("run")
def run_command(
    data: Annotated[
        str,
        typer.Option(
            help="Images and labels: a folder or archive in YOLO, Pascal VOC or COCO format, an http(s):// or s3://"
            " address of one, or [bold]digits[/], handwritten digits that come with the program.",
            rich_help_panel=_DATA,
        ),
    ] = _DEFAULTS.source,
    val_fraction: Annotated[
        float, typer.Option(help="Share of images for validation, if the data has no splits.", rich_help_panel=_DATA)
    ] = _DEFAULTS.val_fraction,
    test_fraction: Annotated[
        float, typer.Option(help="Share of images for testing, if the data has no splits.", rich_help_panel=_DATA)
    ] = _DEFAULTS.test_fraction,
    on_error: Annotated[
        str,
        typer.Option(
            help="About mistakes in the data: stop, or drop what is broken into the data report.",
            rich_help_panel=_DATA,
        ),
    ] = _DEFAULTS.on_error,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Model YAML to train from scratch, such as yolov8m.yaml, or a .pt checkpoint: used as it is when its"
            " classes are those of the data, else fine-tuned.",
            rich_help_panel=_MODELS,
            show_default=_default("teacher_model"),
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Model YAML or .pt checkpoint that the student starts from.",
            rich_help_panel=_MODELS,
            show_default=_default("student_model"),
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Distillation losses: a recipe's name, or a YAML file.", rich_help_panel=_TRAINING)
    ] = _DEFAULTS.recipe,
    teacher_answers: Annotated[
        str,
        typer.Option(
            help="What the student learns from: cache, the teacher's answers to every view of an image, asked once and"
            " kept; original, one answer to each image, carried into its views (with --recipe original or a like one);"
            " online, the teacher asked at every step.",
            rich_help_panel=_TRAINING,
        ),
    ] = _DEFAULTS.teacher_answers,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the data for both students.", rich_help_panel=_TRAINING, show_default=_default("epochs")
        ),
    ] = None,
    teacher_epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the data for the teacher; 0 to take a checkpoint as it is or refuse it.",
            rich_help_panel=_TRAINING,
            show_default=_default("teacher_epochs"),
        ),
    ] = None,
    imgsz: Annotated[
        int | None,
        typer.Option(
            help="Side of the network's input in pixels, a multiple of 32.",
            rich_help_panel=_TRAINING,
            show_default=_default("imgsz"),
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a training step.", rich_help_panel=_TRAINING)] = _DEFAULTS.batch,
    views: Annotated[
        int | None,
        typer.Option(
            help="Augmented views of each image that the teacher answers; the epochs take turns with them.",
            rich_help_panel=_TRAINING,
            show_default=_default("views"),
        ),
    ] = None,
    closed_views: Annotated[
        int | None,
        typer.Option(
            help="The same without mosaic, for the last epochs.",
            rich_help_panel=_TRAINING,
            show_default=_default("closed_views"),
        ),
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(
            help="Ultralytics' hyperparameters that differ from its defaults, such as fliplr=0,degrees=10.",
            rich_help_panel=_TRAINING,
            show_default=_default("augmentation"),
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of splits, weights and image order.", rich_help_panel=_TRAINING)
    ] = _DEFAULTS.seed,
    split: Annotated[
        str, typer.Option(help="Split whose mAP is reported: train, val or test.", rich_help_panel=_MEASURING)
    ] = _DEFAULTS.evaluation_split,
    calibration_images: Annotated[
        int, typer.Option(help="Training images that set the INT8 ranges.", rich_help_panel=_MEASURING)
    ] = _DEFAULTS.calibration_images,
    benchmark_seconds: Annotated[
        float, typer.Option(help="Measuring time for each model.", rich_help_panel=_MEASURING)
    ] = _DEFAULTS.benchmark_seconds,
    registered_name: Annotated[
        str, typer.Option(help="The INT8 model's name in MLflow's registry.", rich_help_panel=_MEASURING)
    ] = _DEFAULTS.registered_name,
    output: Annotated[Path, typer.Option(help="Folder for everything that is made.", rich_help_panel=_RUN)] = Path(
        "runs"
    ),
    cache_root: Annotated[
        str,
        typer.Option(
            help="Folder or s3:// address where the teacher's answers are kept for all runs.",
            rich_help_panel=_RUN,
            show_default="within the output folder",
        ),
    ] = _DEFAULTS.cache_root,
    cache_parts: Annotated[
        int,
        typer.Option(
            help="Parts in which the teacher is asked for its answers, side by side: one a pod on Kubeflow, two at a"
            " time here.",
            rich_help_panel=_RUN,
        ),
    ] = len(_DEFAULTS.cache_parts),
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Take over what earlier runs have made.", rich_help_panel=_RUN),
    ] = True,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show everything that the tasks print.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Train a teacher, distil it, make the student INT8, and compare.

    Everything is done on this machine. Without any option the program uses its embedded data set and takes some ten
    minutes on two cores. A second run takes over whatever did not change.
    """
    values = {
        "source": data,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "on_error": on_error,
        "teacher_model": teacher,
        "student_model": student,
        "recipe": recipe,
        "teacher_answers": teacher_answers,
        "epochs": epochs,
        "teacher_epochs": teacher_epochs,
        "imgsz": imgsz,
        "batch": batch,
        "views": views,
        "closed_views": closed_views,
        "augmentation": augmentation,
        "seed": seed,
        "evaluation_split": split,
        "calibration_images": calibration_images,
        "benchmark_seconds": benchmark_seconds,
        "registered_name": registered_name,
        "cache_root": cache_root,
        "cache_parts": cache_parts,
    }
    with failures_in_a_line(_INTERRUPTED):
        _require_pipeline_libraries()
        arguments = checked_arguments(values)
        # These take seconds to import; a mistake in the options has shown before.
        from yolo_distill.pipelines.distillation.run import plan_run

        signal.signal(signal.SIGTERM, _end_on_signal)
        console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
        plan = plan_run(arguments, output, cached=cache)
        console.print(f"Run [bold]{plan.name}[/]; the log goes to {shown_path(plan.log)}", soft_wrap=True)
        watch = run_pipeline(plan, console, verbose=verbose)
        from yolo_distill.pipelines.distillation.results import publish_results, show_results

        publish_results(plan, watch)
        show_results(plan, console)


@app.command("compile")
def compile_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write.")] = Path(
        "yolov8-distillation.yaml"
    ),
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster file: images, resources, volumes, secrets of the tasks.")
    ] = None,
) -> None:
    """Write the pipeline as KFP IR YAML, for Kubeflow Pipelines to run."""
    with failures_in_a_line(_INTERRUPTED):
        _require_pipeline_libraries()
        from yolo_distill.pipelines.distillation.run import compile_pipeline

        compile_pipeline(output, load_cluster(cluster) if cluster else None)
        Console().print(f"Wrote {shown_path(output)}", soft_wrap=True)


@app.command("predict")
def predict_command(
    model: Annotated[
        Path,
        typer.Argument(
            help="A model folder of a run, or a YOLOv8 detection model from elsewhere: an .onnx, .xml or .pt file.",
            show_default=False,
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(help="An image, a folder of images, a video, or the number of a camera.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for annotated pictures and detections.jsonl.")
    ] = Path("predictions"),
    conf: Annotated[float, typer.Option(help="Lowest score that counts, 0 to 1.")] = 0.25,
    iou: Annotated[
        float, typer.Option(help="Overlap from which the worse of two boxes of a class is dropped, 0 to 1.")
    ] = 0.7,
    classes: Annotated[str, typer.Option(help="Classes to look for, separated by commas.", show_default="all")] = "",
    imgsz: Annotated[
        int | None,
        typer.Option(
            help="Side of the network's input in pixels, for a model that takes any size.",
            show_default="what the model was made for",
        ),
    ] = None,
) -> None:
    """Find objects in images, a video or a camera's pictures, and draw them.

    Needs neither PyTorch nor a GPU for ONNX and OpenVINO models.
    """
    with failures_in_a_line("what was made until then is complete"):
        # OpenCV takes a moment to import, and --help need not wait for it.
        from yolo_distill.pipelines.prediction.predict import checked_settings, predict

        settings = checked_settings(conf, iou, classes, imgsz)
        console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
        tally = predict(model, source, output, settings, console)
        if tally.unread:
            images = tally.pictures + len(tally.unread)
            more = f" ({len(tally.unread)} of {images} images could not be read)" if images > 1 else ""
            raise RunError(f"{tally.unread[0]}{more}", by_input=True)
        # A camera has no end of its own.
        if tally.interrupted and not source.isdecimal():
            raise KeyboardInterrupt


def _require_pipeline_libraries() -> None:
    if find_spec("kfp") is None:
        raise InputError(
            "yolo-distill",
            "was installed to run models, without the libraries of the pipeline",
            "Install yolo-distill[pipeline]",
        )


def _end_on_signal(signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


add_remote_commands(app, run_command)
