import random
import re
from pathlib import Path

import pytest

from yolo_distill.components.benchmark.results import read_benchmark
from yolo_distill.components.compare.compare import compare
from yolo_distill.components.compare.comparison import ROLES, Comparison, Role, build_comparison, read_comparison
from yolo_distill.components.compare.report import pareto_front, report
from yolo_distill.components.compare.summary import COLUMNS, summary
from yolo_distill.components.evaluate_map.evaluation import Evaluation, read_evaluation
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.errors import InputError

MAPS: dict[Role, float] = {"teacher": 0.8, "plain": 0.5, "distilled": 0.6, "openvino": 0.6, "quantized": 0.585}
LATENCIES: dict[Role, float] = {"teacher": 40, "plain": 20, "distilled": 20, "openvino": 10, "quantized": 4}


@pytest.fixture(scope="module")
def read(evaluations: dict[Role, Path]) -> dict[Role, Evaluation]:
    return {role: read_evaluation(folder) for role, folder in evaluations.items()}


@pytest.fixture(scope="module")
def comparison(read: dict[Role, Evaluation], measured: Path) -> Comparison:
    return build_comparison(read, read_benchmark(measured))


@pytest.fixture(scope="module")
def known(comparison: Comparison) -> Comparison:
    """The comparison of real models, with accuracies and latencies to reckon with."""
    models = [
        model.model_copy(
            update={
                "map": MAPS[model.role],
                "latency_ms": LATENCIES[model.role],
                "size_bytes": 4_000_000 if model.role == "quantized" else 16_000_000,
            }
        )
        for model in comparison.models
    ]
    return comparison.model_copy(update={"models": models, "disturbance": 0.02})


def test_everything_is_written(evaluations: dict[Role, Path], measured: Path, tmp_path: Path) -> None:
    table, page, folder = tmp_path / "out" / "table", tmp_path / "out" / "page", tmp_path / "out" / "comparison"
    result = compare(evaluations, measured, table, page, folder)
    assert read_comparison(folder) == result
    assert [model.role for model in result.models] == list(ROLES)
    for role, model in zip(ROLES, result.models, strict=True):
        evaluation, entry = read_evaluation(evaluations[role]), read_benchmark(measured).entries[role]
        assert (model.map, model.map50) == (evaluation.map, evaluation.map50)
        assert (model.latency_ms, model.throughput) == (entry.end_to_end.p50, entry.throughput)
    assert table.read_text() == summary(result).markdown()
    assert page.read_text().startswith("<!doctype html>")


def test_what_follows_from_the_figures(known: Comparison) -> None:
    assert known.gain == pytest.approx(10)
    assert known.int8_drop == pytest.approx(1.5)
    assert known.retained(known.model_of("distilled")) == pytest.approx(75)
    assert known.speed_up(known.model_of("quantized")) == pytest.approx(10)
    assert known.metrics["int8_retained_percent"] == pytest.approx(73.125)
    findings = "\n".join(summary(known).findings)
    assert "Distilled against plain student: +10.0 points" in findings
    assert "The distilled student keeps 75.0 % of the teacher's" in findings
    assert "INT8 against OpenVINO FP32: -1.5 points mAP50-95, 2.5x as fast, 25 % of the size." in findings
    assert "INT8 against the teacher in PyTorch: 10.0x as fast, 25 % of the size" in findings


def test_differences_come_with_their_intervals(evaluations: dict[Role, Path], measured: Path, tmp_path: Path) -> None:
    result = compare(evaluations, measured, tmp_path / "table", tmp_path / "page", tmp_path / "comparison")
    found = {(one.role, one.against): one.map for one in result.differences}
    assert list(found) == [("distilled", "plain"), ("distilled", "teacher"), ("quantized", "openvino")]
    for (role, against), interval in found.items():
        difference = result.model_of(role).map - result.model_of(against).map
        assert interval.estimate == pytest.approx(difference, abs=1e-9)
        assert interval.low <= interval.estimate <= interval.high
    # One and the same model plays both parts here.
    assert found["distilled", "plain"].model_dump() == {"estimate": 0, "low": 0, "high": 0}
    assert "distilled against plain +0.0 (+0.0 to +0.0)" in " ".join(summary(result).findings)
    assert result.metrics["distilled_against_plain_points_low"] == 0


def test_the_table_has_a_row_a_model(known: Comparison) -> None:
    lines = [line for line in summary(known).markdown().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == list(COLUMNS)
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert rows[2][:3] == ["Teacher (yolov8n)", "PyTorch FP32", "3.01"]
    assert rows[6][1] == "OpenVINO INT8"
    assert [row[5] for row in rows[2:]] == ["80.0", "50.0", "60.0", "60.0", "58.5"]


def test_a_teacher_that_finds_nothing_is_not_divided_by(known: Comparison) -> None:
    blind = known.model_copy(update={"models": [model.model_copy(update={"map": 0.0}) for model in known.models]})
    assert blind.retained(blind.model_of("distilled")) is None
    assert "int8_retained_percent" not in blind.metrics
    assert "keeps" not in summary(blind).markdown()


def test_the_reader_is_told_what_the_figures_rest_on(known: Comparison, digits: DetectionDataset) -> None:
    told = " ".join(summary(known).caveats)
    assert f"16 images with {sum(len(digits.labels(r)) for r in digits.split('val'))} boxes of the val split" in told
    assert "one seed" in told
    assert "know of other images alone" in told
    assert known.machine.cpu in told
    assert "Other programs" not in told
    disturbed = known.model_copy(update={"disturbance": 0.4})
    assert "Other programs took 40 % of the machine" in " ".join(summary(disturbed).caveats)


def test_the_page_needs_nothing_else(comparison: Comparison, evaluations: dict[Role, Path]) -> None:
    page = report(comparison, evaluations)
    assert not re.search(r"(?:src|href)=\"(?!data:image/)", page)
    # Two plots, and pictures of the detections of teacher, both students and the INT8 model.
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:image/jpeg;base64,") == 4


def test_the_front_holds_what_nothing_beats() -> None:
    draw = random.Random(0)
    for _ in range(200):
        # So few values that many points share a cost, an accuracy or both.
        points = [(float(draw.randrange(6)), float(draw.randrange(6))) for _ in range(draw.randrange(1, 12))]
        unbeaten = {
            (cost, accuracy)
            for cost, accuracy in points
            if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        }
        assert pareto_front(points) == sorted(unbeaten)


def test_the_front_of_known_models(known: Comparison) -> None:
    points = {(model.latency_ms, model.map): model.role for model in known.models}
    # The distilled student in PyTorch is as accurate as in OpenVINO and slower, the plain one is worse than both.
    assert [points[point] for point in pareto_front(points)] == ["quantized", "openvino", "teacher"]


def test_names_cannot_break_out_of_the_page(comparison: Comparison) -> None:
    hostile = comparison.models[0].model_copy(update={"architecture": "<script>alert(1)</script>|x"})
    page = report(comparison.model_copy(update={"models": [hostile, *comparison.models[1:]]}), {})
    assert "<script>" not in page
    table = summary(comparison.model_copy(update={"models": [hostile, *comparison.models[1:]]})).markdown()
    assert r"</script>\|x" in table


def test_of_many_classes_those_that_changed_most_are_shown(comparison: Comparison) -> None:
    some = next(iter(comparison.models[0].per_class.values()))
    models = [
        model.model_copy(
            update={
                "per_class": {
                    f"class {n}": some.model_copy(update={"ap": n / 100 if model.role == "distilled" else 0.0})
                    for n in range(30)
                }
            }
        )
        for model in comparison.models
    ]
    page = report(comparison.model_copy(update={"models": models}), {})
    assert "The 20 of 30 classes that distillation changed most." in page


@pytest.mark.parametrize(("field", "value"), [("dataset", "0" * 64), ("split", "test"), ("images", 3)])
def test_what_does_not_compare_is_refused(
    field: str, value: object, read: dict[Role, Evaluation], measured: Path
) -> None:
    other = read["quantized"].model_copy(update={field: value})
    with pytest.raises(InputError, match=f"evaluation of quantized: its {field} is {value}"):
        build_comparison({**read, "quantized": other}, read_benchmark(measured))


def test_a_benchmark_of_other_models_is_refused(read: dict[Role, Evaluation], measured: Path) -> None:
    swapped = read_benchmark(measured)
    entries = {**swapped.entries, "plain": swapped.entries["teacher"]}
    with pytest.raises(InputError, match="benchmark of plain: is of another model"):
        build_comparison(read, swapped.model_copy(update={"entries": entries}))
    with pytest.raises(InputError, match="benchmark of plain"):
        build_comparison(read, swapped.model_copy(update={"entries": {"teacher": swapped.entries["teacher"]}}))


def test_what_is_no_comparison_is_refused(tmp_path: Path, measured: Path) -> None:
    with pytest.raises(InputError, match="is not a comparison"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(InputError, match="is not a valid comparison"):
        read_comparison(tmp_path)
