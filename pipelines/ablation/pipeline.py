"""The ablation pipeline: recipes by seeds from one teacher and one cache, and a winner where chance is ruled out."""

from typing import Dict, List  # noqa: UP035  KFP knows lists and structs by these names

from kfp import dsl

from yolo_distill.components.compare_recipes.component import compare_recipes
from yolo_distill.components.distill_train.component import distill_train
from yolo_distill.components.evaluate_map.component import evaluate_map
from yolo_distill.components.prepare_data.component import prepare_data
from yolo_distill.components.teacher_cache_logits.component import teacher_cache_logits
from yolo_distill.components.train_teacher.component import train_teacher
from yolo_distill.pipelines.ablation.arguments import AblationArguments, plan_trials

_DEFAULTS = AblationArguments()
# Trainings at a time.
_PARALLEL_TRIALS = 2

# What a run is for: results by the name they are found under, each an output of that one of the tasks which runs.
RESULTS = {
    "table.md": (["compare-recipes"], "table"),
    "report.html": (["compare-recipes"], "report"),
    "comparison": (["compare-recipes"], "comparison"),
    "data-report.html": (["prepare-data"], "report"),
    "teacher": (["train-teacher"], "teacher"),
}


@dsl.pipeline(name="yolov8-ablation")
def ablation(
    trials: List[Dict] = plan_trials(_DEFAULTS.recipes, _DEFAULTS.seeds),  # type: ignore[type-arg]  # noqa: B008, UP006
    source: str = _DEFAULTS.source,
    source_digest: str = _DEFAULTS.source_digest,
    teacher_model: str = _DEFAULTS.teacher_model,
    student_model: str = _DEFAULTS.student_model,
    epochs: int = _DEFAULTS.epochs,
    teacher_epochs: int = _DEFAULTS.teacher_epochs,
    imgsz: int = _DEFAULTS.imgsz,
    batch: int = _DEFAULTS.batch,
    views: int = _DEFAULTS.views,
    closed_views: int = _DEFAULTS.closed_views,
    augmentation: str = _DEFAULTS.augmentation,
    seed: int = _DEFAULTS.seed,
    val_fraction: float = _DEFAULTS.val_fraction,
    test_fraction: float = _DEFAULTS.test_fraction,
    on_error: str = _DEFAULTS.on_error,
    evaluation_split: str = _DEFAULTS.evaluation_split,
    work_root: str = _DEFAULTS.work_root,
    cache_root: str = _DEFAULTS.cache_root,
) -> None:
    """Train a student with every recipe and seed, all from one teacher, and tell which recipe is best.

    A trial is ``{"student": "default 0", "recipe": "default", "seed": 0}``; the recipe ``plain`` trains without a
    teacher and must be among them.
    """
    dataset = (
        prepare_data(
            source=source,
            source_digest=source_digest,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            on_error=on_error,
        )
        .set_display_name("Prepare the data")
        .outputs["dataset"]
    )
    teacher = (
        train_teacher(
            dataset=dataset,
            model=teacher_model,
            epochs=teacher_epochs,
            imgsz=imgsz,
            batch=batch,
            seed=seed,
            augmentation=augmentation,
            work_root=work_root,
        )
        .set_display_name("Train the teacher")
        .outputs["teacher"]
    )
    cache = (
        teacher_cache_logits(
            dataset=dataset,
            teacher=teacher,
            imgsz=imgsz,
            views=views,
            closed_views=closed_views,
            augmentation=augmentation,
            cache_root=cache_root,
        )
        .set_display_name("Cache the teacher's answers")
        .outputs["cache"]
    )
    with dsl.ParallelFor(trials, name="trials", parallelism=_PARALLEL_TRIALS) as trial:
        training = distill_train(
            dataset=dataset,
            cache=cache,
            teacher=teacher,
            name=trial.student,
            model=student_model,
            recipe=trial.recipe,
            epochs=epochs,
            imgsz=imgsz,
            batch=batch,
            seed=trial.seed,
            augmentation=augmentation,
            work_root=work_root,
        ).set_display_name("Train a student")
        evaluated = evaluate_map(
            dataset=dataset, model=training.outputs["student"], split=evaluation_split
        ).set_display_name("Evaluate a student")
    compare_recipes(
        evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
        histories=dsl.Collected(training.outputs["history"]),
    ).set_display_name("Compare the recipes")
