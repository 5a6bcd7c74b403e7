"""Two evaluations against each other, by the library and on the command line."""

import json

import pytest
from typer.testing import CliRunner

from yolo_distill.components.evaluate_map.difference import LEVEL, RESAMPLES, compare_evaluations, difference_summary
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.evaluate_map.evaluation import DETECTIONS_NAME, GROUND_TRUTH_NAME, read_evaluation
from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.cli import app


@pytest.fixture(scope="module")
def folders(digits, lively_dir, tmp_path_factory):
    """A model's evaluation, and that of a better one: the labels themselves, with the other's detections below them."""
    root = tmp_path_factory.mktemp("difference")
    evaluate(digits, lively_dir, "val", root / "weak")
    evaluate(digits, lively_dir, "val", root / "strong")
    truth = json.loads((root / "strong" / GROUND_TRUTH_NAME).read_text())
    found = json.loads((root / "strong" / DETECTIONS_NAME).read_text())
    labels = [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0} for a in truth["annotations"]]
    (root / "strong" / DETECTIONS_NAME).write_text(json.dumps(labels + found))
    return root / "strong", root / "weak"


def test_a_large_difference_is_told_from_chance(folders):
    difference = compare_evaluations(*folders)
    assert (difference.images, difference.resamples, difference.level) == (16, RESAMPLES, LEVEL)
    weak = read_evaluation(folders[1]).map
    assert difference.map.estimate == pytest.approx(1 - weak, abs=0.02)
    assert difference.map.excludes_zero
    assert "more than chance" in difference_summary(difference).findings[0]
    other = compare_evaluations(folders[1], folders[0]).map
    assert (other.estimate, other.low) == pytest.approx((-difference.map.estimate, -difference.map.high))


def test_a_model_does_not_differ_from_itself(folders):
    difference = compare_evaluations(folders[0], folders[0])
    assert (difference.map.estimate, difference.map.low, difference.map.high) == (0, 0, 0)
    assert "chance is not ruled out" in difference_summary(difference).findings[0]


def test_the_command_prints_the_table(folders):
    done = CliRunner().invoke(app, ["compare", *map(str, folders)])
    assert done.exit_code == 0
    assert done.stdout == difference_summary(compare_evaluations(*folders)).markdown()


def test_what_does_not_compare_is_refused(folders, digits, lively_dir, tmp_path):
    evaluate(digits, lively_dir, "test", tmp_path / "other")
    with pytest.raises(InputError, match="its split is test, that of"):
        compare_evaluations(tmp_path / "other", folders[0])
    done = CliRunner().invoke(app, ["compare", str(folders[0]), str(tmp_path)])
    assert done.exit_code == 2
    assert "is not an evaluation" in " ".join(done.stderr.split())


def test_other_labels_are_refused(folders, digits, lively_dir, tmp_path):
    evaluate(digits, lively_dir, "val", tmp_path / "moved")
    truth = json.loads((tmp_path / "moved" / GROUND_TRUTH_NAME).read_text())
    truth["annotations"][0]["bbox"][0] += 1
    (tmp_path / "moved" / GROUND_TRUTH_NAME).write_text(json.dumps(truth))
    with pytest.raises(InputError, match="has other labels than the first evaluation"):
        compare_evaluations(folders[0], tmp_path / "moved")
