"""Compares the models of a pipeline run."""

from collections.abc import Mapping
from pathlib import Path

from yolo_distill.components.benchmark.results import read_benchmark
from yolo_distill.components.compare.comparison import (
    Comparison,
    Role,
    RoleDifference,
    build_comparison,
    write_comparison,
)
from yolo_distill.components.compare.report import report
from yolo_distill.components.compare.summary import summary
from yolo_distill.components.evaluate_map.difference import LEVEL, RESAMPLES, score_evaluations
from yolo_distill.components.evaluate_map.evaluation import read_evaluation
from yolo_distill.components.evaluate_map.paired import ModelScores, Resamples, paired_difference
from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.progress import report_progress

# What distillation brings, what it leaves, and what INT8 costs.
_PAIRS: tuple[tuple[Role, Role], ...] = (("distilled", "plain"), ("distilled", "teacher"), ("quantized", "openvino"))


def compare(evaluations: Mapping[Role, Path], benchmark: Path, table: Path, page: Path, comparison: Path) -> Comparison:
    """Put accuracy and speed of all models side by side.

    Args:
        evaluations: Evaluation artifacts, one of each role.
        benchmark: Benchmark artifact of the same models.
        table: Where the Markdown file goes.
        page: Where the HTML file goes.
        comparison: Where the comparison artifact goes.

    Returns:
        The figures, as written.

    Raises:
        InputError: An artifact is not what it should be, or they do not belong together.
    """
    figures = {role: read_evaluation(folder) for role, folder in evaluations.items()}
    result = build_comparison(figures, read_benchmark(benchmark))
    result = result.model_copy(update={"differences": _differences(evaluations, result.images)})
    content = report(result, evaluations)
    write_text(table, summary(result).markdown())
    write_text(page, content)
    with new_directory(comparison) as folder:
        write_comparison(folder, result)
    return result


def _differences(evaluations: Mapping[Role, Path], images: int) -> list[RoleDifference]:
    resamples = Resamples.draw(images, 1, RESAMPLES)
    scores: dict[Role, ModelScores] = {}
    for role, score in zip(evaluations, score_evaluations(evaluations.values(), resamples), strict=True):
        scores[role] = score
        report_progress(len(scores), len(evaluations), "model")
    differences = []
    for role, against in _PAIRS:
        found = paired_difference([scores[role]], [scores[against]], resamples, LEVEL)
        differences.append(RoleDifference(role=role, against=against, map=found.map, map50=found.map50))
    return differences
