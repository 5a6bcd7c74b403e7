"""Kubeflow component: compare."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def compare(  # noqa: ANN201
    teacher: dsl.Input[dsl.Artifact],
    plain: dsl.Input[dsl.Artifact],
    distilled: dsl.Input[dsl.Artifact],
    openvino: dsl.Input[dsl.Artifact],
    quantized: dsl.Input[dsl.Artifact],
    benchmark: dsl.Input[dsl.Artifact],
    table: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    comparison: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Put accuracy and speed of all models side by side.

    Args:
        teacher: Evaluation of the teacher.
        plain: Evaluation of the student that was trained without a teacher.
        distilled: Evaluation of the distilled student.
        openvino: Evaluation of the distilled student as an OpenVINO model.
        quantized: Evaluation of the distilled student as an INT8 model.
        benchmark: Benchmark of the same five models.
        table: The table, what follows from it and what to be careful about.
        report: The same as a page, with plots and pictures of detections.
        comparison: Folder with comparison.json, which holds every figure.
        metrics: mAP of each model, the gain of distillation and what INT8 costs and brings.
    """
    from pathlib import Path

    from yolo_distill.components.compare.compare import compare
    from yolo_distill.components.compare.comparison import COMPARISON_NAME, Role
    from yolo_distill.components.shared.task import task_run

    evaluations: dict[Role, Path] = {
        "teacher": Path(teacher.path),
        "plain": Path(plain.path),
        "distilled": Path(distilled.path),
        "openvino": Path(openvino.path),
        "quantized": Path(quantized.path),
    }
    outputs = Path(table.path), Path(report.path), Path(comparison.path)
    with task_run("compare") as run:
        result = compare(evaluations, Path(benchmark.path), *outputs)
        run.log_metrics(result.metrics)
        run.log_artifact(Path(comparison.path) / COMPARISON_NAME)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
