"""The command line: ``yolo-distill``."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines import options
from yolo_distill.pipelines.ablation.arguments import AblationArguments
from yolo_distill.pipelines.ablation.arguments import checked_arguments as checked_ablation
from yolo_distill.pipelines.display import shown_path
from yolo_distill.pipelines.distillation.arguments import DistillationArguments, checked_arguments
from yolo_distill.pipelines.events import RunWatch
from yolo_distill.pipelines.launch import INPUT_ERROR_STATUS, RunError, run_pipeline
from yolo_distill.pipelines.plan import RunPlan

_DEFAULTS = DistillationArguments()
_ABLATION = AblationArguments()
# Characters in a line where nobody's terminal sets a limit.
_FILE_WIDTH = 140
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
    epochs: options.Epochs = None,
    teacher_epochs: options.TeacherEpochs = None,
    imgsz: options.ImageSize = None,
    batch: options.Batch = _DEFAULTS.batch,
    views: options.Views = None,
    closed_views: options.ClosedViews = None,
    augmentation: options.Augmentation = None,
    seed: options.Seed = _DEFAULTS.seed,
    split: options.Split = _DEFAULTS.evaluation_split,
    calibration_images: Annotated[
        int, typer.Option(help="Training images that set the INT8 ranges.", rich_help_panel=options.MEASURING)
    ] = _DEFAULTS.calibration_images,
    benchmark_seconds: Annotated[
        float, typer.Option(help="Measuring time for each model.", rich_help_panel=options.MEASURING)
    ] = _DEFAULTS.benchmark_seconds,
    registered_name: Annotated[
        str, typer.Option(help="The INT8 model's name in MLflow's registry.", rich_help_panel=options.MEASURING)
    ] = _DEFAULTS.registered_name,
    output: options.Output = _OUTPUT,
    cache_root: options.CacheRoot = _DEFAULTS.cache_root,
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
    }
    with _failures_in_a_line():
        arguments = checked_arguments(values)
        # These take seconds to import; a mistake in the options has shown before.
        from yolo_distill.pipelines.distillation.run import plan_run

        plan, watch, console = _run(partial(plan_run, arguments, output, cached=cache), verbose=verbose)
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
    with _failures_in_a_line():
        arguments = checked_ablation(values)
        # These take seconds to import; a mistake in the options has shown before.
        from yolo_distill.pipelines.ablation.run import plan_run

        plan, watch, console = _run(partial(plan_run, arguments, output, cached=cache), verbose=verbose)
        from yolo_distill.pipelines.ablation.results import publish_results, show_results

        publish_results(plan, watch)
        show_results(plan, console)


@app.command("compile")
def compile_command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="YAML file to write.", show_default="yolov8-<pipeline>.yaml")
    ] = None,
    pipeline: Annotated[_Pipeline, typer.Option(help="Which pipeline.")] = _Pipeline.distillation,
) -> None:
    """Write a pipeline as KFP IR YAML, for Kubeflow Pipelines to run."""
    with _failures_in_a_line():
        from yolo_distill.pipelines.ablation import run as ablation
        from yolo_distill.pipelines.distillation import run as distillation

        target = output or Path(f"yolov8-{pipeline.value}.yaml")
        {_Pipeline.distillation: distillation, _Pipeline.ablation: ablation}[pipeline].compile_pipeline(target)
        Console().print(f"Wrote {shown_path(target)}", soft_wrap=True)


def _run(plan_run: Callable[[], RunPlan], *, verbose: bool) -> tuple[RunPlan, RunWatch, Console]:
    signal.signal(signal.SIGTERM, _end_on_signal)
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    plan = plan_run()
    console.print(f"Run [bold]{plan.name}[/]; the log goes to {shown_path(plan.log)}", soft_wrap=True)
    return plan, run_pipeline(plan, console, verbose=verbose), console


@contextmanager
def _failures_in_a_line() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        _fail(str(error), INPUT_ERROR_STATUS)
    except RunError as error:
        _fail(str(error), INPUT_ERROR_STATUS if error.by_input else 1, error.log_tail)
    except KeyboardInterrupt:
        _fail("interrupted; the next run goes on where this one stopped", 130)


def _fail(message: str, status: int, log_tail: str = "") -> NoReturn:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if log_tail:
        console.print(Text.from_ansi(log_tail), style="dim")
    console.print(Text.assemble(("error: ", "bold red"), (" ".join(message.split()), "red")))
    raise typer.Exit(status)


def _end_on_signal(signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)
