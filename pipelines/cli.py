"""The command line: ``yolo-distill``."""

import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines import options
from yolo_distill.pipelines.ablation.arguments import AblationArguments
from yolo_distill.pipelines.ablation.arguments import checked_arguments as checked_ablation
from yolo_distill.pipelines.cluster import load_cluster
from yolo_distill.pipelines.display import shown_path
from yolo_distill.pipelines.distillation.arguments import DistillationArguments, checked_arguments
from yolo_distill.pipelines.events import RunWatch
from yolo_distill.pipelines.failures import failures_in_a_line
from yolo_distill.pipelines.launch import RunError, run_pipeline
from yolo_distill.pipelines.plan import RunPlan
from yolo_distill.pipelines.remote_commands import add_remote_commands

_DEFAULTS = DistillationArguments()
_ABLATION = AblationArguments()
# Characters in a line where nobody's terminal sets a limit.
_FILE_WIDTH = 140
_INTERRUPTED = "the next run goes on where this one stopped"
_OUTPUT = Path("runs")


class _Pipeline(StrEnum):
    distillation = "distillation"
    ablation = "ablation"


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


@app.command("run")
def run_command(
    data: options.Data = _DEFAULTS.source,
    val_fraction: options.ValFraction = _DEFAULTS.val_fraction,
    test_fraction: options.TestFraction = _DEFAULTS.test_fraction,
    on_error: options.OnError = _DEFAULTS.on_error,
    teacher: options.Teacher = None,
    student: options.Student = None,
    recipe: Annotated[
        str,
        typer.Option(help="Distillation losses: a recipe's name, or a YAML file.", rich_help_panel=options.TRAINING),
    ] = _DEFAULTS.recipe,
    teacher_answers: Annotated[
        str,
        typer.Option(
            help="What the student learns from: cache, the teacher's answers to every view of an image, asked once and"
            " kept; original, one answer to each image, carried into its views (with --recipe original or a like one);"
            " online, the teacher asked at every step.",
            rich_help_panel=options.TRAINING,
        ),
    ] = _DEFAULTS.teacher_answers,
    epochs: options.Epochs = None,
    teacher_epochs: options.TeacherEpochs = None,
    imgsz: options.ImageSize = None,
    batch: options.Batch = _DEFAULTS.batch,
    views: options.Views = None,
    closed_views: options.ClosedViews = None,
    augmentation: options.Augmentation = None,
    seed: options.Seed = _DEFAULTS.seed,
    split: options.Split = _DEFAULTS.evaluation_split,
    pruning: Annotated[
        str,
        typer.Option(
            help="on: prune the distilled student, recover it by distillation, and go on with it.",
            rich_help_panel=options.COMPRESSING,
        ),
    ] = _DEFAULTS.pruning,
    keep_flops: Annotated[
        float,
        typer.Option(help="Part of its operations that a pruned student keeps.", rich_help_panel=options.COMPRESSING),
    ] = _DEFAULTS.keep_flops,
    quantization: Annotated[
        str,
        typer.Option(
            help="How INT8 is made: nncf; accuracy-aware, which takes back what costs too much mAP; or qat, which first"
            " trains the student on with simulated INT8.",
            rich_help_panel=options.COMPRESSING,
        ),
    ] = _DEFAULTS.quantization,
    max_drop: Annotated[
        float,
        typer.Option(
            help="Points of mAP50-95 that accuracy-aware may lose on the val split.",
            rich_help_panel=options.COMPRESSING,
        ),
    ] = _DEFAULTS.max_drop,
    qat_epochs: Annotated[
        int,
        typer.Option(
            help="Passes over the images that --quantization qat trains on.", rich_help_panel=options.COMPRESSING
        ),
    ] = _DEFAULTS.qat_epochs,
    calibration_images: Annotated[
        int, typer.Option(help="Training images that set the INT8 ranges.", rich_help_panel=options.COMPRESSING)
    ] = _DEFAULTS.calibration_images,
    mobile: Annotated[
        str, typer.Option(help="ncnn: export for phones besides.", rich_help_panel=options.COMPRESSING)
    ] = _DEFAULTS.mobile,
    tensorrt: Annotated[
        str,
        typer.Option(
            help="fp16 or int8: build a TensorRT engine besides, which needs an NVIDIA GPU.",
            rich_help_panel=options.COMPRESSING,
        ),
    ] = _DEFAULTS.tensorrt,
    robustness: Annotated[
        str,
        typer.Option(
            help="on: measure on corrupted and on adversarial images besides.", rich_help_panel=options.MEASURING
        ),
    ] = _DEFAULTS.robustness,
    robustness_images: Annotated[
        int, typer.Option(help="Images that are drawn for that.", rich_help_panel=options.MEASURING)
    ] = _DEFAULTS.robustness_images,
    benchmark_seconds: Annotated[
        float, typer.Option(help="Measuring time for each model.", rich_help_panel=options.MEASURING)
    ] = _DEFAULTS.benchmark_seconds,
    registered_name: Annotated[
        str, typer.Option(help="The INT8 model's name in MLflow's registry.", rich_help_panel=options.MEASURING)
    ] = _DEFAULTS.registered_name,
    output: options.Output = _OUTPUT,
    cache_root: options.CacheRoot = _DEFAULTS.cache_root,
    cache_parts: Annotated[
        int,
        typer.Option(
            help="Parts in which the teacher is asked for its answers, side by side: one a pod on Kubeflow, two at a"
            " time here.",
            rich_help_panel=options.RUN,
        ),
    ] = len(_DEFAULTS.cache_parts),
    runner: options.RunBy = options.Runner.subprocess,
    cache: options.UseCache = True,
    verbose: options.Verbose = False,
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
        "pruning": pruning,
        "keep_flops": keep_flops,
        "quantization": quantization,
        "max_drop": max_drop,
        "qat_epochs": qat_epochs,
        "calibration_images": calibration_images,
        "mobile": mobile,
        "tensorrt": tensorrt,
        "robustness": robustness,
        "robustness_images": robustness_images,
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

        prepare = partial(plan_run, arguments, output, cached=cache, in_containers=runner is options.Runner.docker)
        plan, watch, console = _run(prepare, verbose=verbose)
        from yolo_distill.pipelines.distillation.results import publish_results, show_results

        publish_results(plan, watch)
        show_results(plan, console)


@app.command("ablate")
def ablate_command(
    recipes: Annotated[
        str,
        typer.Option(
            help="What to compare, separated by commas: recipes by name or YAML file, and plain, which trains without a"
            " teacher.",
            rich_help_panel=options.TRAINING,
        ),
    ] = ",".join(_ABLATION.recipes),
    seeds: Annotated[
        str,
        typer.Option(
            help="Seeds that every recipe is trained with, separated by commas.", rich_help_panel=options.TRAINING
        ),
    ] = ",".join(map(str, _ABLATION.seeds)),
    data: options.Data = _ABLATION.source,
    val_fraction: options.ValFraction = _ABLATION.val_fraction,
    test_fraction: options.TestFraction = _ABLATION.test_fraction,
    on_error: options.OnError = _ABLATION.on_error,
    teacher: options.Teacher = None,
    student: options.Student = None,
    epochs: options.Epochs = None,
    teacher_epochs: options.TeacherEpochs = None,
    imgsz: options.ImageSize = None,
    batch: options.Batch = _ABLATION.batch,
    views: options.Views = None,
    closed_views: options.ClosedViews = None,
    augmentation: options.Augmentation = None,
    seed: options.Seed = _ABLATION.seed,
    split: options.Split = _ABLATION.evaluation_split,
    output: options.Output = _OUTPUT,
    cache_root: options.CacheRoot = _ABLATION.cache_root,
    runner: options.RunBy = options.Runner.subprocess,
    cache: options.UseCache = True,
    verbose: options.Verbose = False,
) -> None:
    """Train a student with every recipe and several seeds, and tell which recipe is best.

    All learn from one teacher, which is asked once. The best recipe is named only if a paired bootstrap over images and
    seeds rules out chance.
    """
    values = {
        "recipes": [recipe.strip() for recipe in recipes.split(",")],
        "seeds": [one.strip() for one in seeds.split(",")],
        "source": data,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "on_error": on_error,
        "teacher_model": teacher,
        "student_model": student,
        "epochs": epochs,
        "teacher_epochs": teacher_epochs,
        "imgsz": imgsz,
        "batch": batch,
        "views": views,
        "closed_views": closed_views,
        "augmentation": augmentation,
        "seed": seed,
        "evaluation_split": split,
        "cache_root": cache_root,
    }
    with failures_in_a_line(_INTERRUPTED):
        _require_pipeline_libraries()
        arguments = checked_ablation(values)
        # These take seconds to import; a mistake in the options has shown before.
        from yolo_distill.pipelines.ablation.run import plan_run

        prepare = partial(plan_run, arguments, output, cached=cache, in_containers=runner is options.Runner.docker)
        plan, watch, console = _run(prepare, verbose=verbose)
        from yolo_distill.pipelines.ablation.results import publish_results, show_results

        publish_results(plan, watch)
        show_results(plan, console)


@app.command("compare")
def compare_command(
    model: Annotated[
        Path, typer.Argument(help="Evaluation of the one model, an output of evaluate-map.", show_default=False)
    ],
    against: Annotated[Path, typer.Argument(help="Evaluation of the other, on the same images.", show_default=False)],
) -> None:
    """Tell how far two evaluated models are apart, and whether that is more than chance.

    By a paired bootstrap over the images that both were evaluated on. A run keeps its evaluations under tasks/.
    """
    with failures_in_a_line("nothing was written"):
        _require_pipeline_libraries()
        from yolo_distill.components.evaluate_map.difference import compare_evaluations, difference_summary

        typer.echo(difference_summary(compare_evaluations(model, against)).markdown(), nl=False)


@app.command("robustness")
def robustness_command(
    model: Annotated[Path, typer.Argument(help="A model folder of a run.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(help="Images and labels as for run, or the dataset of a run.", show_default=False),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            help="PyTorch model folder to attack in the model's place, for an ONNX or OpenVINO model.",
            show_default="the model itself",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to measure on: train, val or test.")] = "val",
    images: Annotated[int, typer.Option(help="Images of the split to draw; 0 for all of them.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of that draw and of everything random.")] = 0,
    corruptions: Annotated[
        str, typer.Option(help="Corruptions of COCO-C, separated by commas; all, or empty for none.")
    ] = "all",
    severities: Annotated[str, typer.Option(help="How severe, 1 to 5, separated by commas.")] = "1,2,3,4,5",
    epsilons: Annotated[
        str, typer.Option(help="Largest change of a pixel in 1/255, separated by commas; empty for no attack.")
    ] = "1,2,4,8",
    pgd_steps: Annotated[int, typer.Option(help="Steps of PGD.")] = 10,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for figures and page; replaced.")] = Path(
        "robustness"
    ),
) -> None:
    """Measure how accurate a model stays on corrupted and on adversarial images.

    The 15 corruptions of COCO-C at five severities, and FGSM and PGD on the detection loss, beside noise of their size.
    """
    with failures_in_a_line("nothing was written"):
        _require_pipeline_libraries()
        from yolo_distill.components.evaluate_robustness.robustness import parse_settings

        settings = parse_settings(corruptions, severities, epsilons, pgd_steps, images, seed)
        # This takes seconds to import; a mistake in the options has shown before.
        from yolo_distill.pipelines.robustness import measure_robustness

        console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _FILE_WIDTH)
        measure_robustness(model, data, split, settings, output, source, console)


@app.command("compile")
def compile_command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="YAML file to write.", show_default="yolov8-<pipeline>.yaml")
    ] = None,
    pipeline: Annotated[_Pipeline, typer.Option(help="Which pipeline.")] = _Pipeline.distillation,
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster file: images, resources, volumes, secrets of the tasks.")
    ] = None,
) -> None:
    """Write a pipeline as KFP IR YAML, for Kubeflow Pipelines to run."""
    with failures_in_a_line(_INTERRUPTED):
        _require_pipeline_libraries()
        from yolo_distill.pipelines.ablation import run as ablation
        from yolo_distill.pipelines.distillation import run as distillation

        target = output or Path(f"yolov8-{pipeline.value}.yaml")
        module = {_Pipeline.distillation: distillation, _Pipeline.ablation: ablation}[pipeline]
        module.compile_pipeline(target, load_cluster(cluster) if cluster else None)
        Console().print(f"Wrote {shown_path(target)}", soft_wrap=True)


@app.command("predict")
def predict_command(
    model: Annotated[
        Path,
        typer.Argument(
            help="A model folder of a run, or a YOLOv8 detection model from elsewhere: an .onnx, .xml, .param, .engine"
            " or .pt file.",
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

    Needs neither PyTorch nor a GPU for ONNX, OpenVINO and NCNN models.
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


def _run(plan_run: Callable[[], RunPlan], *, verbose: bool) -> tuple[RunPlan, RunWatch, Console]:
    signal.signal(signal.SIGTERM, _end_on_signal)
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    plan = plan_run()
    console.print(f"Run [bold]{plan.name}[/]; the log goes to {shown_path(plan.log)}", soft_wrap=True)
    return plan, run_pipeline(plan, console, verbose=verbose), console


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
