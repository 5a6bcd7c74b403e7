"""Kubeflow component: compare-recipes."""

from typing import List  # noqa: UP035  KFP knows a list of artifacts by this name

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def compare_recipes(  # noqa: ANN201
    evaluations: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    histories: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    table: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    comparison: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    winner: dsl.OutputPath(str),  # type: ignore[valid-type]
):
    """Tell which distillation recipe is best, if that can be told.

    Recipes are ranked by mean mAP50-95 over seeds. The first wins if its differences to the second and to plain
    training both exclude 0, by a paired bootstrap over images and seeds with intervals adjusted for all pairs.

    Args:
        evaluations: Evaluations of distill-train's students, one for each recipe and seed, in any order; plain must be
            among the recipes.
        histories: Training histories of the same students, in any order.
        table: The ranking, the verdict and what to be careful about.
        report: The same as a page, with plots.
        comparison: Folder with comparison.json, which holds every figure.
        metrics: mAP of each recipe and its gain over plain training, in points with the ends of the interval.
        winner: The winner's name, or no difference.
    """
    from pathlib import Path

    from yolo_distill.components.compare_recipes.compare_recipes import compare_recipes
    from yolo_distill.components.compare_recipes.comparison import COMPARISON_NAME
    from yolo_distill.components.shared.files import write_text
    from yolo_distill.components.shared.task import task_run

    outputs = Path(table.path), Path(report.path), Path(comparison.path)
    with task_run("compare-recipes") as run:
        result = compare_recipes(
            [Path(one.path) for one in evaluations], [Path(one.path) for one in histories], *outputs
        )
        write_text(Path(winner), result.winner)
        run.log_metrics(result.metrics)
        run.set_tags({"winner": result.winner})
        run.log_artifact(Path(comparison.path) / COMPARISON_NAME)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
