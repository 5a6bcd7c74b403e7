"""Compares the models of a pipeline run."""

from collections.abc import Mapping
from pathlib import Path

from yolo_distill.components.benchmark.results import read_benchmark
from yolo_distill.components.compare.comparison import Comparison, Role, build_comparison, write_comparison
from yolo_distill.components.compare.report import report
from yolo_distill.components.compare.summary import summary
from yolo_distill.components.evaluate_map.evaluation import read_evaluation
from yolo_distill.components.shared.files import new_directory, write_text


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
    result = build_comparison(
        {role: read_evaluation(folder) for role, folder in evaluations.items()}, read_benchmark(benchmark)
    )
    content = report(result, evaluations)
    write_text(table, summary(result).markdown())
    write_text(page, content)
    with new_directory(comparison) as folder:
        write_comparison(folder, result)
    return result
