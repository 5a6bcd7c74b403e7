"""Kubeflow component: compare-robustness."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def compare_robustness(  # noqa: ANN201
    teacher: dsl.Input[dsl.Artifact],
    plain: dsl.Input[dsl.Artifact],
    distilled: dsl.Input[dsl.Artifact],
    quantized: dsl.Input[dsl.Artifact],
    table: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
):
    """Put the robustness of teacher, plain, distilled and INT8 student side by side.

    Args:
        teacher: Robustness of the teacher, an output of evaluate-robustness.
        plain: Robustness of the student that was trained without a teacher.
        distilled: Robustness of the distilled student.
        quantized: Robustness of the distilled student as an INT8 model.
        table: mAP of each on clean, corrupted and attacked images, and what to be careful about.
        report: The same as a page, with curves.
    """
    from pathlib import Path

    from yolo_distill.components.compare_robustness.compare import compare_robustness
    from yolo_distill.components.shared.task import task_run

    models = {"teacher": teacher, "plain": plain, "distilled": distilled, "INT8": quantized}
    with task_run("compare-robustness") as run:
        folders = {name: Path(artifact.path) for name, artifact in models.items()}
        results = compare_robustness(folders, Path(table.path), Path(report.path))
        for name, result in results.items():
            run.log_metrics({f"{name}.{key}": value for key, value in result.metrics.items()})
